"""One block of attention: what queries get from some of the keys, how two such results are merged, and the
gradients.

A softmax over all keys needs its sum over all keys. A part of it is worked out with the sum over the part
alone, and the logarithm of that sum (lse) is kept. Two parts, each right for its own keys:

    lse = log(exp(lse_a) + exp(lse_b))        out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

No exponent here is above 0, so nothing overflows, however large the scores are. (Milakov and Gimelshein keep
the largest score and the sum; lse is both in one number.) With lse, backward finds each probability again,
exp(score - lse), and keeps none.

Where there are fewer heads of keys than of queries, the queries of those that share one stand one below the
other: [batch, key heads, queries of the group, head_dim]. A sum over queries, as in the gradients of keys, is
then one over the group, too.

Sources: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3; Dao et al. 2022,
    "FlashAttention", section 3.1 and appendix B.
"""

import torch
from torch import Tensor

__all__ = ["attend", "merge_", "gradients", "wide"]


def attend(q: Tensor, k: Tensor, v: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Attend to these keys alone.

    Args:
        q: [batch, heads, queries, head_dim]; k, v: [batch, key heads, keys, head_dim].
        diagonal: the keys are of the same tokens as the queries, and each query sees none after its own.

    Returns:
        out [batch, heads, queries, head_dim], and lse [batch, heads, queries, 1].
    """
    k, v = k.to(wide(q)), v.to(wide(q))
    scores = _scores(q, k, diagonal)
    lse = scores.logsumexp(-1, keepdim=True)
    out = scores.sub_(lse).exp_() @ v
    return _ungrouped(out, q), _ungrouped(lse, q)


def merge_(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Merge what the same queries got from other keys into `out` and `lse`, in place. (Of no keys: out is 0,
    lse is -inf.)
    """
    total = torch.logaddexp(lse, other_lse)
    out.mul_((lse - total).exp_()).add_((other_lse - total).exp_() * other_out)
    lse.copy_(total)


def gradients(
    q: Tensor, lse: Tensor, delta: Tensor, grad: Tensor, k: Tensor, v: Tensor, diagonal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What one block adds to the gradients of its queries, keys and values. d is head_dim, dX the gradient of
    X, and * multiplies element by element:

        P = exp(Q K' / sqrt(d) - lse)      dP = dO V'      dS = P * (dP - delta) / sqrt(d)
        dV = P' dO                         dQ = dS K       dK = dS' Q

    Args:
        lse: [batch, heads, queries, 1], of all keys.
        delta: [batch, heads, queries, 1], the sum over head_dim of the output times its gradient. It is what
            the softmax's sum gives back, the same for every key.
        grad: of the output.
    """
    k, v = k.to(wide(q)), v.to(wide(q))
    probabilities = _scores(q, k, diagonal).sub_(_grouped(lse, k)).exp_()
    grad_, delta_ = _grouped(grad.to(wide(q)), k), _grouped(delta, k)
    v_grad = probabilities.mT @ grad_
    scores_grad = (grad_ @ v.mT).sub_(delta_).mul_(probabilities).mul_(q.shape[-1] ** -0.5)
    q_grad, k_grad = scores_grad @ k, scores_grad.mT @ _grouped(q.to(wide(q)), k)
    return _ungrouped(q_grad, q), k_grad, v_grad


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums over all keys are kept: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _scores(q: Tensor, k: Tensor, diagonal: bool) -> Tensor:
    scores = _grouped(q.to(wide(q)), k) @ k.mT  # [batch, key heads, queries of the group, keys]
    scores *= q.shape[-1] ** -0.5
    if diagonal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later.repeat(q.shape[1] // k.shape[1], 1), -torch.inf)
    return scores


def _grouped(rows: Tensor, k: Tensor) -> Tensor:
    return rows.unflatten(1, (k.shape[1], -1)).flatten(2, 3)


def _ungrouped(rows: Tensor, q: Tensor) -> Tensor:
    return rows.reshape(*q.shape[:3], -1)
