"""Four methods: each makes of this rank's gradient a message, and of all ranks' messages one mean.

Each takes a gradient of any shape, a dict in which it may keep what it needs in the next step, and the group;
it returns the mean and what this rank has said, both in the shape and the dtype of the gradient. Every rank
of the group must call it.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import process_group, takes
from course_lib.mini.compression import refusals as refuse

__all__ = ["rounded", "top_k", "one_bit", "low_rank", "Group"]

Group = dist.ProcessGroup | None


@takes(gradient=refuse.no_gradient, memory=dict, group=process_group, dtype=torch.dtype)
def rounded(
    gradient: Tensor, memory: dict, group: Group = None, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """The mean of numbers that are rounded to `dtype`, on their way as well. Sends 2r numbers of `dtype` for
    each one. Divided first: a sum of large float16 would be infinite.
    """
    said = (gradient / dist.get_world_size(group)).to(dtype)
    total = said.clone()
    dist.all_reduce(total, group=group)
    return total.to(gradient.dtype), said.to(gradient.dtype) * dist.get_world_size(group)


@takes(gradient=refuse.no_gradient, memory=dict, group=process_group, share=refuse.no_share)
def top_k(gradient: Tensor, memory: dict, group: Group = None, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """The mean of gradients of which each rank keeps the largest `share`, and no less than one number: k.

    Sends (n-1) (4 + 4) k bytes, for float32: all ranks' numbers and places come to all.
    """
    flat, k = gradient.flatten(), max(1, round(share * gradient.numel()))
    places = flat.abs().topk(k, sorted=False).indices
    all_places, all_values = gathered(places.int(), group), gathered(flat[places], group)  # [n, k]
    mean = torch.zeros_like(flat)
    for its_places, its_values in zip(all_places, all_values):  # in rank order, alike on all ranks
        mean[its_places.long()] += its_values / len(all_values)
    said = torch.zeros_like(flat)
    said[places] = flat[places]
    return mean.view_as(gradient), said.view_as(gradient)


@takes(gradient=refuse.no_gradient, memory=dict, group=process_group)
def one_bit(gradient: Tensor, memory: dict, group: Group = None) -> tuple[Tensor, Tensor]:
    """The mean of gradients of which each rank keeps the signs, and the mean of their sizes.

    Sends (n-1) (numel / 8 + 4) bytes, for float32.
    """
    flat = gradient.flatten()
    size = flat.abs().mean()
    all_bits, all_sizes = gathered(packed(flat >= 0), group), gathered(size.view(1), group)
    mean = torch.zeros_like(flat)
    for bits, its_size in zip(all_bits, all_sizes):
        mean += signs(bits, flat) * (its_size / len(all_sizes))
    said = torch.where(flat >= 0, size, -size)
    return mean.view_as(gradient), said.view_as(gradient)


@takes(gradient=refuse.no_gradient, memory=dict, group=process_group, rank=refuse.no_rank)
def low_rank(gradient: Tensor, memory: dict, group: Group = None, rank: int = 2) -> tuple[Tensor, Tensor]:
    """The mean's approximation by a product of two thin matrices, P [rows, rank] and Q [columns, rank]: one
    step of a power iteration, which goes on from the Q of the step before (in `memory`).

    Sends 2r (rows + columns) rank numbers; a vector, or a matrix that is no larger, goes whole. All ranks
    have the same P and Q: what was said is taken to be the mean itself.
    """
    matrix = gradient.flatten(1) if gradient.ndim > 1 else gradient
    if gradient.ndim < 2 or rank * sum(matrix.shape) >= matrix.numel():
        mean = averaged(gradient.clone(), group)
        return mean, gradient
    if "Q" not in memory:  # the same on all ranks, whatever their seeds
        draw = torch.Generator().manual_seed(0)
        memory["Q"] = torch.randn(matrix.shape[1], rank, generator=draw).to(gradient)
    p = averaged(matrix @ memory["Q"], group)
    p = torch.linalg.qr(p).Q  # columns of length 1, at right angles
    memory["Q"] = averaged(matrix.T @ p, group)
    mean = (p @ memory["Q"].T).view_as(gradient)
    return mean, mean


def averaged(tensor: Tensor, group: Group) -> Tensor:
    """The mean over the ranks, in place."""
    dist.all_reduce(tensor, group=group)
    return tensor.div_(dist.get_world_size(group))


def gathered(tensor: Tensor, group: Group) -> Tensor:
    """[n, ...]: the tensors of all ranks, which have one shape."""
    every = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    dist.all_gather_into_tensor(every.view(-1), tensor.contiguous().view(-1), group=group)
    return every


def packed(bits: Tensor) -> Tensor:
    """bool [numel] as uint8 [ceil(numel / 8)], eight in a byte."""
    eights = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def signs(eights: Tensor, like: Tensor) -> Tensor:
    """uint8 [ceil(numel / 8)] as +1 and -1, in the form of `like` [numel]."""
    bits = (eights[:, None] >> torch.arange(8, dtype=torch.uint8, device=eights.device)) & 1
    return bits.flatten()[: like.numel()].to(like) * 2 - 1
