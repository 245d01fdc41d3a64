"""Timelines are causal, and a time is a call's own or unknown."""

import math
import subprocess
import sys

import pytest
from timeline_workers import coalesced, in_threads, train

from course_lib import plots, run
from course_lib.measure import events

ROUNDING_S = 1e-9


@pytest.fixture
def busy():
    """Four processes that spin, so that the ranks wait for cores."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


def assert_causal(rows, where: str) -> None:
    """Rows of one rank: kind, start_s, end_s."""
    of = {kind: rows[rows["kind"] == kind] for kind in ("forward", "backward", "optimizer", "communication")}
    told = f"{where}\n{rows.to_string()}"
    assert not any(part.empty for part in of.values()), told
    assert (
        of["forward"]["start_s"].min() < of["backward"]["start_s"].min() < of["optimizer"]["start_s"].min()
    ), told
    assert of["forward"]["end_s"].max() <= of["backward"]["start_s"].min() + ROUNDING_S, told
    communication = of["communication"]
    assert of["forward"]["start_s"].max() < communication["end_s"].max(), (
        f"a forward after the last collective\n{told}"
    )
    update_s = of["optimizer"]["start_s"].min()
    feeds = communication[communication["start_s"] < update_s]
    assert (feeds["end_s"] <= update_s + ROUNDING_S).all(), (
        f"the optimizer begins before a collective that feeds it has ended\n{told}"
    )


WAYS = [
    "DDP",
    "DDP in small buckets",
    "DDP in float16",
    "DDP, then all ranks' loss",
    "DDP, clipped",
    "ZeroRedundancyOptimizer",
    "fully_shard",
    "mini.ddp",
    "mini.zero 1",
    "mini.zero 2",
    "mini.zero 3",
    "by hand",
    "averaged by hand",
]


def judge(job) -> None:
    assert job.comm["seconds"].notna().all()
    rows = job.timeline.assign(end_s=job.timeline["start_s"] + job.timeline["seconds"])
    for rank in range(job.ranks):
        assert_causal(rows[rows["rank"] == rank].sort_values("start_s"), f"{job.label}, rank {rank}")


@pytest.mark.parametrize("way", WAYS)
def test_timelines_are_causal(way):
    judge(run(train, way, ranks=3, label=way))


@pytest.mark.parametrize("way", ["DDP", "DDP in float16", "mini.zero 2"])
def test_timelines_are_causal_on_a_busy_machine(busy, way):
    for _ in range(2):
        judge(run(train, way, ranks=3, label=way))


def test_what_is_drawn_is_what_the_table_says():
    job = run(train, "DDP", ranks=2)
    ax = plots.timeline(job)
    drawn = sorted(
        (bar.get_x(), bar.get_width()) for kind in ax.containers for bar in kind if kind.get_label()[0] != "_"
    )
    table = sorted(zip(job.timeline["start_s"] * 1e3, job.timeline["seconds"] * 1e3))
    assert len(drawn) == len(table) and sum(drawn, ()) == pytest.approx(sum(table, ()))


# Which work of gloo belongs to which call


def call(
    start_s: float, numels: set, work: str = "gloo:all_reduce", runs: int = 1, for_ddp: bool = False
) -> dict:
    return {
        "start_s": start_s,
        "seconds": None,
        "_work": work,
        "_numels": numels,
        "_runs": runs,
        "_for_ddp": for_ddp,
    }


def event(start_s: float, end_s: float, numel: int | None, name: str = "gloo:all_reduce") -> events.Event:
    return events.Event(name, start_s, end_s, 1, numel)


def timed(calls: list[dict], work: list, backwards=()) -> list[tuple]:
    events.give_times(calls, list(work), list(backwards))
    return [(c["start_s"], c["seconds"]) if c["seconds"] is not None else None for c in calls]


def test_a_call_without_work_of_its_size_has_no_time():
    assert timed([call(1, {5, 7})], [event(2, 3, 8)]) == [None]
    assert timed([call(1, {5, 7})], [event(2, 3, 5)]) == [(2, 1)]


def test_work_from_before_a_call_is_not_its_own():
    assert timed([call(2, {5})], [event(1, 3, 5)]) == [None]


def test_calls_of_one_size_take_their_work_in_order():
    assert timed([call(1, {5}), call(2, {5})], [event(2.5, 4, 5), event(1.5, 3, 5)]) == [
        (1.5, 1.5),
        (2.5, 1.5),
    ]


def test_a_list_that_is_reduced_part_by_part_takes_as_long_as_all_of_them():
    assert timed([call(1, {5}, runs=2)], [event(2, 3, 5), event(2.5, 4, 5)]) == [(2, 2)]
    assert timed([call(1, {5}, runs=2)], [event(2, 3, 5)]) == [None], "one of the parts is unknown"


def test_ddps_collectives_end_before_its_backward_returns():
    backward = event(0, 4, None, events.BACKWARD)
    assert timed([call(1, {5}, for_ddp=True)], [event(2, 9, 5)], [backward]) == [(2, 2)]
    assert timed([call(1, {5})], [event(2, 9, 5)], [backward]) == [(2, 7)], (
        "who does not wait may see it end later"
    )
    assert timed([call(5, {5}, for_ddp=True)], [event(6, 9, 5)], [backward]) == [(6, 3)]


def test_coalesced_calls_and_lists_have_times_of_their_own():
    job = run(coalesced, ranks=3)
    for rank in range(3):
        rows = job.comm[job.comm["rank"] == rank]
        assert rows["op"].tolist() == ["reduce_scatter", "all_reduce", "scatter", "barrier"]
        ends = rows["start_s"] + rows["seconds"]
        assert (rows["start_s"].to_numpy()[1:] >= ends.to_numpy()[:-1] - 1e-6).all(), (
            f"blocking calls come one after another\n{rows.to_string()}"
        )


def test_collectives_in_the_learners_threads_have_times():
    job = run(in_threads, ranks=2)
    for rank in range(2):
        rows = job.comm[job.comm["rank"] == rank]
        assert sorted(rows["payload_bytes"]) == [400, 404, 4000] and (rows["seconds"] > 0).all(), (
            rows.to_string()
        )
    assert not math.isnan(job.timeline["seconds"].sum()) and set(job.timeline["kind"]) == {
        "forward",
        "communication",
    }
