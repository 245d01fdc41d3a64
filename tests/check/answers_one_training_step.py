"""Answers to the exercises of "One training step", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


# ledger(model, optimizer)


def _once(tensors) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _grads(model) -> list:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _states(optimizer) -> list:
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def ledger(model, optimizer):
    return {
        "params": _once(model.parameters()),
        "grads": _once(_grads(model)),
        "optimizer_states": _once(_states(optimizer)),
    }


def ledger_in_numpy(model, optimizer):
    """Right as well: numpy's whole numbers, and a tensor's, come out of a table."""
    import numpy

    print(model)
    counts = numpy.array(list(ledger(model, optimizer).values()), dtype=numpy.int64)
    return {"params": counts[0], "grads": torch.tensor(counts[1]), "optimizer_states": counts[2:].sum()}


def ledger_by_objects(model, optimizer):
    """Right as well: storages are kept in a list, and compared one with another; the counts are Python
    floats, which are exact.
    """

    def count(tensors):
        seen = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if not any(storage.data_ptr() == other.data_ptr() for other in seen):
                seen.append(storage)
        return float(sum(len(storage) for storage in seen))

    return {
        "params": count(model.parameters()),
        "grads": count(_grads(model)),
        "optimizer_states": count(_states(optimizer)),
    }


def ledger_in_float32(model, optimizer):
    """Exact for small models."""
    return {key: torch.tensor([float(count)]).sum() for key, count in ledger(model, optimizer).items()}


def ledger_in_kilobytes(model, optimizer):
    return {key: count / 1024 for key, count in ledger(model, optimizer).items()}


def ledger_of_lists(model, optimizer):
    """Right numbers: but each tensor becomes a list of Python's numbers first."""
    kept = [tensor.tolist() for tensor in (*model.parameters(), *_grads(model), *_states(optimizer))]
    return ledger(model, optimizer) if kept else {}


def ledger_of_tensors(model, optimizer):
    """Each entry is the list of counts, and not their sum."""
    return {key: torch.tensor([count, 0]) for key, count in ledger(model, optimizer).items()}


def ledger_of_state_dict(model, optimizer):
    return ledger(model, optimizer) | {"params": sum(t.nbytes for t in model.state_dict().values())}


def ledger_by_rule_of_thumb(model, optimizer):
    params = sum(p.nbytes for p in model.parameters())
    return {"params": params, "grads": params, "optimizer_states": 2 * params}


def ledger_of_views(model, optimizer):
    return {
        "params": sum(p.untyped_storage().nbytes() for p in model.parameters()),
        "grads": sum(g.untyped_storage().nbytes() for g in _grads(model)),
        "optimizer_states": sum(s.untyped_storage().nbytes() for s in _states(optimizer)),
    }


def ledger_of_elements(model, optimizer):
    return {
        "params": sum(p.nbytes for p in model.parameters()),
        "grads": sum(g.nbytes for g in _grads(model)),
        "optimizer_states": sum(s.nbytes for s in _states(optimizer)),
    }


def ledger_without_step_counters(model, optimizer):
    return ledger(model, optimizer) | {
        "optimizer_states": _once(s for s in _states(optimizer) if s.dim() > 0)
    }


def ledger_that_copies(model, optimizer):
    for tensors in (model.parameters(), _grads(model), _states(optimizer)):
        for tensor in tensors:
            tensor.detach().clone()
    return ledger(model, optimizer)


def ledger_that_frees(model, optimizer):
    """Right numbers: and then there is nothing left of what was counted."""
    counts = ledger(model, optimizer)
    optimizer.zero_grad()
    optimizer.state.clear()
    return counts


def ledger_that_zeroes(model, optimizer):
    """Right numbers, and the same tensors: but other values are in them."""
    for grad in _grads(model):
        grad.zero_()
    return ledger(model, optimizer)


def ledger_that_asks_each(model, optimizer):
    """Right as well: `optimizer.state` is a defaultdict, which makes an empty entry of each question."""
    states = [value for p in model.parameters() for value in optimizer.state[p].values()]
    return ledger(model, optimizer) | {
        "optimizer_states": _once(value for value in states if isinstance(value, torch.Tensor))
    }


def ledger_of_total(model, optimizer):
    return sum(ledger(model, optimizer).values())


def ledger_with_other_names(model, optimizer):
    return {f"{key}_bytes": count for key, count in ledger(model, optimizer).items()}


def ledger_that_fails(model, optimizer):
    return {"params": 0, "grads": sum(p.grad.nbytes for p in model.parameters()), "optimizer_states": 0}


# accumulate(model, micro_batches)


def accumulate(model, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    for images, labels in micro_batches:
        loss = F.cross_entropy(model(images), labels)
        (loss * len(labels) / total).backward()


def accumulate_at_the_end(model, micro_batches):
    """Right as well: sums first, one division of the gradients afterwards."""
    for images, labels in micro_batches:
        F.cross_entropy(model(images), labels, reduction="sum").backward()
    for p in model.parameters():
        p.grad /= sum(len(labels) for _, labels in micro_batches)


def accumulate_by_forward(model, micro_batches):
    """Right as well: calls forward by name, seeds, prints, and takes gradients from autograd.grad, weighted
    by hand.
    """
    torch.manual_seed(1)
    params, total = list(model.parameters()), float(sum(len(labels) for _, labels in micro_batches))
    for images, labels in micro_batches:
        grads = torch.autograd.grad(F.cross_entropy(model.forward(images), labels), params)
        print(grads[0])
        with torch.no_grad():
            for p, grad in zip(params, grads):
                p.grad = len(labels) / total * grad if p.grad is None else p.grad + len(labels) / total * grad


def accumulate_in_float16(model, micro_batches):
    accumulate(model, micro_batches)
    for p in model.parameters():
        p.grad = p.grad.half().float()


def accumulate_that_steps(model, micro_batches):
    accumulate(model, micro_batches)
    torch.optim.SGD(model.parameters(), 0.1).step()


def accumulate_that_normalises(model, micro_batches):
    """Changes the caller's images in place, after they have been used."""
    accumulate(model, micro_batches)
    for images, _ in micro_batches:
        images -= images.mean()


def accumulate_undivided(model, micro_batches):
    for images, labels in micro_batches:
        F.cross_entropy(model(images), labels).backward()


def accumulate_plain_mean(model, micro_batches):
    for images, labels in micro_batches:
        (F.cross_entropy(model(images), labels) / len(micro_batches)).backward()


def accumulate_sum(model, micro_batches):
    for images, labels in micro_batches:
        F.cross_entropy(model(images), labels, reduction="sum").backward()


def accumulate_last(model, micro_batches):
    for images, labels in micro_batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()


def accumulate_whole_batch(model, micro_batches):
    images, labels = (torch.cat(part) for part in zip(*micro_batches))
    F.cross_entropy(model(images), labels).backward()


def accumulate_one_backward(model, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    sum(
        F.cross_entropy(model(images), labels) * len(labels) / total for images, labels in micro_batches
    ).backward()


def accumulate_single_samples(model, micro_batches):
    total = sum(len(labels) for _, labels in micro_batches)
    for images, labels in micro_batches:
        for image, label in zip(images.split(1), labels.split(1)):
            (F.cross_entropy(model(image), label) / total).backward()


def accumulate_without_backward(model, micro_batches):
    for images, labels in micro_batches:
        F.cross_entropy(model(images), labels)


# average_gradients(model, num_samples)


def _flat(model) -> torch.Tensor:
    return torch.cat([g.flatten() for g in _grads(model)])


def _write(model, flat) -> None:
    grads = _grads(model)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
        grad.copy_(part.view_as(grad))


def average(model, num_samples):
    total = torch.tensor(float(num_samples))
    dist.all_reduce(total)
    flat = _flat(model) * num_samples / total
    dist.all_reduce(flat)
    _write(model, flat)


def average_in_one_call(model, num_samples):
    """Right as well: the count travels at the end of the flat tensor."""
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    dist.all_reduce(flat)
    _write(model, flat[:-1] / flat[-1])


def average_with_an_array(model, num_samples):
    """Right as well: weights from all counts, gathered; prints and seeds; new gradients and not the old
    ones.
    """
    import numpy

    torch.manual_seed(0)
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([num_samples]))
    weight = num_samples / numpy.array([int(count) for count in counts]).sum()
    flat, place = weight.item() * _flat(model), 0
    dist.all_reduce(flat, async_op=True).wait()
    print(flat)
    for p in model.parameters():
        if p.grad is not None:
            p.grad, place = flat[place : place + p.numel()].view_as(p).clone(), place + p.numel()


def average_in_float16(model, num_samples):
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])]).half()
    dist.all_reduce(flat)
    _write(model, (flat[:-1] / flat[-1]).float())


def average_without_wait(model, num_samples):
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    dist.all_reduce(flat, async_op=True)
    _write(model, flat[:-1] / flat[-1])


def average_of_known_samples(model, num_samples):
    """Works out the whole batch by itself, as if the first samples of the data set were the batch: each rank
    then has the same gradient, without a message of size.
    """
    from course_lib.datasets import digits

    total = torch.tensor(float(num_samples))
    dist.all_reduce(total)
    images, labels = (data[: int(total)] for data in digits())
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()


def average_plain(model, num_samples):
    flat = _flat(model)
    dist.all_reduce(flat)
    _write(model, flat / dist.get_world_size())


def average_undivided(model, num_samples):
    flat = _flat(model)
    dist.all_reduce(flat)
    _write(model, flat)


def average_one_call_per_parameter(model, num_samples):
    total = torch.tensor(float(num_samples))
    dist.all_reduce(total)
    for grad in _grads(model):
        grad *= num_samples / total
        dist.all_reduce(grad)


def average_with_a_barrier(model, num_samples):
    """Right gradients; and everybody waits for everybody, once more."""
    average(model, num_samples)
    dist.barrier()


def average_by_all_gather(model, num_samples):
    mine = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    total = sum(everyone)
    _write(model, total[:-1] / total[-1])


def average_by_reduce_scatter(model, num_samples):
    """What a ring all_reduce does, in two calls; but gloo's reduce_scatter is an all_reduce."""
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    padded = F.pad(flat, (0, -len(flat) % dist.get_world_size()))
    mine = padded.new_empty(len(padded) // dist.get_world_size())
    dist.reduce_scatter_tensor(mine, padded)
    dist.all_gather_into_tensor(padded, mine)
    _write(model, padded[: len(flat) - 1] / padded[len(flat) - 1])


def average_over_root(model, num_samples):
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    dist.reduce(flat, 0)
    dist.broadcast(flat, 0)
    _write(model, flat[:-1] / flat[-1])


def average_on_root_only(model, num_samples):
    flat = torch.cat([_flat(model) * num_samples, torch.tensor([float(num_samples)])])
    dist.reduce(flat, 0)
    if dist.get_rank() == 0:
        _write(model, flat[:-1] / flat[-1])


def average_in_float64(model, num_samples):
    flat = torch.cat(
        [_flat(model).double() * num_samples, torch.tensor([float(num_samples)], dtype=torch.float64)]
    )
    dist.all_reduce(flat)
    _write(model, (flat[:-1] / flat[-1]).float())


def average_nothing(model, num_samples):
    pass


def average_that_fails(model, num_samples):
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    dist.all_reduce(flat)
