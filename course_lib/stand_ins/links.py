"""A modelled link: all_reduces between hosts are real, and then wait for as long as a slower link would need.

On one machine all links are alike. To see which ranks should sit together, say which ranks share a host and
how fast the link between hosts is:

    with slow_link(hosts=[[0, 1], [2, 3]], bytes_per_s=20e6):
        ...    # an all_reduce over ranks 0 and 2 takes bytes sent / 20 MB/s at least;
               # one over 0 and 1 is as fast as ever

A figure of such a run must say that its link is modelled.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from course_lib import measure, theory
from course_lib.arguments import listed, number

__all__ = ["slow_link"]


@contextlib.contextmanager
def slow_link(hosts: Sequence[Sequence[int]], bytes_per_s: float) -> Iterator[None]:
    """Within this context, every `dist.all_reduce` of this rank over a group with ranks of several hosts
    takes as long as the link between them.

    Each rank has a link of its own. It carries one message after the other, each for 2(n-1)/n S / bytes_per_s
    seconds, from the moment when the real all_reduce is done: before, some rank has not come yet. An
    all_reduce with async_op=True lets the rank go on, and waits in `wait()`. The timeline shows the waiting
    as communication, "slow link". Calls that Python does not see (torch's own DDP) and other collectives are
    left alone.

    Args:
        hosts: the ranks of each host; every rank of the job once.
        bytes_per_s: speed of the link between hosts.

    Errors: ValueError for other hosts or another speed.
    """
    number("bytes_per_s", bytes_per_s, above=True)
    listed("hosts", hosts, "a list of hosts, each a list of ranks", lambda host: isinstance(host, Sequence))
    if sorted(rank for host in hosts for rank in host) != list(range(dist.get_world_size())):
        raise ValueError(
            f"hosts={hosts}: every rank of the job must be on one host, 0 to {dist.get_world_size() - 1}."
        )
    host_of = {rank: host for host, ranks in enumerate(hosts) for rank in ranks}
    real, link = dist.all_reduce, _Link()

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
        work = real(tensor, op=op, group=group, async_op=async_op)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        if len({host_of[rank] for rank in ranks}) == 1:
            return work
        seconds = theory.collective_bytes("all_reduce", tensor.nbytes, len(ranks)) / bytes_per_s
        if async_op:
            return _Arriving(work, link, seconds)
        return link.carry(time.perf_counter(), seconds)

    dist.all_reduce = all_reduce
    try:
        yield
    finally:
        dist.all_reduce = real


class _Link:
    """One rank's link, and until when it is in use."""

    free_at = 0.0

    def carry(self, begin: float, seconds: float) -> None:
        """Wait until a message that is there from `begin` on has passed."""
        self.free_at = max(self.free_at, begin) + seconds
        left = self.free_at - time.perf_counter()
        if left > 0:
            with measure.span("slow link", communication=True):
                time.sleep(left)


class _Arriving:
    """The work of an all_reduce that has still to pass through the link."""

    def __init__(self, work: dist.Work, link: _Link, seconds: float):
        self._work, self._link, self._seconds, self._done = work, link, seconds, []
        work.get_future().add_done_callback(lambda future: self._done.append(time.perf_counter()))

    def wait(self) -> bool:
        self._work.wait()
        self._link.carry(self._done[0] if self._done else time.perf_counter(), self._seconds)
        return True
