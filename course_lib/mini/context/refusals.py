"""What mini.context refuses: shapes that are no attention's, tokens that are not this rank's, heads that
cannot be dealt out; each in one sentence.
"""

import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import dense, instance, one_of, whole

__all__ = [
    "other_shapes",
    "other_orders",
    "other_tokens",
    "too_short",
    "too_few_heads",
    "without_attention",
]


def other_shapes(name: str, value) -> None:
    """q, k or v alone."""
    dense(name, value)
    if value.dim() != 4 or not value.is_floating_point():
        raise ValueError(
            f"{name} is {value.dtype} {list(value.shape)}: it must be [batch, heads, time, head_dim], of"
            " floating point numbers."
        )


def other_orders(name: str, value) -> None:
    """An order that `positions` does not know."""
    one_of(name, value, ("zigzag", "contiguous"))


def too_short(time: int, process_group: dist.ProcessGroup | None) -> None:
    """A sequence with fewer tokens than ranks."""
    if time < dist.get_world_size(process_group):
        raise ValueError(f"time={time}: each of {dist.get_world_size(process_group)} ranks needs a token.")


def other_tokens(
    q: Tensor, k: Tensor, v: Tensor, order: str, time: int | None, process_group: dist.ProcessGroup | None
) -> None:
    """Shapes that do not fit together, or are not those of this rank's part of the sequence."""
    from course_lib.mini.context.order import positions  # it imports this file

    batch, heads, tokens, dim = q.shape
    if k.shape != v.shape or k.shape[::2] != q.shape[::2] or k.shape[3] != dim or heads % max(k.shape[1], 1):
        raise ValueError(
            f"q, k and v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}: k and v must have one shape,"
            " that of q, or fewer heads that divide those of q."
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype}, {v.dtype}: all must have one, on one device.")
    if min(q.shape) < 1 or k.shape[1] < 1:
        raise ValueError(f"q and k are {list(q.shape)} and {list(k.shape)}: a size of 0 cannot be.")
    if time is None:
        return
    whole("time", time, most=2**31)
    if (wanted := len(positions(time, order, process_group))) != tokens:
        raise ValueError(
            f"this rank has {tokens} tokens, and of a sequence of {time} tokens in {order} order it must have"
            f" {wanted}."
        )


def too_few_heads(q: Tensor, k: Tensor, process_group: dist.ProcessGroup | None) -> None:
    """Heads that the number of ranks does not divide."""
    size = dist.get_world_size(process_group)
    for name, heads in (("q", q.shape[1]), ("k", k.shape[1])):
        if heads % size:
            raise ValueError(
                f"{name} has {heads} heads, which cannot be dealt out evenly to {size} ranks: Ulysses cuts by"
                " heads, so take ring_attention."
            )


def without_attention(name: str, value) -> None:
    """A model without a layer that calls `self.attend`."""
    instance(name, value, nn.Module)
    if not any(hasattr(module, "attend") for module in value.modules()):
        raise TypeError(
            f"no layer of this {type(value).__name__} has an `attend`: its attention layers must call"
            " self.attend(q, k, v)."
        )
