"""Ulysses: from some tokens of all heads to all tokens of some heads, and back.

Heads know nothing of each other. So before attention, each rank gives each other one that one's share of the
heads, of its own tokens: an all_to_all. Then it has the whole sequence, of heads / n heads, and calls any
attention that there is. A second all_to_all brings the outputs back.

              each rank has                 to rank i goes
    before    own tokens of all heads       heads i of its own tokens        for q, k and v
    after     all tokens of heads / n       the tokens of rank i             for the output

The backward of an all_to_all is the other one. A rank sends (n-1)/n of what it has, and that is one n-th of
everything: the more ranks, the less each sends. But there can be no more ranks than heads of keys.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from course_lib.arguments import fits, process_group, takes
from course_lib.mini.context import refusals as refuse
from course_lib.mini.context.order import Group, Plan

__all__ = ["ulysses_attention"]


@takes(q=refuse.other_shapes, k=refuse.other_shapes, v=refuse.other_shapes, causal=bool)
@takes(order=refuse.other_orders, process_group=process_group)
@fits(refuse.other_tokens)
@fits(refuse.too_few_heads)
def ulysses_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    order: str = "zigzag",
    time: int | None = None,
    process_group: Group = None,
) -> Tensor:
    """Attend from this rank's queries to the keys of all ranks; every rank of the group must call this.

    Args: as those of `ring_attention`. The number of ranks must divide the heads of q, and those of k.

    Returns:
        As q. Gradients flow to q, k and v; each rank must run backward.
    """
    plan = Plan.of(q, causal, order, time, process_group)
    shares = zip(*(x.chunk(plan.size, 1) for x in (q, k, v)))  # what goes to each rank
    heads = [x.shape[1] // plan.size for x in (q, k, v)]
    all_three = _Swap.apply(torch.cat([part for share in shares for part in share], 1), plan, to_heads)
    out = F.scaled_dot_product_attention(
        *all_three.split(heads, 1), is_causal=causal, enable_gqa=heads[0] != heads[1]
    )
    return _Swap.apply(out, plan, to_tokens)


class _Swap(torch.autograd.Function):
    """One of the two below, whose backward is the other."""

    @staticmethod
    def forward(ctx, x, plan, swap):
        ctx.plan, ctx.back = plan, to_tokens if swap is to_heads else to_heads
        return swap(x, plan)

    @staticmethod
    def backward(ctx, grad):
        return ctx.back(grad, ctx.plan), None, None


def to_heads(x: Tensor, plan: Plan) -> Tensor:
    """[batch, heads, own tokens, head_dim] in, [batch, heads / n, time, head_dim] out, in order of time."""
    batch, heads, _, dim = x.shape
    shapes = [(batch, heads // plan.size, plan.tokens(rank), dim) for rank in range(plan.size)]
    parts = _all_to_all(x.chunk(plan.size, 1), shapes, plan.group)
    gathered = torch.cat(parts, 2)
    return torch.empty_like(gathered).index_copy_(2, plan.in_order(x.device), gathered)


def to_tokens(x: Tensor, plan: Plan) -> Tensor:
    """[batch, heads / n, time, head_dim] in, [batch, heads, own tokens, head_dim] out."""
    batch, heads, _, dim = x.shape
    lengths = [plan.tokens(rank) for rank in range(plan.size)]
    parts = x[:, :, plan.in_order(x.device)].split(lengths, 2)
    shapes = [(batch, heads, lengths[plan.rank], dim)] * plan.size
    return torch.cat(_all_to_all(parts, shapes, plan.group), 1)


def _all_to_all(parts, shapes: list[tuple[int, ...]], group: Group) -> list[Tensor]:
    """Send part i to rank i; returns what the ranks have sent, of these shapes."""
    outgoing = torch.cat([part.flatten() for part in parts])
    sizes = [torch.Size(shape).numel() for shape in shapes]
    incoming = outgoing.new_empty(sum(sizes))
    dist.all_to_all_single(incoming, outgoing, sizes, [part.numel() for part in parts], group=group)
    return [part.view(shape) for part, shape in zip(incoming.split(sizes), shapes)]
