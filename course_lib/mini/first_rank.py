"""All ranks start alike: where every kind of data parallelism, and every cut of a model, begins."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["copy_from_first_rank"]


@torch.no_grad()
def copy_from_first_rank(tensors: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Give every rank what the group's first rank has, in place: a broadcast for each tensor.

    Every rank of the group must call this, with tensors of the same shapes and dtypes.
    """
    for tensor in tensors:
        contiguous = tensor.contiguous()
        dist.broadcast(contiguous, group_src=0, group=group)
        # .data: autograd need not know. (A BatchNorm's forward before this one has kept its running means.)
        tensor.data.copy_(contiguous)
