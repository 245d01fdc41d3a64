"""What if there were more micro-batches: schedules of a pipeline, their bubble, and what a rank keeps."""

import pandas as pd
from matplotlib.axes import Axes

from course_lib import plots
from course_lib.explore.panel import Explorer
from course_lib.mini.pipeline import on_paper

__all__ = ["schedules"]

STAGES, MICROBATCHES = (2, 3, 4, 6, 8), (1, 2, 4, 6, 8, 12, 16, 24)
CHUNKS = 2  # stages of a rank, where they are interleaved


def schedules() -> Explorer:
    """A schedule on paper: who does what when, the bubble, and for how many micro-batches each rank keeps
    activations at once.
    """

    def draw(kind, ranks, microbatches) -> tuple[Axes, pd.DataFrame]:
        chunks = CHUNKS if kind == "interleaved" else 1
        if kind == "interleaved":  # it wants whole rounds
            microbatches = ranks * max(1, round(microbatches / ranks))
        played = on_paper.blocks(kind, ranks, microbatches, chunks)
        bubble, length = on_paper.idle_share(played), max(block.end for block in played)
        title = f"{kind}, {microbatches} micro-batches: bubble {bubble:.0%}"
        ax = plots.schedule(played, title=title)
        table = pd.DataFrame(
            {
                "busy": {rank: f"{_busy(played, rank) / length:.0%}" for rank in range(ranks)},
                "kept at once": {rank: f"{_kept(played, rank) / chunks:g}" for rank in range(ranks)},
            }
        )
        table.index.name = "rank"
        return ax, table

    controls = {"kind": tuple(on_paper.KINDS), "ranks": STAGES, "microbatches": MICROBATCHES}
    return Explorer("Schedules of a pipeline", controls, draw, kind="1f1b", ranks=4, microbatches=8)


def _busy(played: list, rank: int) -> float:
    return sum(block.end - block.begin for block in played if block.rank == rank)


def _kept(played: list, rank: int) -> int:
    """Most forwards of a rank whose backward is not over, in micro-batches of one of its stages."""
    mine = [block for block in played if block.rank == rank]
    last = {(block.stage, block.microbatch): block.end for block in mine if block.op != "forward"}
    begun = [(block.begin, last[block.stage, block.microbatch]) for block in mine if block.op == "forward"]
    return max(sum(begin <= at < end for begin, end in begun) for at, _ in begun)
