"""mini.ddp on real ranks: equal to torch's DDP and to one process; bytes, calls, overlap; parameters that are
frozen, tied or unused.
"""

import functools
import math
import sys

import ddp_workers
import mini_workers
import pytest
import torch

from course_lib import run, theory
from course_lib.mini.ddp import refusals as ddp_refusals

NAMES = ("MLP", "CNN", "TinyGPT")
on_all_ranks = pytest.mark.parametrize("ranks", [2, 3, 4])
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


@functools.cache
def updates(ranks: int, kind: str = "mine", **options):
    return run(mini_workers.updates, kind, ranks=ranks, backend="gloo", **options)


def reduces(job, rank: int = 0):
    return job.comm[(job.comm["rank"] == rank) & (job.comm["op"] == "all_reduce")]


@on_all_ranks
def test_ten_steps_equal_torchs_ddp_and_one_process(ranks):
    cases = [(name, torch.float64, 12, {"bucket_cap_mb": 0.01}) for name in NAMES]
    # uneven: slices differ by one sample
    cases += [(name, torch.float64, 13, {}) for name in NAMES]
    cases += [(name, torch.float64, 12, {"bucket_cap_mb": 0.01, "all_reduce": "ring"}) for name in NAMES[:1]]
    for result in run(mini_workers.parity, cases, ranks=ranks).results:
        for case, worst in zip(cases, result, strict=True):
            assert worst["torch"] < 1e-6 and worst["alone"] < 1e-6 and worst["frozen"] == 0, (case, worst)


def test_single_precision_and_buffers_equal_torchs():
    cases = [(name, torch.float32, 12, {}) for name in NAMES] + [
        ("CNN with batch norm", torch.float64, 12, {})
    ]
    for result in run(mini_workers.parity, cases, ranks=2).results:
        for case, worst in zip(cases, result, strict=True):
            assert worst["torch"] < (1e-4 if case[1] == torch.float32 else 1e-6), (case, worst)
        assert result[-1]["alone"] > 1e-3, (
            "each rank normalises over its own samples: no equality with one process"
        )


def test_all_ranks_start_from_rank_0():
    assert run(mini_workers.starts_equal, ranks=3).results == [0.0] * 3


def test_backwards_in_a_row_after_no_sync_and_after_failure():
    for told in run(mini_workers.special_backwards, ranks=3).results:
        assert all(value < 1e-12 for value in told.values()), told


def test_a_parameter_without_gradient_is_named():
    told = run(mini_workers.unused, False, ranks=2).results
    assert "no gradient for never.bias, never.weight in this backward on rank 0" in told[0]["error"]
    assert (
        "never.bias, never.weight, sometimes.bias, sometimes.weight in this backward on rank 1"
        in told[1]["error"]
    )


def test_unused_parameters_count_as_zero_where_others_use_them():
    for told in run(mini_workers.unused, True, ranks=3).results:
        assert told["never"] == [True, True], "nobody has a gradient: .grad stays None"
        assert told["difference"] < 1e-12


# Bytes, calls, time


@needs_counters
@on_all_ranks
def test_gradients_travel_once_and_live_in_their_buckets(ranks):
    job = updates(ranks)
    params = job.results[0]["params"]
    for rank in range(ranks):
        rows = reduces(job, rank)
        assert len(rows) == 1 and rows["payload_bytes"].sum() == params and set(rows["op"]) == {"all_reduce"}
    sent = job.steps[job.steps["step"] >= 2]["wire_bytes"]
    assert ((sent / theory.step_bytes("data_parallel", params, ranks) - 1).abs() < 0.02).all()
    held = job.memory[job.memory["category"] == "grads"]["bytes"]
    assert held.tolist() == [params] * ranks, "no second copy of the gradients"


@needs_counters
def test_no_sync_divides_bytes_by_the_number_of_micro_batches():
    k = 4
    once, always = updates(2, num_microbatches=k), updates(2, num_microbatches=k, sync_always=True)
    sent = [job.steps[job.steps["step"] >= 2]["wire_bytes"].mean() for job in (once, always)]
    assert sent[1] / sent[0] == pytest.approx(k, rel=0.02)
    assert len(reduces(once)) == 1 and len(reduces(always)) == k
    for weights in zip(once.results[0]["weights"], once.results[1]["weights"], always.results[0]["weights"]):
        assert torch.equal(weights[0], weights[1]) and torch.allclose(weights[0], weights[2], atol=1e-6)


@pytest.mark.parametrize(
    "bucket_cap_mb, calls",
    [(0, 8), (40_000 / 2**20, 4), (80_000 / 2**20, 2), (121_000 / 2**20, 2), (float("inf"), 1), (25, 1)],
)
def test_calls_are_as_many_as_buckets_are_needed(bucket_cap_mb, calls):
    job = updates(2, bucket_cap_mb=bucket_cap_mb)
    for rank in range(2):
        rows = reduces(job, rank)
        assert len(rows) == calls and rows["payload_bytes"].sum() == job.results[rank]["params"]
    if 0 < bucket_cap_mb < 1:
        assert calls <= math.ceil(job.results[0]["params"] / (bucket_cap_mb * 2**20))
        assert len(reduces(updates(2, kind="torch", bucket_cap_mb=bucket_cap_mb))) == calls, (
            "as torch fills its buckets"
        )


def test_full_buckets_travel_while_backward_goes_on():
    def after_the_last_layer(job, rank: int) -> list[bool]:
        """Of each all_reduce, in order: whether it starts when the last layer's sleep is over."""
        rows = job.timeline[job.timeline["rank"] == rank]
        last = rows[rows["name"] == "backward 0"].iloc[0]
        return (
            rows[rows["name"] == "all_reduce"]["start_s"].sort_values() > last["start_s"] + last["seconds"]
        ).tolist()

    late = run(mini_workers.sleepy, bucket_cap_mb=float("inf"), ranks=2)
    # on a busy machine a message may start late: then once more, with layers that take longer
    for seconds in (0.03, 0.1, 0.3, 1.0):
        early = run(mini_workers.sleepy, seconds=seconds, ranks=2)
        found = [after_the_last_layer(early, rank) for rank in range(2)]
        if found == [[False, False, False, True]] * 2:
            break
    assert found == [[False, False, False, True]] * 2
    assert [after_the_last_layer(late, rank) for rank in range(2)] == [[True]] * 2, (
        "one bucket is full only at the end"
    )


def test_a_group_averages_among_itself():
    job = run(mini_workers.ddp_in_pairs, ranks=4)
    weights, gradients = zip(*job.results)
    assert (
        torch.equal(weights[0], weights[2])
        and torch.equal(weights[1], weights[3])
        and not torch.equal(weights[0], weights[1])
    )
    assert [g.unique().tolist() for g in gradients] == [[1.0], [2.0], [1.0], [2.0]]
    assert set(reduces(job)["group_size"]) == {2}


# What would be another result in silence: it works as in one process, or is refused in one sentence


@functools.cache
def told(case: str, ranks: int = 2) -> list:
    return [result[case] for result in all_cases(ranks).results]


@functools.cache
def all_cases(ranks: int):
    return run(ddp_workers.all_cases, ranks=ranks, backend="gloo")


TINY = pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "case, right",
    [
        ("reentrant", TINY),
        ("two_forwards", TINY),
        ("channels_last", True),
        ("unused_everywhere", [TINY, True]),
        ("frozen_later", [TINY, True, TINY]),
        ("other_ways_to_backward", [TINY] * 5),
    ],
)
def test_works_as_in_one_process(case, right, ranks):
    assert told(case, ranks) == [right] * ranks


def test_a_parameter_in_two_reentrant_checkpoints_is_refused():
    assert all(
        words.startswith(
            "RuntimeError: a.bias has got a second gradient in one backward, as in two reentrant checkpoints"
        )
        for words in told("reentrant_twice")
    )


@pytest.mark.parametrize("case", ["wrapped_twice", "shared_between_two"])
def test_the_newest_wrapper_averages_and_an_older_one_refuses(case):
    for difference, older, *hooks in told(case):
        assert difference == TINY and hooks in ([], [1])
        assert older.startswith("RuntimeError: a.bias, a.weight, ") and older.endswith(
            "wrap the module again, and use the newest wrapper."
        )


def test_copies_and_files_are_made_of_the_module():
    for *refused, difference in told("copies"):
        assert (
            len(refused) == 4 and set(refused) == {f"TypeError: {ddp_refusals.COPY}"} and difference == TINY
        )


def test_every_rank_must_wrap_the_same_module():
    for shape, layout, frozen, bias in told("other_modules"):
        assert (
            shape
            == "ValueError: rank 0 has weight [3, 3], strides (3, 1), torch.float32, and rank 1 has weight"
            " [4, 3], strides (3, 1), torch.float32: every rank must wrap the same module."
        )
        assert "strides (36, 9, 3, 1)" in layout and "strides (36, 1, 12, 4)" in layout
        assert (
            "rank 1 has weight [3, 3], strides (3, 1), torch.float32, frozen:" in frozen
            and "rank 1 has nothing:" in bias
        )


def test_a_backward_for_each_output():
    for difference, refused in told("a_backward_for_each_output"):
        assert difference == TINY and refused.startswith(
            "RuntimeError: no gradient for other.bias, other.weight in this backward"
        )


def test_an_optimizer_that_steps_inside_backward_is_refused():
    for hooked_before, zeroed, kept in told("stepped_in_backward"):
        assert hooked_before.startswith(
            "RuntimeError: head.bias lost its gradient to a hook before it was averaged"
        )
        assert (
            zeroed == kept
            and "within backward, before gradients were averaged: let the optimizer step after backward"
            in kept
        )


def test_gradients_that_do_not_fit_a_bucket_are_refused():
    assert all(
        words == "RuntimeError: weight has a sparse gradient, and buckets are dense: make the layer with"
        " sparse=False."
        for words in told("sparse")
    )
    for create_graph, penalty in told("graphs"):
        assert "create_graph=True" in create_graph and penalty == TINY


def test_parameters_that_change_after_wrapping_are_named():
    for unfrozen, added, replaced, dtype, wrapped_again in told("changed_later"):
        assert [words.split(" changed")[0] for words in (unfrozen, added, replaced, dtype)] == [
            "RuntimeError: a.bias, a.weight",
            "RuntimeError: extra.bias, extra.weight",
            "RuntimeError: head.bias, head.weight",
            "RuntimeError: b.bias, b.weight, head.bias, head.weight",
        ]
        assert wrapped_again == TINY
