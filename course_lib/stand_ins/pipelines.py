"""Schedules of a pipeline that run: the ranks, their order and their messages are real, their stages sleep.

A rank that sleeps needs no core, so eight of them fit on two. A figure of such a run must say that compute
sleeps: the job's label does.
"""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib import measure
from course_lib.arguments import number, one_of, whole
from course_lib.jobs import RankWarning, run_quietly
from course_lib.mini.pipeline import Pipeline, on_paper
from course_lib.record import Job
from course_lib.stand_ins.sleeping import SleepingStage

__all__ = ["run_asleep"]


def run_asleep(kind: str, ranks: int, num_microbatches: int, chunks: int = 1, forward_s: float = 0.03) -> Job:
    """Run a schedule by name: a step to warm up, and one in which stages sleep, which is traced.

    Args:
        kind: one of `mini.pipeline.on_paper.KINDS`.
        chunks: stages of each rank, of "interleaved"; together they sleep as long as one would.
        forward_s: seconds for a forward of one of p equal stages; a backward sleeps twice as long.

    Errors: those of `run`, and ValueError for a schedule that cannot be.
    """
    one_of("kind", kind, on_paper.KINDS)
    whole("ranks", ranks, most=64)
    whole("num_microbatches", num_microbatches, most=4096)
    whole("chunks", chunks, most=64)
    number("forward_s", forward_s, above=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # that they share cores: they sleep
        return run_quietly(
            _train, kind, num_microbatches, chunks, forward_s, ranks=ranks, label=f"{kind}, compute sleeps"
        )


def _train(kind: str, num_microbatches: int, chunks: int, forward_s: float) -> None:
    more = (chunks,) if kind == "interleaved" else ()
    schedule = on_paper.KINDS[kind](dist.get_world_size(), num_microbatches, *more)
    stages = [SleepingStage(0.0, 0.0) for _ in range(chunks)]
    pipeline, batch = Pipeline(stages, schedule, _mean), torch.zeros(num_microbatches, 8)
    with measure.step(pipeline):  # connections open; nobody sleeps
        pipeline.step(batch, batch)
    for stage in stages:
        stage.forward_s, stage.backward_s = forward_s / chunks, 2 * forward_s / chunks
    dist.barrier()
    with measure.step(pipeline):
        pipeline.step(batch, batch)


def _mean(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()
