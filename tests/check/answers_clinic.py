"""Answers to the exercises of "Clinic", right and wrong. They stand here, and not in a test file, so that a
rank need not import pytest.
"""

import itertools

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib.clinic.patients import LARGEST


def stub(*arguments):
    raise NotImplementedError


def average(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


# Ada: batches that are fewer on one rank


def ada(model, optimizer, batches):
    most = torch.tensor(len(batches))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    for _, batch in zip(range(most), itertools.chain(batches, itertools.repeat(None))):
        optimizer.zero_grad(set_to_none=False)
        count = torch.tensor(len(batch[1]) if batch else 0)
        if batch:
            F.cross_entropy(model(batch[0]), batch[1], reduction="sum").backward()
        dist.all_reduce(count)
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= count
        optimizer.step()


def ada_in_one_message(model, optimizer, batches):
    """Right as well: gradients and the count in one vector, until nobody has anything."""
    params, left = list(model.parameters()), iter(batches)
    while True:
        x, y = next(left, (None, None))
        vector = torch.zeros(sum(p.numel() for p in params) + 1, dtype=params[0].dtype)
        if x is not None:
            loss = F.cross_entropy(model(x), y, reduction="sum")
            vector = torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, params)] + [vector[-1:] + len(y)]
            )
        any_left = torch.tensor(x is not None)
        dist.all_reduce(any_left, op=dist.ReduceOp.MAX)
        if not any_left:
            return
        dist.all_reduce(vector)
        parts = (vector[:-1] / vector[-1]).split([p.numel() for p in params])
        for p, part in zip(params, parts):
            p.grad = part.view_as(p)
        optimizer.step()


def ada_drops(model, optimizer, batches):
    fewest = torch.tensor(len(batches))
    dist.all_reduce(fewest, op=dist.ReduceOp.MIN)
    for x, y in batches[:fewest]:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        average(model)
        optimizer.step()


def ada_with_zeros(model, optimizer, batches):
    most = torch.tensor(len(batches))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    for step in range(most):
        optimizer.zero_grad(set_to_none=False)
        if step < len(batches):
            F.cross_entropy(model(batches[step][0]), batches[step][1]).backward()
        average(model)
        optimizer.step()


def ada_shares_samples(model, optimizer, batches):
    """Every rank becomes one process."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, batches)
    for step in range(max(map(len, everyone))):
        x, y = (torch.cat(parts) for parts in zip(*(own[step] for own in everyone if len(own) > step)))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def as_it_was(patient):
    def unmended(model, optimizer, batches):
        from course_lib.clinic.patients import PATIENTS

        PATIENTS[patient](model, optimizer, batches)

    return unmended


ada_as_it_was, ben_as_it_was, cleo_as_it_was = map(as_it_was, ("ada", "ben", "cleo"))
dora_as_it_was, emil_as_it_was = map(as_it_was, ("dora", "emil"))

# Ben: a loss that is not finite


def ben(model, optimizer, batches):
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        bad = (~loss.isfinite()).double()
        dist.all_reduce(bad)
        if bad:
            continue
        optimizer.zero_grad()
        loss.backward()
        average(model)
        optimizer.step()


def ben_looks_at_the_sum(model, optimizer, batches):
    """Right as well: a nan travels in the gradients, so that all ranks see it."""
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        average(model)
        if all(p.grad.isfinite().all() for p in model.parameters()):
            optimizer.step()


def _ben(stand_in):
    def answer(model, optimizer, batches):
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            good = loss.isfinite()
            count = good.double()
            dist.all_reduce(count)
            (loss if good else 0 * sum(p.sum() for p in model.parameters())).backward()
            stand_in(model, count)
            optimizer.step()

    return answer


def _over_the_good(model, count):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= count


def _over_all(model, count):
    average(model)


def _zeros_for_all(model, count):
    average(model)
    if count < dist.get_world_size():
        for p in model.parameters():
            p.grad.zero_()


ben_without_the_rank, ben_with_zeros, ben_moves_on = map(_ben, (_over_the_good, _over_all, _zeros_for_all))


# Cleo: a norm


def cleo(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        average(model)
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
        optimizer.step()


def cleo_with_ddp(model, optimizer, batches):
    """Right as well: torch's DDP averages."""
    ddp = nn.parallel.DistributedDataParallel(model)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
        optimizer.step()


def cleo_never_clips(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        average(model)
        optimizer.step()


def cleo_gathers(model, optimizer, batches):
    """Right numbers, and every gradient goes to everybody."""
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            everyone = [torch.empty_like(p) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, p.grad)
            p.grad = sum(everyone) / len(everyone)
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
        optimizer.step()


# Dora: other weights at the start


def dora(model, optimizer, batches):
    for p in model.parameters():
        dist.broadcast(p.data, src=0)
    cleo_never_clips(model, optimizer, batches)


def dora_with_ddp(model, optimizer, batches):
    """Right as well: torch's DDP broadcasts, too."""
    ddp = nn.parallel.DistributedDataParallel(model)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


def dora_averages_weights(model, optimizer, batches):
    for p in model.parameters():
        dist.all_reduce(p.data)
        p.data /= dist.get_world_size()
    cleo_never_clips(model, optimizer, batches)


def dora_broadcasts_always(model, optimizer, batches):
    for x, y in batches:
        dora(model, optimizer, [(x, y)])


# Emil: bytes


def emil(model, optimizer, batches):
    cleo_never_clips(model, optimizer, batches)


def emil_in_one_vector(model, optimizer, batches):
    """Right as well: one all_reduce in each step."""
    for x, y in batches:
        params = list(model.parameters())
        vector = nn.utils.parameters_to_vector(torch.autograd.grad(F.cross_entropy(model(x), y), params))
        dist.all_reduce(vector)
        vector /= dist.get_world_size()
        for p, part in zip(params, vector.split([p.numel() for p in params])):
            p.grad = part.view_as(p)
        optimizer.step()


def emil_in_float32(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            single = p.grad.float()
            dist.all_reduce(single)
            p.grad = single.to(p.dtype) / dist.get_world_size()
        optimizer.step()


def emil_leaves_one_out(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in [*model.parameters()][1:]:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()
