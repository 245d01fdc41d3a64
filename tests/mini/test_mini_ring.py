"""mini.ring on real ranks: values, bytes on every rank, messages, groups, refusals."""

import functools
import sys

import mini_workers
import pytest
from mini_workers import LARGE, RING_OPS, SMALL_NUMEL

from course_lib import run, theory

on_all_ranks = pytest.mark.parametrize("ranks", [2, 3, 4])
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


@functools.cache
def bytes_job(ranks: int, numel: int):
    return run(mini_workers.ring_bytes, numel, ranks=ranks, backend="gloo")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_sums_and_chunks_are_exact_for_every_size_dtype_and_layout(ranks):
    assert run(mini_workers.ring_values, ranks=ranks).results == [[]] * ranks


@needs_counters
@on_all_ranks
@pytest.mark.parametrize("numel", [SMALL_NUMEL, LARGE])
def test_every_rank_sends_what_the_textbook_says(ranks, numel):
    steps = bytes_job(ranks, numel).steps
    for number, op in enumerate(RING_OPS):
        sent = steps[steps["step"] == 2 + number]["wire_bytes"]
        expected = theory.collective_bytes(op, 4 * numel, ranks)
        assert len(sent) == ranks and ((sent / expected - 1).abs() < 0.02).all(), op


@on_all_ranks
@pytest.mark.parametrize("numel", [SMALL_NUMEL, LARGE])
def test_messages_are_chunks_to_one_neighbour_only(ranks, numel):
    comm = bytes_job(ranks, numel).comm
    chunk = 4 * -(-numel // ranks)
    pieces = 2 if chunk >= 2**20 else 1
    for rank in range(ranks):
        mine = comm[comm["rank"] == rank]
        assert set(mine["op"]) == {"send", "recv"}, "not torch's collectives"
        for op in ("send", "recv"):
            rows = mine[mine["op"] == op]
            assert len(rows) == 4 * (ranks - 1) * pieces, "all_reduce twice n-1 steps, the other two n-1 each"
            assert rows["payload_bytes"].max() <= chunk / pieces + 4
    assert comm[comm["op"] == "send"]["payload_bytes"].sum() == 4 * (ranks - 1) * numel * 4, (
        "to the byte: 4 (n-1) S over all ranks"
    )


def test_one_rank_sends_nothing():
    job = bytes_job(1, 1000)
    assert job.comm.empty


def test_groups_sum_among_themselves():
    job = run(mini_workers.in_pairs, ranks=4)
    for rank, (ringed, starred, chunk, full, mine) in enumerate(job.results):
        members = [1, 3] if rank % 2 else [0, 2]  # torch counts the ranks of a group in rising order
        assert ringed == starred == [2.0 * sum(members)], "two steps: the second doubles the sum of the first"
        first = 3 * members.index(rank)
        assert chunk == [2.0 * i + sum(members) for i in range(first, first + 3)]
        assert full == [float(members[0])] * 3 + [float(members[1])] * 3 and mine == [float(rank)]
    assert set(job.comm["group"]) == {"1,3", "0,2"}


def test_what_does_not_fit_is_refused_in_words():
    for told in run(mini_workers.ring_refusals, ranks=2).results:
        assert [
            "7 elements" in told[0],
            "6 elements" in told[1],
            "one dtype" in told[2],
            "2 chunks" in told[3],
            "4 elements" in told[4],
        ] == [True] * 5


def test_what_cannot_be_sent_or_added_is_refused_by_ring_and_star():
    for *told, gathered in run(mini_workers.not_to_be_sent, ranks=2).results:
        assert len(told) == 12 and all("only dense tensors are sent" in words for words in told[:6])
        assert all(
            f"is torch.{name}, which torch cannot add up" in words
            for name, words in zip(["float8_e4m3fn"] * 3 + ["uint16"] * 3, told[6:])
        )
        assert gathered == [1.0, 1.0, 2.0, 2.0]


def test_nothing_is_kept_between_calls():
    assert run(mini_workers.kept_by_the_ring, 300_000, ranks=3).results == [0] * 3
