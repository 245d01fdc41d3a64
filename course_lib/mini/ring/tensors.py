"""What the ring asks of tensors: flat memory that can be sent, and one chunk for each rank."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from course_lib import torch_internals
from course_lib.arguments import fits
from course_lib.mini.ring import refusals as refuse

__all__ = ["flat_of", "chunks_of", "write_back"]

Group = dist.ProcessGroup | None


def flat_of(tensor: Tensor, group: Group) -> Tensor:
    """The tensor as [numel] in memory that can be sent: its own if it is contiguous, else a copy. (gloo sends
    from the CPU's memory only.)
    """
    if tensor.is_cuda and not torch_internals.uses_nccl(group):
        tensor = tensor.cpu()
    return tensor.contiguous().view(-1)


@fits(refuse.other_sizes)
def chunks_of(
    full: Tensor | Sequence[Tensor], part: Tensor, group: Group
) -> tuple[list[Tensor], list[Tensor]]:
    """A full tensor or list, flat, and its n chunks, of which `part` fits number `rank`.

    Errors: ValueError where sizes or dtypes do not match.
    """
    if isinstance(full, Tensor):
        flats = [flat_of(full, group)]
        return flats, list(flats[0].view(dist.get_world_size(group), part.numel()))
    flats = [flat_of(chunk, group) for chunk in full]
    return flats, flats


def write_back(flats: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy what stands in flat copies to the tensors that they were made of."""
    for flat, tensor in zip(flats, tensors):
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view_as(tensor))
