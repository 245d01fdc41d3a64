"""The kinds of demand that exercises share, on jobs that are made up."""

from collections import Counter

import pytest

from course_lib import Job
from course_lib.check.rubric import at_most, collectives, fact, holds, it_is, sends, used, values


def job(results=(0, 0), ops=(), sent=(0, 0), params=()) -> Job:
    """Two ranks; each calls `ops` in the traced step; `sent` bytes on the wire, each in one large message;
    `params` bytes of parameters.
    """
    call = {"dtype": "float32", "payload_bytes": 4, "algorithm_bytes": 4.0, "group_size": 2, "group": "0,1"}
    comm = [call | {"rank": rank, "op": op, "start_s": 0.0, "seconds": 0.0} for rank in (0, 1) for op in ops]
    steps = [
        {
            "rank": rank,
            "step": step,
            "phase": phase,
            "seconds": None,
            "samples": None,
            "wire_bytes": sent[rank],
        }
        for rank in (0, 1)
        for step, phase in enumerate(("warm-up", "traced"))
    ]
    memory = [{"rank": rank, "category": "params", "bytes": its} for rank, its in enumerate(params)]
    records = {"steps": steps, "comm": comm, "memory": memory, "timeline": []}
    return Job("made up", 2, "gloo", "cpu", "none", 0.0, list(results), ["", ""], {}, records)


def numbers(*errors, looks=""):
    return job([{"error": error, "looks": looks, "other": 0.5} for error in errors])


def test_values():
    demand = values("it is right", "it is not right (relative error {error:.2g}).")
    assert demand.missed(numbers(0.0, 1e-10)) == ""
    assert demand.missed(numbers(0.0, 0.25)) == "it is not right (relative error 0.25)."
    assert demand.missed(numbers(0.0, 0.25, looks="the sum")) == (
        "it is not right (relative error 0.25). It is the sum."
    )
    assert "the rounding of float32" in demand.missed(numbers(1e-7, 0.0))
    assert demand.missed(numbers(float("inf"), 0.0)).startswith("it is not right (relative error inf)")


def test_values_with_advice():
    advised = values("", "it is not right (relative error {error:.2g}).", advice="Divide by n.")
    assert advised.missed(numbers(0.25, 0.0)) == "it is not right (relative error 0.25). Divide by n."
    assert advised.missed(numbers(1e-7, 0)).startswith(
        "it is not right (relative error 1e-07). Divide by n. An"
    )
    only = values("", "no.", within=1e-5, advice=lambda job, error: it_is(job, "They are"))
    assert only.missed(numbers(1e-6, 0)) == "" and only.missed(numbers(1e-4, 0)) == "no."
    assert only.missed(numbers(1e-4, 0, looks="sums")) == "no. They are sums."
    assert values("", "no", "other", after=("error",)).after == ("error",)


def test_at_most():
    demand = at_most("few", "error", 2, "it holds {most:.1f} layers")
    assert demand.missed(numbers(2, 1)) == "" and demand.missed(numbers(1, 2.5)) == "it holds 2.5 layers"
    assert demand.missed(numbers(float("nan"), 1)) == "it holds nan layers"


def test_fact():
    demand = fact("it waits", "waited", "rank {rank} did not wait")
    assert demand.missed(job([{"waited": True}, {"waited": True}])) == ""
    assert demand.missed(job([{"waited": True}, {"waited": False}])) == "rank 1 did not wait"
    told = fact("it is whole", "whole", "the file of rank {rank}: {wrong}", after=("waits",), quiet=True)
    assert told.after == ("waits",) and told.quiet
    assert told.missed(job([{"whole": ""}, {"whole": ""}])) == ""
    assert told.missed(job([{"whole": "it is empty"}, {"whole": ""}])) == "the file of rank 0: it is empty"
    assert fact("", "whole").missed(job([{"whole": ""}, {"whole": "it has {n} in it"}])) == "it has {n} in it"


def test_holds():
    demand = holds("P / n", "params", lambda job: 100, "rank {rank} of {n}: {held:,} is {times:.1f} {limit}")
    assert demand.words == "P / n"
    assert demand.missed(job([{}, {}], params=(100, 90))) == ""
    assert demand.missed(job([{}, {}], params=(100, 1_250))) == "rank 1 of 2: 1,250 is 12.5 100"
    assert (
        demand.missed(job([{"params": 101}, {"params": 0}], params=(0, 0))) == "rank 0 of 2: 101 is 1.0 100"
    )
    told = holds("", "unseen", lambda job: 100, "{times} P.", 0.5, lambda job: f" {job.ranks} ranks", ("a",))
    assert told.missed(job([{"unseen": 50}, {"unseen": 0}])) == "" and told.after == ("a",)
    assert told.missed(job([{"unseen": 0}, {"unseen": 60}])) == "0.6 P. 2 ranks"


@pytest.mark.parametrize(
    "ops, told",
    [
        (["all_reduce"], ""),
        ([], "nothing was called"),
        (["all_gather", "all_reduce"], "1 all_gather, 1 all_reduce: 2 are too many. It gathers."),
    ],
)
def test_collectives(ops, told):
    demand = collectives(
        "one",
        lambda ops: ops.total() == 1,
        "{used}: {count} are too many.",
        none="nothing was called",
        advice={"all_gather": "It gathers."},
    )
    assert demand.missed(job(ops=ops)) == told


def test_collectives_in_words():
    assert used(Counter()) == "no collective"
    assert used(Counter(["broadcast", "all_reduce", "all_reduce"])) == "2 all_reduce, 1 broadcast"


def test_sends():
    demand = sends(
        "2 S", lambda job: 1_000_000, "rank {rank}: {sent:,.0f} is {times:.1f} times {limit:,.0f}."
    )
    assert demand.words == "no rank sends more than 1.02 times 2 S"
    assert demand.missed(job(sent=(1_000_000, 1_019_000))) == ""
    assert demand.missed(job(sent=(1_000_000, 1_500_000))) == "rank 1: 1,500,000 is 1.5 times 1,000,000."
    # the headers of a message are no waste
    assert demand.missed(job(sent=(0, 1_020_500), ops=["all_reduce"])) == ""
    assert demand.missed(job(sent=(0, 1_021_000), ops=["all_reduce"])) != ""
    advised = sends("", lambda job: 1.0, "too much.", lambda job: f" {job.ranks} ranks")
    assert advised.missed(job(sent=(2, 2))) == "too much. 2 ranks"
