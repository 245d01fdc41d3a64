"""Answers to the exercises of "Precision and compression", right and wrong. They stand here, and not in a
test file, so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist


def stub(*arguments):
    raise NotImplementedError


# A step that all ranks skip together


def step(shards, optimizer, scale):
    finite = torch.tensor(float(all(p.grad.isfinite().all() for p in shards)))
    dist.all_reduce(finite, dist.ReduceOp.MIN)
    if not finite:
        return scale / 2
    for p in shards:
        p.grad /= scale
    optimizer.step()
    return scale


def step_by_gathering(shards, optimizer, scale):
    """Right as well: counts, of all ranks, and new gradients."""
    wrong = torch.tensor([sum(int((~torch.isfinite(p.grad)).sum()) for p in shards)])
    every = [torch.zeros_like(wrong) for _ in range(dist.get_world_size())]
    dist.all_gather(every, wrong)
    if sum(every) > 0:
        optimizer.zero_grad()
        scale *= 0.5
    else:
        for p in shards:
            p.grad = p.grad.double().div(scale).float()
        optimizer.step()
    return scale


def step_alone(shards, optimizer, scale):
    if not all(p.grad.isfinite().all() for p in shards):
        return scale / 2
    for p in shards:
        p.grad /= scale
    optimizer.step()
    return scale


def step_by_the_norm(shards, optimizer, scale):
    """Takes large numbers for infinite ones: their squares are."""
    norm = torch.stack([p.grad.norm() for p in shards]).square().sum()
    dist.all_reduce(norm)
    if not norm.isfinite():
        return scale / 2
    for p in shards:
        p.grad /= scale
    optimizer.step()
    return scale


def step_with_zeros(shards, optimizer, scale):
    """Steps all the same, with zeros in the place of what is not finite."""
    for p in shards:
        p.grad = torch.nan_to_num(p.grad / scale, 0.0, 0.0, 0.0)
    optimizer.step()
    return scale


def step_without_division(shards, optimizer, scale):
    finite = torch.tensor(float(all(p.grad.isfinite().all() for p in shards)))
    dist.all_reduce(finite, dist.ReduceOp.MIN)
    if finite:
        optimizer.step()
    return scale if finite else scale / 2


def step_that_keeps_its_scale(shards, optimizer, scale):
    step(shards, optimizer, scale)
    return scale


def step_shard_by_shard(shards, optimizer, scale):
    """Right, and a message for each shard."""
    finite = True
    for p in shards:
        one = p.grad.isfinite().all().float()
        dist.all_reduce(one, dist.ReduceOp.MIN)
        finite = finite and bool(one)
    if not finite:
        return scale / 2
    for p in shards:
        p.grad /= scale
    optimizer.step()
    return scale


def step_that_sends_gradients(shards, optimizer, scale):
    """Right, and sends all gradients, of which each rank has others."""
    flat = torch.cat([p.grad.flatten() for p in shards])
    dist.all_reduce(flat)
    if not flat.isfinite().all():
        return scale / 2
    for p in shards:
        p.grad /= scale
    optimizer.step()
    return scale


# A mean that travels as bytes

FP8 = torch.float8_e4m3fn


def in_bytes(chunks):
    scales = 448 / chunks.abs().amax(1).clamp_min(1e-30)
    return (chunks * scales[:, None]).to(FP8).view(torch.uint8), scales


def from_bytes(eights, scales):
    return eights.view(FP8).float() / scales[:, None]


def mean(x):
    n = dist.get_world_size()
    eights, scales = in_bytes(x.view(n, -1))
    came, their_scales = torch.empty_like(eights), torch.empty_like(scales)
    dist.all_to_all_single(came, eights)
    dist.all_to_all_single(their_scales, scales)
    mine, my_scale = in_bytes(from_bytes(came, their_scales).mean(0, keepdim=True))
    dist.all_gather_into_tensor(came.view(-1), mine.view(-1))
    dist.all_gather_into_tensor(their_scales, my_scale)
    return from_bytes(came, their_scales).flatten()


def mean_in_int8(x):
    """Right as well: whole numbers from -127 to 127, and a scale for each 1,024 of them."""
    n = dist.get_world_size()

    def small(blocks):
        sizes = blocks.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        return (blocks / sizes).round().to(torch.int8), sizes

    numbers, sizes = small(x.view(-1, 1024))
    came, came_sizes = torch.empty_like(numbers), torch.empty_like(sizes)
    dist.all_to_all_single(came, numbers)
    dist.all_to_all_single(came_sizes, sizes)
    total = (came.float() * came_sizes).view(n, -1, 1024).mean(0)
    numbers, sizes = small(total)
    dist.all_gather_into_tensor(came, numbers)
    dist.all_gather_into_tensor(came_sizes, sizes)
    return (came * came_sizes).flatten()


def mean_in_float32(x):
    dist.all_reduce(x)
    return x / dist.get_world_size()


def mean_in_bf16(x):
    half = (x / dist.get_world_size()).bfloat16()
    dist.all_reduce(half)
    return half.float()


def mean_of_gathered_bytes(x):
    """Right numbers; every rank gets all of every other."""
    n = dist.get_world_size()
    eights, scales = in_bytes(x.view(n, -1))
    every, all_scales = eights.new_empty(n * x.numel()), scales.new_empty(n * n)
    dist.all_gather_into_tensor(every, eights.view(-1))
    dist.all_gather_into_tensor(all_scales, scales)
    return from_bytes(every.view(n * n, -1), all_scales).view(n, -1).mean(0)


def mean_with_one_scale(x):
    """One scale for all chunks: small ones vanish beside large ones."""
    n = dist.get_world_size()
    scale = 448 / x.abs().amax()
    came = torch.empty(n, len(x) // n, dtype=torch.uint8)
    scales = torch.empty(n)
    dist.all_to_all_single(came, (x * scale).to(FP8).view(torch.uint8).view(n, -1))
    dist.all_gather_into_tensor(scales, scale.view(1))
    mine, my_scale = in_bytes(from_bytes(came, scales).mean(0, keepdim=True))
    dist.all_gather_into_tensor(came.view(-1), mine.view(-1))
    dist.all_gather_into_tensor(scales, my_scale)
    return from_bytes(came, scales).flatten()


def mean_that_keeps_its_own(x):
    """What it has summed up it keeps unrounded for itself: other bits on each rank."""
    n, rank = dist.get_world_size(), dist.get_rank()
    eights, scales = in_bytes(x.view(n, -1))
    came, their_scales = torch.empty_like(eights), torch.empty_like(scales)
    dist.all_to_all_single(came, eights)
    dist.all_to_all_single(their_scales, scales)
    total = from_bytes(came, their_scales).mean(0, keepdim=True)
    mine, my_scale = in_bytes(total)
    dist.all_gather_into_tensor(came.view(-1), mine.view(-1))
    dist.all_gather_into_tensor(their_scales, my_scale)
    result = from_bytes(came, their_scales)
    result[rank] = total
    return result.flatten()


def mean_that_is_a_sum(x):
    return mean(x) * dist.get_world_size()


def mean_of_itself(x):
    return x.clone()


# Places that all ranks know


def places(grad, unsaid, k, step):
    wanted = grad + unsaid
    draw = torch.Generator().manual_seed(step)
    chosen = torch.randperm(len(grad), generator=draw)[:k]
    numbers = wanted[chosen]
    dist.all_reduce(numbers)
    result = torch.zeros_like(grad)
    result[chosen] = numbers / dist.get_world_size()
    wanted[chosen] = 0.0
    return result, wanted


def places_in_turn(grad, unsaid, k, step):
    """Right as well: one permutation, and each step its next k."""
    wanted = grad + unsaid
    order = torch.randperm(len(grad), generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(len(grad), dtype=torch.bool)
    mask[order[(torch.arange(k) + step * k) % len(grad)]] = True
    numbers = wanted[mask] / dist.get_world_size()
    dist.all_reduce(numbers)
    return torch.zeros_like(grad).masked_scatter(mask, numbers), wanted * ~mask


def places_of_its_own(grad, unsaid, k, step):
    """Each rank draws for itself, and adds up what has nothing to do with each other."""
    wanted = grad + unsaid
    chosen = torch.randperm(len(grad))[:k]
    numbers = wanted[chosen]
    dist.all_reduce(numbers)
    result = torch.zeros_like(grad)
    result[chosen] = numbers / dist.get_world_size()
    wanted[chosen] = 0.0
    return result, wanted


def places_forgotten(grad, unsaid, k, step):
    return places(grad, torch.zeros_like(unsaid), k, step)


def places_that_stay(grad, unsaid, k, step):
    return places(grad, unsaid, k, 0)


def places_summed(grad, unsaid, k, step):
    result, rest = places(grad, unsaid, k, step)
    return result * dist.get_world_size(), rest


def places_with_zeros(grad, unsaid, k, step):
    """Right, and sends the zeros, too."""
    wanted = grad + unsaid
    chosen = torch.randperm(len(grad), generator=torch.Generator().manual_seed(step))[:k]
    result = torch.zeros_like(grad)
    result[chosen] = wanted[chosen] / dist.get_world_size()
    dist.all_reduce(result)
    wanted[chosen] = 0.0
    return result, wanted


def places_in_place(grad, unsaid, k, step):
    unsaid += grad
    return places(torch.zeros_like(grad), unsaid, k, step)


def places_of_all(grad, unsaid, k, step):
    return places(grad, unsaid, len(grad), step)


def places_returned_alone(grad, unsaid, k, step):
    return places(grad, unsaid, k, step)[0]
