"""Links that sleep: a message takes what its bytes need, each way apart, and nothing stays changed."""

import time

import pytest
import torch
import torch.distributed as dist

from course_lib import run
from course_lib.mini import data_parallel, ring
from course_lib.stand_ins.links_of_ranks import own_links

T = 0.4  # seconds for the whole tensor
NUMEL = 240
TRIES = 3  # other processes make a time longer, never shorter


def best_times(*functions) -> list[float]:
    """The least time of the slowest of 4 ranks, of each function."""

    def on_rank():
        times = []
        for function in functions:
            tensor = torch.ones(NUMEL)
            with own_links(bytes_per_s=tensor.nbytes / T):
                dist.barrier()
                begin = time.perf_counter()
                function(tensor)
                times.append(time.perf_counter() - begin)
        return times

    tries = [run(on_rank, ranks=4).results for _ in range(TRIES)]
    return [min(max(rank[i] for rank in results) for results in tries) for i in range(len(functions))]


def exchange(tensor):
    right, left = (dist.get_rank() + 1) % 4, (dist.get_rank() - 1) % 4
    ops = [dist.P2POp(dist.isend, tensor, right), dist.P2POp(dist.irecv, torch.empty_like(tensor), left)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()


def test_both_ways_are_used_at_once_and_each_carries_one_message_at_a_time():
    def two_into_one(tensor):
        if dist.get_rank() in (1, 2):
            dist.send(tensor, dst=0)
        elif dist.get_rank() == 0:
            for source in (1, 2):
                dist.recv(tensor, src=source)

    once, twice = best_times(exchange, two_into_one)
    assert T <= once < 1.9 * T and 2 * T <= twice


def test_a_message_sets_out_when_both_are_there():
    def late(tensor):
        if dist.get_rank() == 1:
            time.sleep(T / 2)
        exchange(tensor)

    assert best_times(late)[0] >= 1.5 * T


def test_the_ring_is_faster_than_the_star_where_links_are_apart():
    star, chunks = best_times(data_parallel.star_all_reduce, ring.all_reduce)
    assert star >= 6 * T and 1.5 * T <= chunks < star / 2


def test_nothing_stays_changed_and_sums_are_right():
    def on_rank():
        names = ("send", "recv", "isend", "irecv")
        before = [getattr(home, name) for home in (dist, dist.distributed_c10d) for name in names]
        tensor = torch.full((8,), float(dist.get_rank()))
        try:
            with own_links(bytes_per_s=1e9):
                ring.all_reduce(tensor)
                raise KeyError
        except KeyError:
            after = [getattr(home, name) for home in (dist, dist.distributed_c10d) for name in names]
        return before == after, tensor.tolist()

    assert run(on_rank, ranks=3).results == [(True, [3.0] * 8)] * 3


def test_a_link_has_a_speed():
    with pytest.raises(ValueError, match="bytes_per_s"), own_links(bytes_per_s=0):
        pass


def from_whoever_comes():
    with own_links(bytes_per_s=1e9):
        if dist.get_rank():
            return dist.send(torch.ones(1), dst=0)
        return sorted(dist.recv(torch.empty(1)) for _ in range(2))


def test_a_receive_from_whoever_comes_says_who_came():
    assert run(from_whoever_comes, ranks=3).results[0] == [1, 2]
