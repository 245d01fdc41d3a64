"""What mini.ring refuses: tensors whose sizes or dtypes do not match, each in one sentence."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import dense

__all__ = ["other_sizes"]


def other_sizes(full: Tensor | Sequence[Tensor], part: Tensor, group: dist.ProcessGroup | None) -> None:
    """A part is chunk number `rank` of a full tensor, or of a list with one chunk for each rank."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if isinstance(full, Tensor):
        if full.numel() != size * part.numel():
            raise ValueError(
                f"the full tensor has {full.numel()} elements; it must have {size} (ranks) times"
                f" {part.numel()}."
            )
        chunks = [dense("the full tensor", full)]
    else:
        is_list = isinstance(full, Sequence) and len(full) == size
        if (
            not is_list
            or not all(isinstance(chunk, Tensor) for chunk in full)
            or full[rank].numel() != part.numel()
        ):
            raise ValueError(
                f"the list must have {size} chunks, one for each rank, and number {rank} must have"
                f" {part.numel()} elements."
            )
        chunks = [dense("each of the list", chunk) for chunk in full]
    if dtypes := {chunk.dtype for chunk in chunks} - {part.dtype}:
        raise ValueError(
            f"all tensors must have one dtype, not {part.dtype} and {', '.join(map(str, dtypes))}."
        )
