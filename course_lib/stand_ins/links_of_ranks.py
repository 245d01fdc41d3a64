"""Modelled links of one rank: messages are real, and then wait for as long as a slower link would need.

On one machine all ranks share cores and memory, so who sends to whom hardly matters. Between machines each
rank has a link of its own, and all links work at the same time:

    with own_links(bytes_per_s=20e6):
        ...    # a message of 1 MB takes 50 ms; two that come in at once share the link and take 100 ms

A figure of such a run must say that its links are modelled.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import number
from course_lib.torch_internals import homes_of_messages

__all__ = ["own_links"]


@contextlib.contextmanager
def own_links(bytes_per_s: float) -> Iterator[None]:
    """Within this context, each send and receive of this rank takes as long as a link of its own would need.

    The link carries one message at a time out, and one in, both at once. A message sets out when sender and
    receiver are both there, and keeps the one's way out and the other's way in for nbytes / bytes_per_s
    seconds. `send`, `recv`, `isend`, `irecv` and `batch_isend_irecv` of torch.distributed wait for it;
    collectives do not. For gloo: a batch of NCCL's is one call. Every rank should call this.

    Args:
        bytes_per_s: speed of a link, each way.
    """
    number("bytes_per_s", bytes_per_s, above=True)
    real_isend, real_irecv = dist.isend, dist.irecv
    out, into = _OneWay(bytes_per_s), _OneWay(bytes_per_s)

    def isend(tensor: Tensor, *args, **kwargs) -> "_Travelling":
        return _Travelling(real_isend(tensor, *args, **kwargs), out, tensor.nbytes)

    def irecv(tensor: Tensor, *args, **kwargs) -> "_Travelling":
        return _Travelling(real_irecv(tensor, *args, **kwargs), into, tensor.nbytes)

    def send(*args, **kwargs) -> None:
        isend(*args, **kwargs).wait()

    # recv stays torch's own: it calls irecv, waits, and says who has sent
    instead = {"isend": isend, "irecv": irecv, "send": send}
    homes = [(home, name) for home in homes_of_messages() for name in instead]
    before = [getattr(home, name) for home, name in homes]
    for home, name in homes:
        setattr(home, name, instead[name])
    try:
        yield
    finally:
        for (home, name), function in zip(homes, before):
            setattr(home, name, function)


class _OneWay:
    """One direction of a link, and until when it is in use."""

    def __init__(self, bytes_per_s: float):
        self.bytes_per_s, self.free_at = bytes_per_s, 0.0

    def carry(self, begin: float, nbytes: int) -> None:
        """Wait until a message that could set out at `begin` has passed."""
        self.free_at = max(self.free_at, begin) + nbytes / self.bytes_per_s
        time.sleep(max(0.0, self.free_at - time.perf_counter()))


class _Travelling:
    """A send or receive whose message has still to pass."""

    def __init__(self, work: dist.Work, way: _OneWay, nbytes: int):
        self._work, self._way, self._nbytes, self._met_at = work, way, nbytes, 0.0
        # a thread: only who waits learns when the other side came
        self._meeting = threading.Thread(target=self._meet, daemon=True)
        self._meeting.start()

    def _meet(self) -> None:
        self._work.wait()
        self._met_at = time.perf_counter()

    def wait(self) -> bool:
        self._meeting.join()
        self._way.carry(self._met_at, self._nbytes)
        return True

    def __getattr__(self, name: str):
        return getattr(self._work, name)
