"""Modelled latency: messages are real, and set out some time after they were handed over.

On one machine a message arrives at once. Between machines it is on its way for a while, in which its sender
is free to work:

    with late_messages(seconds=0.01):
        ...    # what is sent now can arrive in 10 ms at the earliest; the sender does not wait for that

A figure of such a run must say that its messages are held back.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import number
from course_lib.torch_internals import homes_of_messages

__all__ = ["late_messages"]


@contextlib.contextmanager
def late_messages(seconds: float) -> Iterator[None]:
    """Within this context, what this rank sends with `isend` or `send` sets out `seconds` later, in the order
    in which it was handed over.

    Many messages may be on their way at the same time: a latency, not a bandwidth. Receives and collectives
    are left alone. Every rank should call this. When the context ends, all has set out.

    Args:
        seconds: from the call until the message sets out.
    """
    number("seconds", seconds)
    real = dist.isend

    with ThreadPoolExecutor(1, "late messages") as line:

        def isend(tensor: Tensor, *args, **kwargs) -> "_HeldBack":
            at = time.perf_counter() + seconds
            return _HeldBack(line.submit(_set_out, at, real, tensor, *args, **kwargs))

        def send(*args, **kwargs) -> None:
            isend(*args, **kwargs).wait()

        instead = {"isend": isend, "send": send}
        homes = [(home, name) for home in homes_of_messages() for name in instead]
        before = [getattr(home, name) for home, name in homes]
        for home, name in homes:
            setattr(home, name, instead[name])
        try:
            yield
        finally:
            for (home, name), function in zip(homes, before):
                setattr(home, name, function)


def _set_out(at: float, isend, tensor: Tensor, *args, **kwargs) -> dist.Work:
    time.sleep(max(0.0, at - time.perf_counter()))
    return isend(tensor, *args, **kwargs)


class _HeldBack:
    """The work of a message that has perhaps not set out yet."""

    def __init__(self, future: Future):
        self._future = future

    def wait(self) -> bool:
        return self._future.result().wait()
