"""What if there were more micro-batches: schedules of a pipeline, their bubble, and what a rank keeps; on
paper, and as they run.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from course_lib import plots
from course_lib.explore.panel import Explorer
from course_lib.mini.pipeline import on_paper
from course_lib.record import Job, bubble, overlap, span_seconds

__all__ = ["schedules"]

STAGES, MICROBATCHES = (2, 3, 4, 6, 8), (1, 2, 4, 6, 8, 12, 16, 24)
CHUNKS = 2  # stages of a rank, where they are interleaved
FORWARD_S = 0.03  # what a forward of a stage sleeps, where it runs


def schedules() -> Explorer:
    """A schedule on paper: who does what when, the bubble, and for how many micro-batches each rank keeps
    activations at once.

    In JupyterLab the button "run it" runs what is shown as a job, with stages that sleep, and puts its real
    timeline under the drawn one.
    """
    jobs: dict[tuple, Job] = {}  # of the states that have been run

    def act(kind, ranks, microbatches) -> None:
        from course_lib.stand_ins.pipelines import run_asleep  # here: a picture alone needs no torch

        microbatches, chunks = _fitting(kind, ranks, microbatches)
        jobs[kind, ranks, microbatches] = run_asleep(kind, ranks, microbatches, chunks, FORWARD_S)

    def draw(kind, ranks, microbatches) -> tuple[Axes, pd.DataFrame]:
        asked = microbatches
        microbatches, chunks = _fitting(kind, ranks, microbatches)
        played, job = (
            on_paper.blocks(kind, ranks, microbatches, chunks),
            jobs.get((kind, ranks, microbatches)),
        )
        idle, length = on_paper.idle_share(played), max(block.end for block in played)
        several = f"{microbatches} micro-batch{'es' * (microbatches > 1)}"
        if microbatches != asked:
            several += f" (not {asked}: in rounds of {ranks})"
        title = f"{kind}, {several}: bubble {idle:.0%}"
        table = {
            "busy": {rank: f"{1 - on_paper.idle_share(played, rank):.0%}" for rank in range(ranks)},
            # of a rank with several stages, each is a part of the model's share
            "kept at once": {k: f"{most / chunks:g}" for k, most in enumerate(on_paper.in_flight(played))},
        }
        if job is None:
            ax = plots.schedule(played, title=title)
        else:
            ax = _above_its_job(played, title, job, length)
            busy = overlap(job, ("span",))["compute_s"] / span_seconds(job)
            table["busy, as it ran"] = {rank: f"{share:.0%}" for rank, share in busy.items()}
        table = pd.DataFrame(table)
        table.index.name = "rank"
        return ax, table

    controls = {"kind": tuple(on_paper.KINDS), "ranks": STAGES, "microbatches": MICROBATCHES}
    start = {"kind": "1f1b", "ranks": 4, "microbatches": 8}
    return Explorer("Schedules of a pipeline", controls, draw, ("run it", act), **start)


def _fitting(kind: str, ranks: int, microbatches: int) -> tuple[int, int]:
    """Micro-batches, and stages of a rank: interleaved, it wants whole rounds."""
    if kind == "interleaved":
        return ranks * max(1, round(microbatches / ranks)), CHUNKS
    return microbatches, 1


def _above_its_job(played: list, title: str, job: Job, length: float) -> Axes:
    """What was drawn, and what has run, on axes of one length in time."""
    ratio = span_seconds(job) / (length * FORWARD_S)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 2 * (1.3 + 0.42 * job.ranks)))
    longest = max(1.0, ratio)
    plots.schedule(played, title=title, ax=above, times=longest)
    ran = f"As it ran, compute sleeps: {ratio:.2f} times as long, bubble {bubble(job):.0%}"
    plots.schedule(job, title=ran, ax=below, times=longest / ratio)
    return above
