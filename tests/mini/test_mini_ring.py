"""mini.ring on real ranks: values, bytes on every rank, messages, groups, refusals."""

import functools
import sys

import mini_workers
import pytest
import torch
import torch.distributed as dist
from mini_workers import LARGE, RING_OPS, SMALL_NUMEL

from course_lib import RankError, measure, run, theory
from course_lib.mini.ring import halving
from course_lib.mini.ring.watched import watched_all_reduce
from course_lib.plots import pictures

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


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_halving_and_doubling_sums_exactly_in_few_steps_and_few_bytes(ranks):
    def on_rank():
        rank, wrong = dist.get_rank(), []
        for numel, dtype in (
            (0, torch.float32),
            (1, torch.int64),
            (5, torch.bfloat16),
            (1001, torch.float64),
        ):
            tensor = torch.arange(numel).to(dtype) % 8 + rank
            halving.halving_doubling_all_reduce(tensor)
            wanted = ranks * (torch.arange(numel).to(dtype) % 8) + ranks * (ranks - 1) / 2
            wrong += [] if torch.equal(tensor, wanted.to(dtype)) else [(numel, dtype)]
        transposed = torch.full((3, 4), float(rank)).t()
        halving.halving_doubling_all_reduce(transposed)
        wrong += [] if (transposed == ranks * (ranks - 1) / 2).all() else ["transposed"]
        for _ in range(2):
            with measure.step():
                halving.halving_doubling_all_reduce(torch.ones(1024))
        return wrong

    job = run(on_rank, ranks=ranks)
    assert job.results == [[]] * ranks
    sends = job.comm[job.comm["op"] == "send"]
    steps, limit = 2 * (ranks.bit_length() - 1), theory.collective_bytes("all_reduce", 4096, ranks)
    for rank in range(ranks):
        mine = sends[sends["rank"] == rank]["payload_bytes"]
        assert len(mine) == steps and mine.sum() == limit


def test_halving_wants_a_power_of_two():
    with pytest.raises(RankError, match="3 ranks: halving and doubling needs a power of two"):
        run(lambda: halving.halving_doubling_all_reduce(torch.ones(3)), ranks=3)


def test_a_watched_ring_notes_every_step():
    def on_rank():
        tensor = torch.arange(1.0, 4.0) * 10 ** dist.get_rank()
        return watched_all_reduce(tensor), tensor.tolist()

    results = run(on_rank, ranks=3).results
    steps = pictures.ring_steps([notes for notes, _ in results])
    assert [step.name for step in steps] == [
        "start",
        "reduce_scatter, step 1 of 2",
        "reduce_scatter, step 2 of 2",
        "all_gather, step 1 of 2",
        "all_gather, step 2 of 2",
    ]
    assert [step.sent for step in steps[:3]] == [None, [2, 0, 1], [1, 2, 0]]
    assert [steps[2].held[rank][rank] for rank in range(3)] == [111, 222, 333]
    assert steps[-1].held == [[111, 222, 333]] * 3 == [held for _, held in results]
