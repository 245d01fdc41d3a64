"""The all_to_all of rows, forward and backward: what a rank has sent it gets the gradients of, on the way
back.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["exchange", "exchange_sizes", "Group"]

Group = dist.ProcessGroup | None


def exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Group = None) -> Tensor:
    """Send the first sent[0] rows of x to rank 0, the next sent[1] to rank 1, and so on; return the rows that
    came, rank by rank: [sum(received), ...]. Every rank of the group must call this, and run its backward.
    """
    return _Exchange.apply(x, sent, received, group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sent, received, group):
        ctx.way_back = received, sent, group
        rows = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(rows, x.contiguous(), received, sent, group=group)
        return rows

    @staticmethod
    def backward(ctx, grad):
        return _Exchange.apply(grad, *ctx.way_back), None, None, None


def exchange_sizes(leaving: Tensor, group: Group = None) -> Tensor:
    """Tell each rank how many rows come for each of its experts: int64 [E] in, [n, E / n] out, a row for each
    rank that sends. Every rank of the group must call this.
    """
    coming = torch.empty_like(leaving)
    dist.all_to_all_single(coming, leaving, group=group)
    return coming.view(dist.get_world_size(group), -1)
