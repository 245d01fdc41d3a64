"""The ring, and what a rank holds after each of its steps: for `plots.pictures.ring_steps`."""

import torch.distributed as dist
from torch import Tensor

from course_lib.mini.ring import all_reduce

__all__ = ["watched_all_reduce"]


def watched_all_reduce(tensor: Tensor) -> list[tuple[str, int | None, list[float]]]:
    """Sum a small tensor over all ranks by `mini.ring.all_reduce`, and return this rank's notes: for each
    step its name, the chunk that was sent (None at the start), and the values held after it.

    Args:
        tensor: [n] or a multiple of it, contiguous.
    """
    size, exchange = dist.get_world_size(), dist.batch_isend_irecv
    sent: list[int | None] = [None]
    held = []

    def noting(ops: list[dist.P2POp]) -> list[dist.Work]:
        (sending,) = [op for op in ops if op.op is dist.isend]
        sent.append(sending.tensor.storage_offset() * size // tensor.numel())
        held.append(tensor.tolist())  # what the step before has left
        return exchange(ops)

    dist.batch_isend_irecv = noting
    try:
        all_reduce(tensor)
    finally:
        dist.batch_isend_irecv = exchange
    held.append(tensor.tolist())
    halves = ("reduce_scatter", "all_gather")
    names = [f"{half}, step {step} of {size - 1}" for half in halves for step in range(1, size)]
    return list(zip(["start", *names], sent, held, strict=True))
