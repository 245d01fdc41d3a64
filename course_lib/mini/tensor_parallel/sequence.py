"""What stands between pairs: whole on every rank; under sequence parallelism, for this rank's tokens alone.

Between pairs (norms, dropout, residual sums) all ranks do the same work on the same x. Instead each can keep
a slice of the tokens. Then f and g are an all_gather and a reduce_scatter, the two halves of an all_reduce:
the bytes are the same, and what norms and residual sums keep for backward is cut too. (A pair still keeps its
gathered input whole, for the gradients of its weights. Megatron keeps the slice and gathers once more in
backward.) Each rank uses the same norms for other tokens, so their gradients are summed (`Region.outside`);
and dropout needs a mask of its own on every rank.

Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", section
    4.2.2.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import number, process_group, takes, whole
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel.operators import Group, Region
from course_lib.mini.tensor_parallel.slices import own

__all__ = ["ShardedDropout", "for_own_tokens", "for_own_features"]


def for_own_tokens(layer: nn.Module, region: Region) -> nn.Module:
    """Return what a layer becomes that is whole on every rank: the same, but under sequence parallelism."""
    if not region.sequence_parallel:
        return layer
    if isinstance(layer, nn.Dropout):
        return ShardedDropout(layer.p, region.group)
    return (OwnPositions if isinstance(layer, nn.Embedding) else OwnNorm)(layer, region)


def for_own_features(dropout: nn.Dropout, region: Region) -> nn.Module:
    """Return the dropout for features that are cut: inside of a region."""
    return ShardedDropout(dropout.p, region.group)


class OwnNorm(nn.Module):
    """LayerNorm of this rank's tokens: [..., time / n, dim] in and out."""

    def __init__(self, norm: nn.LayerNorm, region: Region) -> None:
        super().__init__()
        refuse.other_than_plain("norm", norm, nn.LayerNorm)
        self.region, self.normalized_shape, self.eps = region, norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else self.region.outside(p) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class OwnPositions(nn.Module):
    """An embedding of positions, which all ranks are given: [..., time] in, [..., time / n, dim] out."""

    def __init__(self, embedding: nn.Embedding, region: Region) -> None:
        super().__init__()
        refuse.other_than_plain("embedding", embedding, nn.Embedding)
        self.region, self.weight, self.num_embeddings = region, embedding.weight, embedding.num_embeddings

    def forward(self, positions: Tensor) -> Tensor:
        mine = positions[..., own(positions.shape[-1], "tokens", self.region.group)]
        return F.embedding(mine, self.region.outside(self.weight))


class ShardedDropout(nn.Dropout):
    """Dropout for activations of which each rank holds other elements: every rank draws a mask of its own.

    With nn.Dropout and one seed on all ranks, feature i of every rank would be dropped together. Where all
    ranks hold the same activations (after a row layer, without sequence parallelism) it is the other way
    round: nn.Dropout, one seed for all, or the ranks' copies differ.

    Args:
        p: the probability of dropping an element.
        group: the ranks that hold parts of one activation; None for all.
        seed: of a random generator that only this module uses, so that the ranks' common one stays in step;
            to it the rank is added. None: a number from the common one.
    """

    @takes(p=number, group=process_group)
    def __init__(self, p: float = 0.5, group: Group = None, seed: int | None = None) -> None:
        super().__init__(refuse.other_probabilities(p))
        seed = int(torch.randint(2**48, (), device="cpu")) if seed is None else whole("seed", seed, least=0)
        self.generator = torch.Generator(torch.get_default_device()).manual_seed(seed + dist.get_rank(group))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept / (1 - self.p)
