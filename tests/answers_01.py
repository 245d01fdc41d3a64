"""Answers to the exercises of chapter 01, right and wrong. They stand here, and not in a test file, so that a rank need not import pytest."""
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
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def ledger(model, optimizer):
    return {"params": _once(model.parameters()), "grads": _once(_grads(model)), "optimizer_states": _once(_states(optimizer))}


def ledger_of_state_dict(model, optimizer):
    return ledger(model, optimizer) | {"params": sum(t.nbytes for t in model.state_dict().values())}


def ledger_by_rule_of_thumb(model, optimizer):
    params = sum(p.nbytes for p in model.parameters())
    return {"params": params, "grads": params, "optimizer_states": 2 * params}


def ledger_of_views(model, optimizer):
    return {"params": sum(p.untyped_storage().nbytes() for p in model.parameters()), "grads": sum(g.untyped_storage().nbytes() for g in _grads(model)),
            "optimizer_states": sum(s.untyped_storage().nbytes() for s in _states(optimizer))}


def ledger_of_elements(model, optimizer):
    return {"params": sum(p.nbytes for p in model.parameters()), "grads": sum(g.nbytes for g in _grads(model)),
            "optimizer_states": sum(s.nbytes for s in _states(optimizer))}


def ledger_without_step_counters(model, optimizer):
    return ledger(model, optimizer) | {"optimizer_states": _once(s for s in _states(optimizer) if s.dim() > 0)}


def ledger_that_copies(model, optimizer):
    for tensors in (model.parameters(), _grads(model), _states(optimizer)):
        for tensor in tensors:
            tensor.detach().clone()
    return ledger(model, optimizer)


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
    sum(F.cross_entropy(model(images), labels) * len(labels) / total for images, labels in micro_batches).backward()


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
    _write(model, padded[:len(flat) - 1] / padded[len(flat) - 1])


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
    flat = torch.cat([_flat(model).double() * num_samples, torch.tensor([float(num_samples)], dtype=torch.float64)])
    dist.all_reduce(flat)
    _write(model, (flat[:-1] / flat[-1]).float())


def average_nothing(model, num_samples):
    pass


def average_that_fails(model, num_samples):
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    dist.all_reduce(flat)
