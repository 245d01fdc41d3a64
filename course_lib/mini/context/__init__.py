"""Context parallelism: attention over a sequence that no rank holds whole.

Each rank has some of the tokens of every sequence. All layers but one look at each token alone, and notice
nothing. Attention compares each token with all before it, which others hold. Two ways, for n ranks, K the
bytes of the keys of the whole sequence (as many as of its values), Q those of its queries, r = (n-1)/n:

                what travels                                   forward           backward
    ring        blocks of keys and values, round a ring        2 r K             4 r K
    Ulysses     an all_to_all: from some tokens of all heads   2 r (Q + K) / n   2 r (Q + K) / n
                to all tokens of some heads, and back

The ring, below, holds two blocks at most. A rank attends to the one that it has, sends it to the right and
gets another from the left meanwhile. A softmax over a part of the keys is corrected when more are seen
(`blocks`): nothing is approximate. Backward finds the same probabilities again. The blocks go round once
more, and behind each block its gradients, to which every rank adds.

Beside: `blocks` (one block, and how two are merged), `order` (who has which tokens), `ulysses`, `everyday`
(models and their losses), `refusals`.

Sources: Liu et al. 2023, "Ring Attention with Blockwise Transformers", section 3; Jacobs et al. 2023,
    "DeepSpeed Ulysses", section 3.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import fits, process_group, takes
from course_lib.mini.context import refusals as refuse
from course_lib.mini.context.blocks import attend, gradients, merge_, wide
from course_lib.mini.context.everyday import attach, mean_of_all
from course_lib.mini.context.order import Group, Plan, positions
from course_lib.mini.context.ulysses import ulysses_attention

__all__ = ["ring_attention", "ulysses_attention", "positions", "attach", "mean_of_all"]


@takes(q=refuse.other_shapes, k=refuse.other_shapes, v=refuse.other_shapes, causal=bool)
@takes(order=refuse.other_orders, process_group=process_group)
@fits(refuse.other_tokens)
def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    order: str = "zigzag",
    time: int | None = None,
    process_group: Group = None,
) -> Tensor:
    """Attend from this rank's queries to the keys of all ranks; every rank of the group must call this.

    Args:
        q: [batch, heads, own tokens, head_dim].
        k, v: the same; or with fewer heads, of which each serves as many of q's (grouped queries).
        causal: whether a token sees those before it and itself alone.
        order: which tokens a rank has, as in `positions`.
        time: tokens of the whole sequence; unless given, n times as many as here.
        process_group: the ranks that share the sequence; None for all.

    Returns:
        As q. Gradients flow to q, k and v; each rank must run backward.
    """
    return _Ring.apply(q, k, v, Plan.of(q, causal, order, time, process_group))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, plan):
        out = torch.zeros_like(q, dtype=wide(q))
        lse = out.new_full((*q.shape[:-1], 1), -torch.inf)  # of no key at all
        block = torch.stack([k, v])
        for source in plan.sources():  # whose block this rank has
            coming = _pass_on(block, plan, source - 1) if source != plan.last else None
            for mine, theirs, diagonal in plan.pairs(source):
                part = attend(q[:, :, mine], *block[:, :, :, theirs], diagonal)
                merge_(out[:, :, mine], lse[:, :, mine], *part)
            block = coming() if coming else None
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, out, lse)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, grad):
        (q, k, v, out, lse), plan = ctx.saved_tensors, ctx.plan
        delta = (grad * out).sum(-1, keepdim=True)
        q_grad, block, behind = torch.zeros_like(out), torch.stack([k, v]), None
        for source in plan.sources():
            coming = _pass_on(block, plan, source - 1) if source != plan.last else None
            block_grad = torch.zeros_like(block, dtype=out.dtype)
            for mine, theirs, diagonal in plan.pairs(source):
                known = [rows[:, :, mine] for rows in (q, lse, delta, grad)]
                of_q, *of_block = gradients(*known, *block[:, :, :, theirs], diagonal)
                q_grad[:, :, mine] += of_q
                block_grad[:, :, :, theirs] += torch.stack(of_block)
            if source == plan.rank:
                own_grad = block_grad  # stays here, and meets the rest at the end
            else:
                block_grad += behind() if behind else 0  # what the ranks before have added up for it
                behind = _pass_on(block_grad, plan, source - 1)
            block = coming() if coming else None
        own_grad += behind() if behind else 0
        return q_grad.to(q.dtype), *own_grad.to(k.dtype), None


def _pass_on(outgoing: Tensor, plan: Plan, source: int) -> Callable[[], Tensor]:
    """Begin to send to the right, and to receive rank `source`'s from the left; returns what waits for it."""
    room = [outgoing.new_empty(*outgoing.shape[:-2], plan.tokens(source), outgoing.shape[-1])]
    left, right = (plan.rank - 1) % plan.size, (plan.rank + 1) % plan.size
    receive = dist.P2POp(dist.irecv, room[0], group=plan.group, group_peer=left)
    send = dist.P2POp(dist.isend, outgoing, group=plan.group, group_peer=right)
    works = dist.batch_isend_irecv([receive, send])

    def arrived() -> Tensor:
        while works:  # the send, too: from then on nobody here holds its memory
            works.pop().wait()
        return room.pop()

    return arrived
