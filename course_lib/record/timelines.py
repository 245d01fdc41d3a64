"""What one reads off a job's timeline: how much communication was hidden, how long a pipeline was idle."""

from collections.abc import Sequence

import pandas as pd

from course_lib.arguments import instance, listed
from course_lib.record.job import Job

__all__ = ["overlap", "bubble", "span_seconds"]

Intervals = list[tuple[float, float]]


def overlap(job: Job, kinds: tuple[str, ...] = ("forward", "backward", "optimizer", "span")) -> pd.DataFrame:
    """One row per rank: compute_s, communication_s, both_s, hidden.

    compute_s: seconds in which the rank computed or was in a span of `measure.span`.
    communication_s: seconds in which a collective ran, waiting for other ranks included.
    both_s: seconds in which it did both at once.
    hidden: both_s / communication_s. All of the traced step.

    Args:
        kinds: what counts as computing, of the kinds in `job.timeline`; ("span",) leaves out what no
            `measure.span` names.
    """
    instance("job", job, Job, "what run returns")
    instance("kinds", kinds, tuple)
    rows = []
    for rank in range(job.ranks):
        mine = job.timeline[job.timeline["rank"] == rank]
        compute = _union(mine[mine["kind"].isin(kinds)])
        communication = _union(mine[mine["kind"] == "communication"])
        both = [(max(a, c), min(b, d)) for a, b in compute for c, d in communication if max(a, c) < min(b, d)]
        compute_s, communication_s, both_s = map(_seconds, (compute, communication, both))
        rows.append(
            {
                "rank": rank,
                "compute_s": compute_s,
                "communication_s": communication_s,
                "both_s": both_s,
                "hidden": both_s / communication_s if communication_s else 0.0,
            }
        )
    return pd.DataFrame(rows).set_index("rank")


def bubble(job: Job, names: Sequence[str] | None = None) -> float:
    """Return the idle share of a pipeline's traced step: 1 - busy / (ranks x length), for comparison with
    `theory.bubble_fraction`.

    busy: seconds in spans of `measure.span`, all ranks together; `mini.pipeline` makes one of every
        instruction. Waiting and sending count as idle.
    length: `span_seconds`.

    Args:
        names: of the spans that count, ["F", "B"] say. None: all.

    Errors: ValueError if the traced step has no such span.
    """
    spans = _spans(job, names)
    busy_s = sum(_seconds(_union(mine)) for _, mine in spans.groupby("rank"))
    return float(1 - busy_s / (job.ranks * _length_s(spans)))


def span_seconds(job: Job) -> float:
    """Return the seconds of the traced step from the start of the first span of `measure.span` to the end of
    the last one, whichever rank's they are.

    Errors: ValueError if the traced step has no span.
    """
    return _length_s(_spans(job))


def _spans(job: Job, names: Sequence[str] | None = None) -> pd.DataFrame:
    instance("job", job, Job, "what run returns")
    spans = job.timeline[job.timeline["kind"] == "span"]
    if names is not None:
        listed("names", names, "a list of names of spans", lambda name: isinstance(name, str))
        spans = spans[spans["name"].isin(names)]
    if spans.empty:
        called = f" called {' or '.join(names)}" if names else ""
        raise ValueError(
            f"{job.label} has no span{called} in its traced step: run two steps or more, each inside"
            " measure.step."
        )
    return spans


def _length_s(spans: pd.DataFrame) -> float:
    return float((spans["start_s"] + spans["seconds"]).max() - spans["start_s"].min())


def _union(pieces: pd.DataFrame) -> Intervals:
    """The pieces as intervals (start, end) in order, those that touch or overlap joined."""
    joined: Intervals = []
    for start, seconds in sorted(zip(pieces["start_s"], pieces["seconds"])):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], start + seconds)
        else:
            joined.append((start, start + seconds))
    return joined


def _seconds(intervals: Intervals) -> float:
    return sum(end - start for start, end in intervals)
