"""What one reads off a job's tables: bytes sent, bytes held, calls, seconds and samples. One meaning each."""

from collections.abc import Sequence
from numbers import Integral

import pandas as pd

from course_lib.arguments import instance, listed, one_of
from course_lib.collectives import COLLECTIVES, of_kind
from course_lib.record.job import Job
from course_lib.record.tables import CATEGORIES

__all__ = ["sent", "held", "calls", "step_seconds", "samples_per_second"]


def sent(
    job: Job,
    steps: Sequence[int] | None = None,
    layer: str = "wire",
    ops: Sequence[str] | None = None,
    over: str = "median",
    groups: Sequence[str] | None = None,
) -> pd.Series:
    """Return the bytes that each rank sent in one step.

    Args:
        steps: numbers of the steps to look at. None: all but the warm-up, which are the traced step and the
            timed ones.
        layer: "wire", what the operating system counted; "algorithm", what textbook algorithms send for the
            collectives of the traced step; "payload", the tensors that were handed to them. Where the system
            cannot count (`job.absent` says why), "wire" gives "algorithm" too; but for given `steps`, which
            were not traced perhaps, it gives nan.
        ops: of these collectives alone, ["send"] say; with ["recv"], the payload is what came in. None: of
            all but recv, which sends nothing. The wire does not know them apart.
        over: "median" or "max", which of its steps stands for a rank.
        groups: in these groups alone, as `Job.comm` names them: ["0,2"]. None: in all. The wire does not know
            them apart, either.

    Returns:
        float64, index `rank`; 0 for a rank that has measured no such step. Its name says which layer it
        holds: "wire_bytes", "algorithm_bytes" or "payload_bytes".

    Errors: ValueError if no step was traced, or none of `steps` was measured; for `steps` of another layer
        than "wire": collectives are traced in one step only; and for `ops` or `groups` of the wire.
    """
    _require_traced(job)
    one_of("layer", layer, ("wire", "algorithm", "payload"))
    one_of("over", over, ("median", "max"))
    if steps is not None:
        listed("steps", steps, "a list of the numbers of steps", lambda step: isinstance(step, Integral))
        if layer != "wire":
            raise ValueError(
                f'steps: collectives are traced in one step only, so layer="{layer}" takes none.'
            )
    if ops is not None:
        listed("ops", ops, f"a list of some of {', '.join(COLLECTIVES)}", _is_collective)
        if layer == "wire":
            raise ValueError('ops: the wire does not know collectives apart; take layer="algorithm".')
    if groups is not None:
        listed("groups", groups, 'a list of groups, such as ["0,2"]', lambda name: isinstance(name, str))
        if layer == "wire":
            raise ValueError('groups: the wire does not know groups apart; take layer="algorithm".')
    if layer != "wire" or (steps is None and "wire bytes" in job.absent):
        comm = job.comm
        comm = comm[~comm["op"].isin(of_kind("receive")) if ops is None else comm["op"].isin(ops)]
        if groups is not None:
            comm = comm[comm["group"].isin(groups)]
        column = "payload_bytes" if layer == "payload" else "algorithm_bytes"
        return _per_rank(job, comm.groupby("rank")[column].sum())
    rows = job.steps[job.steps["phase"] != "warm-up" if steps is None else job.steps["step"].isin(steps)]
    if rows.empty:
        raise ValueError(f"{job.label} has measured no step with a number of {list(steps or [])}.")
    return _per_rank(job, rows.groupby("rank")["wire_bytes"].agg(over))


def held(job: Job) -> pd.DataFrame:
    """Return the bytes that each rank held in the traced step, by what they were for (see `Job.memory`).

    Returns:
        int64, a row per rank, a column per category that was counted: params, grads, optimizer_states and
        buffers right after the optimizer's step; activations, the most that was saved for backward; other, on
        a GPU; peak, which is beside them and not one of them.

    Errors: ValueError if no memory was counted.
    """
    _require_traced(job)
    if job.memory.empty:
        raise ValueError(
            f"{job.label} counted no memory: tell measure.step what to count, as in `with measure.step(model,"
            " optimizer):`."
        )
    table = job.memory.pivot_table(index="rank", columns="category", values="bytes", aggfunc="sum")
    table = table.reindex(range(job.ranks)).fillna(0).astype("int64").rename_axis(index="rank")
    return table[[category for category in (*CATEGORIES, "peak") if category in table]]


def calls(job: Job, barriers: bool = False) -> pd.DataFrame:
    """Return how often each rank called each collective, send and receive in the traced step.

    Args:
        barriers: whether they are counted, too. A barrier carries no data.

    Returns:
        int64, a row per rank, a column per operation that any rank called, in the order of the first calls.

    Errors: ValueError if no step was traced.
    """
    _require_traced(job)
    comm = job.comm if barriers else job.comm[~job.comm["op"].isin(of_kind("meeting"))]
    table = pd.crosstab(comm["rank"], comm["op"]).reindex(range(job.ranks), fill_value=0)
    return table[list(comm["op"].unique())].rename_axis(index="rank", columns="op")


def step_seconds(job: Job) -> pd.Series:
    """Return the seconds of each timed step, of its slowest rank: the others wait for it sooner or later.

    Of these numbers take the median for a usual step, and the smallest for the least disturbed one.

    Returns:
        float64, index `step`.

    Errors: ValueError if no step was timed.
    """
    instance("job", job, Job, "what run returns")
    timed = job.steps.dropna(subset="seconds")
    if timed.empty:
        raise ValueError(f"{job.label} has timed no step: run three steps or more, each inside measure.step.")
    return timed.groupby("step")["seconds"].max()


def samples_per_second(job: Job) -> float:
    """Return the samples that all ranks together worked through in a timed step, per second.

    Samples of the usual timed step (of each step, those of all ranks are added up; the median over steps),
    over the seconds of the usual one (the median of `step_seconds`, which are those of the slowest rank).

    Returns:
        samples per second of the whole job; nan if `measure.step` was not told `samples`.

    Errors: ValueError if no step was timed.
    """
    seconds = step_seconds(job)
    samples = job.steps[job.steps["phase"] == "timed"].groupby("step")["samples"].sum().median()
    return float(samples / seconds.median()) if samples else float("nan")


def _require_traced(job: Job) -> None:
    instance("job", job, Job, "what run returns")
    if not (job.steps["phase"] == "traced").any():
        raise ValueError(
            f"{job.label} has traced no step: run two steps or more, each inside `with measure.step(model,"
            " optimizer):`; the second one is traced."
        )


def _is_collective(op: object) -> bool:
    return isinstance(op, str) and op in COLLECTIVES


def _per_rank(job: Job, values: pd.Series) -> pd.Series:
    return values.astype(float).reindex(range(job.ranks), fill_value=0.0).rename_axis("rank")
