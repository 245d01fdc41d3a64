"""Tensor parallelism: one layer's weights are cut over the ranks, and each rank works out its part of every
product, for the same data.

A matrix can be cut two ways. Here y = x W, where nn.Linear keeps W transposed:

    by columns   every rank needs all of x and gets its own columns of y                nothing to send
    forward
    by rows      every rank needs its own columns of x and gets an addend of all of y   the addends are
    summed: one all_reduce

So a layer cut by columns hands over exactly what a layer cut by rows wants, as long as what stands between
them works on each element alone (GELU) or on each head alone (attention). Such a pair communicates only where
it is entered and where it is left, by the operators f and g
of tensor_operators.py: one all_reduce forward (g) and one backward (f). A transformer block has two pairs,
attention and MLP; so it has two all_reduces forward and two backward, whatever the number of ranks.

Sequence parallelism: between pairs (norms, dropout, residual sums) all ranks do the same work on the same x.
Instead each can keep a slice
of the tokens. Then f and g are an all_gather and a reduce_scatter, the two halves of an all_reduce: the bytes
are the same, and what norms and residual sums keep for backward is cut too. (A pair still keeps its gathered
input whole, for the gradients of its weights. Megatron keeps the slice and gathers once more in backward.)

Sources: Shoeybi et al. 2019, "Megatron-LM", section 3; Korthikanti et al. 2022, "Reducing activation
    recomputation in large transformer models", section 4.2.2.
"""

import copy
from collections import OrderedDict
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import instance, number, process_group, whole
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel.operators import (
    Group,
    ReduceScatter,
    Region,
    all_slices,
    copy_to_group,
    gather_from_group,
    reduce_from_group,
    reduce_scatter_to_group,
    share,
)
from course_lib.models import MLP, Attention, Block, TinyGPT

__all__ = [
    "parallelize",
    "gather_full",
    "copy_to_group",
    "reduce_from_group",
    "gather_from_group",
    "reduce_scatter_to_group",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "ParallelAttention",
    "VocabParallelEmbedding",
    "vocab_parallel_cross_entropy",
    "ShardedDropout",
    "Region",
]


def parallelize(
    model: nn.Module,
    group: Group = None,
    sequence_parallel: bool = False,
    *,
    reduce_scatter: ReduceScatter | None = None,
) -> nn.Module:
    """Return a copy of `model` in which this rank holds 1/n of every weight matrix; every rank of the group
    must call this.

    All ranks start from the weights of the group's first rank. `model` stays as it is; drop it to free its
    memory. Names of parameters stay too; biases of row layers, norms and positions are whole on every rank.
    After backward every gradient is right as it is: a slice of one process's, or, where the parameter is
    whole, the same on all ranks. (But a norm over all of them, for clipping, is not: a rank sees slices.)

    Args:
        model: TinyGPT, a Block, an Attention, an MLP, or nn.Sequential(Linear, activation, Linear). All ranks
            must call it with the same data.
            TinyGPT takes tokens and returns the loss, as ever. The number of ranks must divide heads, hidden
            width and vocabulary.
        group: the ranks over which to cut; None for all. For data parallelism over the other axis of a mesh,
            wrap the result in mini.ddp.
        sequence_parallel: cut the tokens too, where tensors are not cut by features. A Block or a Sequential
            then takes and returns this rank's
            slice [batch, time / n, dim] of its input (n must divide the time); TinyGPT still takes all
            tokens.
        reduce_scatter: a function (output, input, group) for sequence_parallel; None for torch's own (on gloo
            it sends twice as much as it
            need; mini.ring's does not).

    Errors: ValueError where the number of ranks does not divide what must be cut, or a weight is used in two
        places; TypeError for a model it
        cannot cut.
    """
    instance("model", model, nn.Module)
    region = Region(group, sequence_parallel, reduce_scatter)
    refuse.shared_weights(model)
    return _cut(_as_on_first_rank(model, group), region)


@torch.no_grad()
def _as_on_first_rank(model: nn.Module, group: Group) -> nn.Module:
    """A copy with the weights of the group's first rank: slices of other weights on each rank would be no
    model at all.
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        dense = parameter.contiguous()
        dist.broadcast(dense, group_src=0, group=group)
        parameter.copy_(dense)
    return model


def gather_full(model: nn.Module, group: Group = None, grads: bool = False) -> dict[str, Tensor]:
    """Put every parameter (or gradient) of a parallelized model together again, by name: what one process
    would have.

    Every rank of the group must call this. The names are those of the model that was cut, so that one can
    load it.
    """
    instance("model", model, nn.Module), process_group("group", group)
    full = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor, dim = (
                parameter.grad if grads else parameter.detach(),
                getattr(module, "cut_dims", {}).get(name),
            )
            full[f"{prefix}.{name}".removeprefix(".")] = (
                tensor if dim is None or tensor is None else all_slices(tensor, group, dim)
            )
    return full


# The layers


class _ParallelLinear(nn.Module):
    """A slice of an nn.Linear, cut along `cut_dims` of its parameters."""

    cut_dims: ClassVar[dict[str, int]]

    def __init__(self, linear: nn.Linear, region: Region = Region()) -> None:
        super().__init__()
        self.region = instance("region", region, Region)
        refuse.other_than_plain("linear", linear, nn.Linear)
        self.weight = _slice(linear.weight, self.cut_dims["weight"], region.group)
        self.bias = (
            None if linear.bias is None else _slice(linear.bias, self.cut_dims.get("bias"), region.group)
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, group: Group = None, sequence_parallel: bool = False) -> Self:
        """Take this rank's slice of a full layer, with the weights of the group's first rank; every rank of
        the group must call this.
        """
        instance("linear", linear, nn.Linear)
        return cls(_as_on_first_rank(linear, group), Region(group, sequence_parallel))

    def extra_repr(self) -> str:
        return f"weight {list(self.weight.shape)}, one of {dist.get_world_size(self.region.group)}"


class ColumnParallelLinear(_ParallelLinear):
    """Each rank works out its own features of the output: [..., in_features] in, [..., out_features / n] out.

    Args:
        linear: the full layer. Its weight [out_features, in_features] and bias [out_features] are both cut
            along dimension 0.
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


class RowParallelLinear(_ParallelLinear):
    """Each rank works out an addend of the output, from its own features of the input: [..., in_features / n]
    in, [..., out_features] out.

    The weight [out_features, in_features] is cut along dimension 1. The bias is whole on every rank and added
    after the sum: before, it would count n times.
    """

    cut_dims = {"weight": 1}

    def forward(self, x: Tensor) -> Tensor:
        y = self.region.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.region.outside(self.bias)


class ParallelAttention(Attention):
    """Attention in which each rank has heads / n of the heads: their rows of q, k and v, and their columns of
    `out`.
    """

    def __init__(self, attention: Attention, region: Region = Region()) -> None:
        nn.Module.__init__(self)
        refuse.other_than_plain("attention", attention, Attention), instance("region", region, Region)
        share(attention.q.out_features // attention.head_dim, "heads", region.group)
        self.head_dim, self.region = attention.head_dim, region
        self.q, self.k, self.v = (
            ColumnParallelLinear(linear, region, enters=False)
            for linear in (attention.q, attention.k, attention.v)
        )
        self.out = RowParallelLinear(attention.out, region)

    def forward(self, x: Tensor) -> Tensor:
        # f once for q, k and v: three would cost three all_reduces backward
        return super().forward(self.region.enter(x))


class VocabParallelEmbedding(nn.Module):
    """An embedding of which each rank holds the rows of its own tokens: [batch, time] in, [batch, time, dim]
    out.

    A rank that has not got a token's row adds zeros, and g sums.
    """

    cut_dims = {"weight": 0}

    def __init__(self, embedding: nn.Embedding, region: Region = Region()) -> None:
        super().__init__()
        self.region = instance("region", region, Region)
        refuse.other_than_plain("embedding", embedding, nn.Embedding)
        share(embedding.num_embeddings, "tokens of the vocabulary", region.group)
        self.weight = _slice(embedding.weight, 0, region.group)  # [vocab_size / n, dim]

    def forward(self, tokens: Tensor) -> Tensor:
        rows, elsewhere = _own_rows(tokens, len(self.weight), self.region.group)
        return self.region.leave(F.embedding(rows, self.weight).masked_fill(elsewhere[..., None], 0.0))


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, group: Group = None) -> Tensor:
    """Return the mean cross-entropy loss, the same on every rank, from logits that stay where they are.

    Three numbers per token travel, not vocab_size: the largest logit, the sum of exponentials, and the
    target's logit. Every rank must call this.

    Args:
        logits: this rank's scores [..., vocab_size / n], rank r's being tokens r vocab_size / n and up.
        targets: int64 [...], tokens of the whole vocabulary, the same on every rank. Those that are -100 do
            not count, as in F.cross_entropy.

    Errors: torch's own, for any other target outside of the vocabulary.
    """
    instance("logits", logits, Tensor), instance("targets", targets, Tensor), process_group("group", group)
    if targets.dtype != torch.int64 or logits.shape[:-1] != targets.shape or not logits.is_floating_point():
        raise ValueError(
            f"logits {logits.dtype} {list(logits.shape)} and targets {targets.dtype} {list(targets.shape)}:"
            " they must be floating point [..., vocab_size / n] and int64 [...]."
        )
    largest = logits.detach().amax(-1)  # [...]; it cancels out, but keeps exp from overflowing
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    shifted, ignored = logits - largest[..., None], targets == -100
    rows, elsewhere = _own_rows(targets.masked_fill(ignored, 0), logits.shape[-1], group)
    of_target = shifted.gather(-1, rows[..., None]).squeeze(-1).masked_fill(elsewhere, 0.0)
    sum_dtype = torch.promote_types(logits.dtype, torch.float32)  # float16 ends at 65504
    exp_sum, of_target = reduce_from_group(
        torch.stack([shifted.exp().sum(-1, dtype=sum_dtype), of_target.to(sum_dtype)]), group
    )
    return (exp_sum.log() - of_target).masked_fill(ignored, 0.0).sum() / (~ignored).sum()


class ShardedDropout(nn.Dropout):
    """Dropout for activations of which each rank holds other elements: every rank draws a mask of its own.

    With nn.Dropout and one seed on all ranks, feature i of every rank would be dropped together. Where all
    ranks hold the same activations (after a row layer, without sequence parallelism) it is the other way
    round: nn.Dropout, one seed for all, or the ranks' copies differ.

    Args:
        p: the probability of dropping an element.
        group: the ranks that hold parts of one activation; None for all.
        seed: of a random generator that only this module uses, so that the ranks' common one stays in step;
            to it the rank is added. None: a
            number from the common one.
    """

    def __init__(self, p: float = 0.5, group: Group = None, seed: int | None = None) -> None:
        if number("p", p) > 1:
            raise ValueError(f"p={p}: it must be a number from 0 to 1.")
        super().__init__(p)
        process_group("group", group), whole("seed", 0 if seed is None else seed, least=0)
        seed = int(torch.randint(2**48, (), device="cpu")) if seed is None else seed
        self.generator = torch.Generator(torch.get_default_device()).manual_seed(seed + dist.get_rank(group))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept / (1 - self.p)


class _SequenceParallelNorm(nn.Module):
    """LayerNorm of this rank's tokens, under sequence parallelism; the gradients of its parameters are summed
    over the ranks.
    """

    def __init__(self, norm: nn.LayerNorm, region: Region) -> None:
        super().__init__()
        refuse.other_than_plain("norm", norm, nn.LayerNorm)
        self.region, self.normalized_shape, self.eps, self.weight, self.bias = (
            region,
            norm.normalized_shape,
            norm.eps,
            norm.weight,
            norm.bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else self.region.outside(p) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class _ParallelGPT(TinyGPT):
    """TinyGPT, cut: the same forward, but `logits` returns this rank's [batch, time, vocab_size / n]."""

    def __init__(self, model: TinyGPT, region: Region) -> None:
        nn.Module.__init__(self)
        refuse.other_than_plain("model", model, TinyGPT)
        self.region = region
        self.embedding, self.position = VocabParallelEmbedding(model.embedding, region), model.position
        self.blocks = nn.ModuleList(_cut(block, region) for block in model.blocks)
        self.norm, self.head = _cut(model.norm, region), ColumnParallelLinear(model.head, region)
        if model.head.weight is model.embedding.weight:
            self.head.weight = self.embedding.weight  # both are cut by rows: the same rows

    def embed(self, tokens: Tensor) -> Tensor:
        times = torch.arange(tokens.shape[1], device=tokens.device)
        if self.region.sequence_parallel:
            times = times[_bounds(len(times), "tokens", self.region.group)]
        return self.embedding(tokens) + F.embedding(times, self.region.outside(self.position.weight))

    def forward(self, tokens: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy(self.logits(tokens[:, :-1]), tokens[:, 1:], self.region.group)


# How a model is cut

_ELEMENTWISE = nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity


def _cut(model: nn.Module, region: Region) -> nn.Module:
    """Cut a model that may be changed."""
    match model:
        case TinyGPT():
            return _ParallelGPT(model, region)
        case Attention():
            return ParallelAttention(model, region)
        case nn.Sequential():
            return _cut_pairs(model, region)
        case MLP():
            model.layers = _cut_pairs(model.layers, region)
        case Block():
            for name, module in model.named_children():
                setattr(model, name, _cut(module, region))
        case nn.LayerNorm():
            return _SequenceParallelNorm(model, region) if region.sequence_parallel else model
        case _:
            raise TypeError(
                f"cannot cut a {type(model).__name__}: it must be a TinyGPT, Block, Attention, MLP, or "
                "nn.Sequential(Linear, activation, Linear)."
            )
    return model


def _cut_pairs(layers: nn.Sequential, region: Region) -> nn.Sequential:
    """The first Linear by columns, the second by rows, and so on."""
    refuse.other_than_plain("layers", layers, nn.Sequential)
    if sum(isinstance(layer, nn.Linear) for layer in layers) % 2:
        raise ValueError(
            "an odd number of Linear layers: they are cut in pairs, the first by columns and the second by"
            " rows."
        )
    inside, result = False, OrderedDict()
    # named_children() would leave out an activation that stands there twice
    for name, layer in layers._modules.items():
        if isinstance(layer, nn.Linear):
            layer = (RowParallelLinear if inside else ColumnParallelLinear)(layer, region)
            inside = not inside
        elif isinstance(layer, nn.Dropout):
            layer = ShardedDropout(layer.p, region.group) if inside or region.sequence_parallel else layer
        elif isinstance(layer, nn.LayerNorm) and not inside:
            layer = _cut(layer, region)
        elif not isinstance(layer, _ELEMENTWISE):
            raise TypeError(
                f"cannot cut a {type(layer).__name__}"
                f" {'between the two Linear layers of a pair' if inside else 'beside pairs'}: only"
                f" {', '.join(kind.__name__ for kind in _ELEMENTWISE)} and Dropout are known to need no"
                " features of other ranks."
            )
        result[name] = layer
    return nn.Sequential(result)


def _slice(full: nn.Parameter, dim: int | None, group: Group) -> nn.Parameter:
    """This rank's slice (None: all of it). A copy: a view would keep the whole tensor in memory."""
    part = (
        full.detach()
        if dim is None
        else full.detach().movedim(dim, 0)[_bounds(full.shape[dim], "features", group)].movedim(0, dim)
    )
    return nn.Parameter(part.clone(memory_format=torch.contiguous_format), full.requires_grad)


def _bounds(count: int, what: str, group: Group) -> slice:
    """Which of `count` things are this rank's."""
    width, rank = share(count, what, group), dist.get_rank(group)
    return slice(rank * width, (rank + 1) * width)


def _own_rows(tokens: Tensor, width: int, group: Group) -> tuple[Tensor, Tensor]:
    """Each token's row in this rank's slice of the vocabulary (0 where another rank has it), and where
    another rank has it.

    A token that no rank has keeps a row that does not exist: so the lookup fails on every rank, as it would
    in one process.
    """
    rows = tokens - dist.get_rank(group) * width
    exists = (tokens >= 0) & (tokens < dist.get_world_size(group) * width)
    elsewhere = exists & ((rows < 0) | (rows >= width))
    return rows.masked_fill(elsewhere, 0), elsewhere
