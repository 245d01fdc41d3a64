"""Tensor parallelism: one layer's weights are cut over the ranks, and each rank works out its part of every
product, for the same data.

A matrix can be cut two ways. Here y = x W, where nn.Linear keeps W transposed:

    by columns   needs all of x, makes its own columns of y                nothing to send forward
    by rows      needs its own columns of x, makes an addend of all of y   the sum is one all_reduce

So a layer cut by columns hands over exactly what a layer cut by rows wants, as long as what stands between
them works on each element alone (GELU) or on each head alone (attention). Such a pair communicates only where
it is entered and where it is left, by the operators f and g of operators.py: one all_reduce forward (g) and
one backward (f). A transformer block has two pairs, attention and MLP; so it has two all_reduces forward and
two backward, whatever the number of ranks.

Beside: what is done with which part of a model (plans.py), the vocabulary and its loss (vocabulary.py), and
what is cut by tokens, under sequence parallelism (sequence.py).

Sources: Shoeybi et al. 2019, "Megatron-LM", section 3; Korthikanti et al. 2022, "Reducing activation
    recomputation in large transformer models", section 4.2.2.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import takes
from course_lib.mini.tensor_parallel import operators, plans, sequence, slices, vocabulary
from course_lib.mini.tensor_parallel.operators import *  # noqa: F403 (f, g, and Region)
from course_lib.mini.tensor_parallel.operators import Group, ReduceScatter, Region
from course_lib.mini.tensor_parallel.sequence import ShardedDropout
from course_lib.mini.tensor_parallel.slices import SlicedLinear, gather_full
from course_lib.mini.tensor_parallel.vocabulary import VocabParallelEmbedding, vocab_parallel_cross_entropy

__all__ = ["parallelize", "gather_full", "ColumnParallelLinear", "RowParallelLinear", "ShardedDropout"]
__all__ += ["VocabParallelEmbedding", "vocab_parallel_cross_entropy", *operators.__all__]


class ColumnParallelLinear(SlicedLinear):
    """Each rank works out its own features of the output: [..., in_features] in, [..., out_features / n] out.

    Args:
        linear: the full layer. Its weight [out_features, in_features] and bias are both cut along dim 0.
        region: where it is the entry to.
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


# What becomes of a part of a model, by the word that its plan has for it.
WORDS = {
    "column": ColumnParallelLinear,
    "row": RowParallelLinear,
    "heads": partial(ColumnParallelLinear, enters=False),
    "vocab": vocabulary.cut,
    "whole": sequence.for_own_tokens,
    "features": sequence.for_own_features,
}


@takes(model=nn.Module)
def parallelize(
    model: nn.Module,
    group: Group = None,
    sequence_parallel: bool = False,
    *,
    reduce_scatter: ReduceScatter | None = None,
) -> nn.Module:
    """Return a copy of `model` in which this rank holds 1/n of every weight matrix; every rank of the group
    must call this, with weights that may differ: all start from those of the group's first rank.

    `model` stays as it is; drop it to free its memory. Names of parameters stay too; biases of row layers,
    norms and positions are whole. After backward every gradient is right: a slice of one process's, or of a
    whole parameter the same on all ranks. (A norm over all, for clipping, is not: a rank sees slices.)

    Args:
        model: one that says by its `tensor_parallel_plan` how it is cut (plans.py), as TinyGPT, Block,
            Attention and MLP; or nn.Sequential(Linear, activation, Linear). Use it with the same data on all
            ranks. Their number must divide heads, hidden width and vocabulary.
        group: the ranks over which to cut; None for all. For data parallelism over the other axis of a mesh,
            wrap the result in mini.ddp.
        sequence_parallel: cut the tokens too, where tensors are not cut by features. A Block or a Sequential
            then takes and returns this rank's slice [batch, time / n, dim] of its input (n must divide the
            time); TinyGPT still takes all tokens.
        reduce_scatter: a function (output, input, group) for sequence_parallel; None for torch's own (on gloo
            it sends twice as much as it need; mini.ring's does not).

    Errors: ValueError where the number of ranks does not divide what must be cut, or a weight is used in two
        places that are cut differently; TypeError for a model that does not say how it is cut.
    """
    region = Region(group, sequence_parallel, reduce_scatter)
    return slices.retie(plans.cut(slices.as_on_first_rank(model, group), region, WORDS), model)
