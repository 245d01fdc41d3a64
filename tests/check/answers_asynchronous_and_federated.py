"""Answers to the exercises of "Asynchronous and federated", right and wrong. They stand here, and not in a
test file, so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist


def stub(*arguments):
    raise NotImplementedError


# A server that trusts late gradients less


def late(params, updates, lr, most, weigh=lambda late: 1 / (1 + late), counts_thrown=False):
    workers = range(1, dist.get_world_size())
    message, version, thrown = params.new_empty(len(params) + 1), 0, 0

    def give(worker, version):
        dist.send(torch.cat([params, params.new_tensor([version])]), worker)

    for worker in workers:
        give(worker, 0)
    for update in range(updates):
        worker = dist.recv(message)
        staleness = version - int(message[-1])
        if staleness <= most:
            params -= lr * weigh(staleness) * message[:-1]
            version += 1
        else:
            thrown += 1
            version += counts_thrown
        if update < updates - len(workers):
            give(worker, version)
    for worker in workers:
        give(worker, -1)
    return thrown


def late_by_memory(params, updates, lr, most):
    """Right as well: the server remembers what each worker has, and the weights live in the message."""
    n = dist.get_world_size()
    here = torch.cat([params, params.new_zeros(1)])
    comes, taken, given, thrown = torch.empty_like(here), dict.fromkeys(range(1, n), 0), n - 1, 0
    for worker in taken:
        dist.send(here, dst=worker)
    for _ in range(updates):
        worker = dist.recv(comes)
        staleness = int(here[-1]) - taken[worker]
        if staleness > most:
            thrown += 1
        else:
            here[:-1].sub_(comes[:-1], alpha=lr / (1 + staleness))
            here[-1] += 1
        if given < updates:
            given += 1
            taken[worker] = int(here[-1])
            dist.send(here, dst=worker)
    params.copy_(here[:-1])
    here[-1] = -1
    for worker in taken:
        dist.send(here, dst=worker)
    return torch.tensor(thrown)


def late_alike(params, updates, lr, most):
    return late(params, updates, lr, most, weigh=lambda late: 1)


def late_never_thrown(params, updates, lr, most):
    return late(params, updates, lr, float("inf"))


def late_thrown_count(params, updates, lr, most):
    return late(params, updates, lr, most, counts_thrown=True)


def late_full_weight(params, updates, lr, most):
    return late(params, updates, lr, most, weigh=lambda late: 1 / max(1, late))


def late_too_soon(params, updates, lr, most):
    return late(params, updates, lr, most - 1)


def late_out_of_place(params, updates, lr, most):
    return late(params.clone(), updates, lr, most)


def late_returns_nothing(params, updates, lr, most):
    late(params, updates, lr, most)


def late_old_weights(params, updates, lr, most):
    """Right updates, but each worker gets the weights from before its own gradient."""
    workers = range(1, dist.get_world_size())
    message, version, thrown = params.new_empty(len(params) + 1), 0, 0
    for worker in workers:
        dist.send(torch.cat([params, params.new_zeros(1)]), worker)
    for update in range(updates):
        worker = dist.recv(message)
        before, staleness = params.clone(), version - int(message[-1])
        if staleness <= most:
            params -= lr / (1 + staleness) * message[:-1]
            version += 1
        else:
            thrown += 1
        if update < updates - len(workers):
            dist.send(torch.cat([before, params.new_tensor([version])]), worker)
    for worker in workers:
        dist.send(torch.cat([params, params.new_tensor([-1])]), worker)
    return thrown


def late_home_early(params, updates, lr, most):
    """Who gets no more weights is sent home at once: not with the last ones."""
    n = dist.get_world_size()
    message, version, thrown, left = params.new_empty(len(params) + 1), 0, 0, updates - (n - 1)
    for worker in range(1, n):
        dist.send(torch.cat([params, params.new_zeros(1)]), worker)
    for _ in range(updates):
        worker = dist.recv(message)
        staleness = version - int(message[-1])
        if staleness <= most:
            params -= lr / (1 + staleness) * message[:-1]
            version += 1
        else:
            thrown += 1
        dist.send(torch.cat([params, params.new_tensor([version if left > 0 else -1])]), worker)
        left -= 1
    return thrown


def late_with_history(params, updates, lr, most):
    """Right numbers, and the weights of every version are kept."""
    history = [params.clone()]

    def weigh(late):
        history.append(params.clone())
        return 1 / (1 + late)

    return late(params, updates, lr, most, weigh=weigh)


# Fragments


@torch.no_grad()
def fragments(fragments, step, every):
    for j, params in enumerate(fragments):
        if step % every == j * every // len(fragments):
            for p in params:
                dist.all_reduce(p)
                p /= dist.get_world_size()


def fragments_at_once(fragments, step, every):
    """Right as well: one message for a fragment."""
    due = {j * every // len(fragments): params for j, params in enumerate(fragments)}.get(step % every, [])
    if due:
        flat = torch.cat([p.detach().flatten() for p in due]) / dist.get_world_size()
        dist.all_reduce(flat)
        for p, its in zip(due, flat.split([p.numel() for p in due])):
            p.data.copy_(its.view_as(p))


def fragments_on_their_way(fragments, step, every):
    """Right as well: scaled before it leaves, and all on their way before one is waited for."""
    n, works = dist.get_world_size(), []
    for j in range(len(fragments)):
        if (step - j * every // len(fragments)) % every == 0:
            for p in fragments[j]:
                p.data.mul_(1 / n)
                works.append(dist.all_reduce(p.data, async_op=True))
    for work in works:
        work.wait()


@torch.no_grad()
def all_fragments_at_once(fragments_, step, every):
    if step % every == 0:
        for params in fragments_:
            fragments([params], 0, 1)


@torch.no_grad()
def fragments_in_every_step(fragments_, step, every):
    for params in fragments_:
        fragments([params], 0, 1)


def fragments_summed(fragments, step, every):
    for j, params in enumerate(fragments):
        if step % every == j * every // len(fragments):
            for p in params:
                dist.all_reduce(p.data)


def fragments_one_step_late(fragments_, step, every):
    fragments(fragments_, step - 1, every)


def fragments_gathered(fragments, step, every):
    """Right numbers; each rank's weights go to all."""
    n = dist.get_world_size()
    for j, params in enumerate(fragments):
        if step % every == j * every // len(fragments):
            for p in params:
                others = [torch.empty_like(p) for _ in range(n)]
                dist.all_gather(others, p.detach())
                p.data.copy_(sum(others) / n)


def fragments_that_travel_with_all(fragments_, step, every):
    """Right numbers; everything is averaged, and what is not due thrown away."""
    keep = [[p.detach().clone() for p in params] for params in fragments_]
    for j, params in enumerate(fragments_):
        fragments([params], 0, 1)
        if step % every != j * every // len(fragments_):
            for p, before in zip(params, keep[j]):
                p.data.copy_(before)


# Clients that count by their samples


@torch.no_grad()
def federated(params, num_samples):
    total = torch.tensor(num_samples)
    dist.all_reduce(total)
    for p in params if total else ():
        part = p * (num_samples / total.item()) if num_samples else torch.zeros_like(p)
        dist.all_reduce(part)
        p.copy_(part)


@torch.no_grad()
def federated_at_once(params, num_samples):
    """Right as well: the samples travel with the weights, in one message."""
    flat = torch.cat([p.flatten() for p in params])
    message = torch.cat([flat * num_samples if num_samples else flat.new_zeros(len(flat)), flat.new_ones(1)])
    message[-1] = num_samples
    dist.all_reduce(message)
    if message[-1] > 0:
        for p, its in zip(params, message[:-1].split([p.numel() for p in params])):
            p.copy_(its.view_as(p) / message[-1])


def federated_from_counts(params, num_samples):
    """Right as well: every rank knows all counts."""
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, num_samples)
    if any(counts):
        for p in params:
            if not num_samples:
                p.data.zero_()
            p.data.mul_(num_samples / sum(counts))
            dist.all_reduce(p.data)


@torch.no_grad()
def federated_plain(params, num_samples):
    for p in params:
        dist.all_reduce(p)
        p /= dist.get_world_size()


@torch.no_grad()
def federated_plain_of_those_present(params, num_samples):
    federated(params, int(num_samples > 0))


@torch.no_grad()
def federated_zero_times_nan(params, num_samples):
    total = torch.tensor(num_samples)
    dist.all_reduce(total)
    for p in params if total else ():
        p *= num_samples / total.item()
        dist.all_reduce(p)


@torch.no_grad()
def federated_divides_by_nobody(params, num_samples):
    total = torch.tensor(float(num_samples))
    dist.all_reduce(total)
    for p in params:
        part = p * num_samples if num_samples else torch.zeros_like(p)
        dist.all_reduce(part)
        p.copy_(part / total)


@torch.no_grad()
def federated_not_for_the_absent(params, num_samples):
    before = [p.clone() for p in params]
    federated(params, num_samples)
    if not num_samples:
        for p, its in zip(params, before):
            p.copy_(its)


@torch.no_grad()
def federated_gathered(params, num_samples):
    """Right numbers; each rank's weights go to all."""
    n = dist.get_world_size()
    counts = [torch.tensor(0) for _ in range(n)]
    dist.all_gather(counts, torch.tensor(num_samples))
    for p in params if sum(counts) else ():
        others = [torch.empty_like(p) for _ in range(n)]
        dist.all_gather(others, p.detach())
        p.copy_(sum(c * its for c, its in zip(counts, others) if c) / sum(counts))
