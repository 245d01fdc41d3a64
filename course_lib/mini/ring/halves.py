"""For speed: a ring for each half of large chunks, and the two take turns."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch.distributed as dist
from torch import Tensor

__all__ = ["go_round"]

IN_HALVES_FROM_BYTES = 2**20  # of a chunk


def go_round(
    steps: Callable[..., Iterator[None]],
    chunks: Sequence[Tensor],
    group: dist.ProcessGroup | None,
    **options,
) -> None:
    """Take all steps of a round. `steps(chunks, group, **options)` yields when it has something to wait for.

    Large chunks are cut in two. Both halves make the same steps, in turn: while one half travels, the other
    is added up. That is twice as many messages, each half as long.
    """
    rings = 2 if max(chunk.nbytes for chunk in chunks) >= IN_HALVES_FROM_BYTES else 1
    halves = zip(*(chunk.tensor_split(rings) for chunk in chunks))  # those of each ring
    for _ in zip_longest(*(steps(half, group, **options) for half in halves)):
        pass
