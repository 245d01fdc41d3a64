"""Tensor parallelism: one layer's weights are cut over the ranks, and each rank works out its part of every
product, for the same data.

A matrix can be cut two ways. Here y = x W, where nn.Linear keeps W transposed:

    by columns   needs all of x, makes its own columns of y                nothing to send forward
    by rows      needs its own columns of x, makes an addend of all of y   the sum is one all_reduce

So a layer cut by columns hands over exactly what a layer cut by rows wants, as long as what stands between
them works on each element alone (GELU) or on each head alone (attention). Such a pair communicates only where
it is entered and where it is left, by two operators. Each has a function for forward and another for
backward, and the two together are what the chain rule asks for:

                             forward          backward
    f   copy_to_group        x itself         all_reduce       each rank's part adds to the gradient of x
    g   reduce_from_group    all_reduce       gradient itself  a sum hands it on to every addend

A transformer block has two pairs, attention and MLP; so it has two all_reduces forward and two backward,
whatever the number of ranks.

Beside: `plans` (parallelize: what is done with which part of a model), `slices` of parameters, the
`vocabulary` and its loss; `operators` (f and g, and their `Region`) and `sequence` for sequence parallelism;
`pieces` (products under which messages travel); `refusals` (what a cut would lose).

Source: Shoeybi et al. 2019, "Megatron-LM", section 3.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import process_group, takes
from course_lib.mini.tensor_parallel.operators import Region, gather_from_group, reduce_scatter_to_group
from course_lib.mini.tensor_parallel.plans import parallelize
from course_lib.mini.tensor_parallel.sequence import ShardedDropout
from course_lib.mini.tensor_parallel.slices import SlicedLinear, gather_full
from course_lib.mini.tensor_parallel.vocabulary import VocabParallelEmbedding, vocab_parallel_cross_entropy

__all__ = ["parallelize", "gather_full", "ColumnParallelLinear", "RowParallelLinear", "ShardedDropout"]
__all__ += ["VocabParallelEmbedding", "vocab_parallel_cross_entropy"]
__all__ += ["copy_to_group", "reduce_from_group", "gather_from_group", "reduce_scatter_to_group", "Region"]


@takes(x=Tensor, group=process_group)
def copy_to_group(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """f: forward x itself; backward the sum of its gradient over the ranks. For what all ranks have the same,
    and each uses differently. All ranks of the group must call it together, and run the same backward.
    """
    return Operator.apply(x, lambda x: x.view_as(x), lambda grad: _sum(grad, group))


@takes(x=Tensor, group=process_group)
def reduce_from_group(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """g: forward the sum of x over the ranks; backward the gradient itself. Every rank must call this."""
    return Operator.apply(x, lambda x: _sum(x, group), lambda grad: grad)


class Operator(torch.autograd.Function):
    """A function of a tensor whose backward is another function: apply(x, forward, backward)."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.of_gradient = backward
        return forward(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.of_gradient(grad), None, None


def _sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)  # not in place: autograd may still need x
    dist.all_reduce(total, group=group)
    return total


class ColumnParallelLinear(SlicedLinear):
    """Each rank works out its own features of the output: [..., in_features] in, [..., out_features / n] out.

    Args:
        linear: the full layer. Its weight [out_features, in_features] and bias are both cut along dim 0.
        region: its group, and what `enter` and `leave` are: f and g (or theirs of sequence parallelism).
        enters: whether to apply f to the input. Layers that share an input (queries, keys, values) share one
            f too: False, for all of them.
    """

    cut_dims = {"weight": 0, "bias": 0}

    def __init__(self, linear: nn.Linear, region: Region = Region(), enters: bool = True) -> None:
        super().__init__(linear, region)
        self.enters = enters

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.region.enter(x) if self.enters else x, self.weight, self.bias)


class RowParallelLinear(SlicedLinear):
    """Each rank works out an addend of the output, from its own features of the input: [..., in_features / n]
    in, [..., out_features] out.

    The weight [out_features, in_features] is cut along dim 1. The bias is whole on every rank and added after
    the sum: before, it would count n times.
    """

    cut_dims = {"weight": 1}

    def forward(self, x: Tensor) -> Tensor:
        y = self.region.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.region.outside(self.bias)
