"""Checks of the chapter "Clinic"."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import Demand, at_most, sends, values
from course_lib.clinic.scenes import Scene, clipped, mean_over, of_each

__all__ = ["mended_ada", "mended_ben", "mended_cleo", "mended_dora", "mended_emil"]

# what each of the five is asked for
_ASKED = dict(
    ends=Demand("it ends, on every rank", lambda job: ""),
    weights=values(
        "every rank has the weights of one process",
        "the weights are not those of one process with all ranks' batches (relative error {error:.2g}).",
    ),
    once=at_most(
        "each sample goes through the model of its own rank, once",
        "strangers",
        0,
        "{most} samples too many went through a model: each rank's model takes the batches of its own rank,"
        " once. Gradients travel, samples do not.",
    ),
    bytes=sends(
        "an all_reduce of all gradients a step, and one broadcast of the weights",
        lambda job: job.results[0]["bytes"],
        "rank {rank} sends {times:.2f} times as much as is needed ({sent:,.0f} bytes). Each gradient travels"
        " once in a step, in an all_reduce; beside it, a number or two.",
    ),
)


def _seen(judge: Judge, mended: Callable, name: str, wrong: dict[str, Callable]) -> None:
    """Let a mended patient train on cases of its own, while a rank comes late.

    Args:
        wrong: what wrong numbers may be, in words: the gradient of a step in that way.
    """

    def train(mended, scene):
        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        found = {"error": 0.0, "looks": "", "strangers": 0, "bytes": scene.bytes()}
        wanted = scene.taught()
        for turn in range(2):  # the second is traced and judged
            model, seen = scene.model(rank), []
            model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
            optimizer, batches = scene.optimizer(model), scene.batches(rank)
            if turn and rank == scene.seed % n:
                on_rank.come_late("visit")
            with measure.step():
                mended(model, optimizer, batches)
            if turn:
                on_rank.is_back("visit")
        now = on_rank.flat(model.parameters())
        start = on_rank.flat(scene.model().parameters())
        found["error"] = on_rank.apart(now - start, wanted - start)
        found["strangers"] = max(0, sum(seen) - sum(len(y) for _, y in scene.batches(rank)))
        if found["error"] > 1e-9:
            guesses = {words: scene.taught(gradient) for words, gradient in wrong.items()}
            found["looks"] = on_rank.looks(now, guesses)
        return found

    scene = Scene(name, judge.seed)
    judge.tried("", train, mended, scene, ranks=scene.ranks)


@exercise(**_ASKED)
def mended_ada(judge: Judge, mended: Callable) -> None:
    """A rank may have fewer batches: a step is the mean over all samples that there are in it."""

    def by_all_ranks(model, batches):
        return mean_over(3, of_each(model, batches))

    def without_the_last(model, batches):
        return mean_over(3, of_each(model, batches)) if len(batches) == 3 else None

    _seen(
        judge,
        mended,
        "ada",
        {
            "divided by the number of all ranks, also in a step for which one has no batch: divide by the"
            " samples that there are": by_all_ranks,
            "without the steps that not all ranks can make: nothing that a rank has may be left out": (
                without_the_last
            ),
        },
    )


@exercise(**_ASKED)
def mended_ben(judge: Judge, mended: Callable) -> None:
    """A step in which any rank's loss is not finite is left out, by all."""

    def of_the_others(model, batches):
        good = [batch for batch in batches if batch[0].isfinite().all()]
        return mean_over(len(good), of_each(model, good))

    def with_nothing(model, batches):
        good = [batch for batch in batches if batch[0].isfinite().all()]
        return mean_over(3, of_each(model, good))

    def a_step_of_zeros(model, batches):
        if all(batch[0].isfinite().all() for batch in batches):
            return mean_over(3, of_each(model, batches))
        return [torch.zeros_like(p) for p in model.parameters()]

    _seen(
        judge,
        mended,
        "ben",
        {
            "made of the steps without the bad rank: all ranks must leave such a step out": of_the_others,
            "made of the steps with a gradient of zeros from the bad rank: all ranks must leave such a step"
            " out": with_nothing,
            "moved in a step to be left out: with momentum, a gradient of zeros moves weights, too": (
                a_step_of_zeros
            ),
        },
    )


@exercise(**_ASKED)
def mended_cleo(judge: Judge, mended: Callable) -> None:
    """The gradient of the whole batch is clipped, and not that of each rank."""

    def each_clipped(model, batches):
        return mean_over(3, [clipped(one) for one in of_each(model, batches)])

    def never(model, batches):
        return mean_over(3, of_each(model, batches))

    _seen(
        judge,
        mended,
        "cleo",
        {
            "the mean of gradients that were clipped before: what must be clipped is the mean": each_clipped,
            "never clipped": never,
        },
    )


@exercise(**_ASKED)
def mended_dora(judge: Judge, mended: Callable) -> None:
    """Ranks begin with other weights: those of rank 0 count."""
    _seen(judge, mended, "dora", {})


@exercise(**_ASKED)
def mended_emil(judge: Judge, mended: Callable) -> None:
    """The values are right, and the bytes are too many."""
    _seen(judge, mended, "emil", {})
