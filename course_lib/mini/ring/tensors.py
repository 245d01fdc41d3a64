"""What the ring asks of tensors: flat memory that can be sent, and one chunk for each rank."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from course_lib import torch_internals
from course_lib.arguments import dense

__all__ = ["flat_of", "chunks_of", "write_back"]

Group = dist.ProcessGroup | None


def flat_of(tensor: Tensor, group: Group) -> Tensor:
    """The tensor as [numel] in memory that can be sent: its own if it is contiguous, else a copy. (gloo sends
    from the CPU's memory only.)
    """
    if tensor.is_cuda and not torch_internals.uses_nccl(group):
        tensor = tensor.cpu()
    return tensor.contiguous().view(-1)


def chunks_of(
    full: Tensor | Sequence[Tensor], part: Tensor, group: Group
) -> tuple[list[Tensor], list[Tensor]]:
    """A full tensor or list, flat, and its n chunks, after a look at whether `part` fits chunk number `rank`.

    Errors: ValueError where sizes or dtypes do not match.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if isinstance(full, Tensor):
        if full.numel() != size * part.numel():
            raise ValueError(
                f"the full tensor has {full.numel()} elements; it must have {size} (ranks) times"
                f" {part.numel()}."
            )
        flats = [flat_of(dense("the full tensor", full), group)]
        chunks = list(flats[0].view(size, part.numel()))
    else:
        if (
            not isinstance(full, Sequence)
            or len(full) != size
            or not all(isinstance(chunk, Tensor) for chunk in full)
            or full[rank].numel() != part.numel()
        ):
            raise ValueError(
                f"the list must have {size} chunks, one for each rank, and number {rank} must have"
                f" {part.numel()} elements."
            )
        flats = chunks = [flat_of(dense("each of the list", chunk), group) for chunk in full]
    if dtypes := {chunk.dtype for chunk in chunks} - {part.dtype}:
        raise ValueError(
            f"all tensors must have one dtype, not {part.dtype} and {', '.join(map(str, dtypes))}."
        )
    return flats, chunks


def write_back(flats: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy what stands in flat copies to the tensors that they were made of."""
    for flat, tensor in zip(flats, tensors):
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view_as(tensor))
