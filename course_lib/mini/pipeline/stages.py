"""How a model is cut into the stages of a pipeline, and a batch into micro-batches.

A model says by `stages()` where it can be cut: three lists of modules that, one after the other, do what the
model does:

    first     what the first stage does before its layers: an embedding, say
    layers    what is dealt out to the stages: a pipeline can be cut between any two of them
    last      what the last stage does after its layers: a norm and a head, say

An nn.Sequential need not say it: it has layers only.
"""

import contextlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from course_lib.arguments import takes, whole
from course_lib.mini.pipeline import refusals as refuse

__all__ = ["split", "micro_batches", "synced"]


@takes(num_stages=partial(whole, most=4096), model=refuse.other_models)
def split(model: nn.Module, num_stages: int, sizes: Sequence[int] | None = None) -> list[nn.Sequential]:
    """Cut a model into stages that, one after the other, do what it does. They share its parameters: nothing
    is copied.

    Each rank builds the model from the same seed, keeps its own stage or stages, and lets go of the others.

    Args:
        model: an nn.Sequential, or a model with `stages()`, as those of `course_lib.models` (a language model
            untied: tied, its first and last stage would need one weight).
        num_stages: number of stages.
        sizes: how many layers each stage gets; None: as even as possible.

    Errors: ValueError if the sizes don't fit the model, or two stages would share a weight. TypeError for
        other models.
    """
    first, layers, last = ([], list(model), []) if isinstance(model, nn.Sequential) else model.stages()
    if sizes is None:
        sizes = [len(part) for part in torch.arange(len(layers), device="cpu").tensor_split(num_stages)]
    refuse.other_sizes(sizes, num_stages, len(layers))
    rest = iter(layers)
    parts = [[next(rest) for _ in range(size)] for size in sizes]
    parts[0] = [*first, *parts[0]]
    parts[-1] = [*parts[-1], *last]
    refuse.empty_stages(parts, len(layers))
    stages = [nn.Sequential(*part) for part in parts]
    refuse.shared_weights(stages)
    return stages


def micro_batches(
    name: str, batch: Tensor | None, count: int, stage: int, ranks: int, rank: int
) -> Sequence[Tensor]:
    """Return the micro-batches [batch / count, ...] of what `stage` needs; nothing on ranks without it."""
    if stage % ranks != rank:
        return ()
    refuse.other_batches(name, batch, count, stage, rank)
    return batch.chunk(count)


def synced(stage: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Let a DistributedDataParallel around a stage average in the stage's last backward only."""
    return stage.no_sync() if not last and hasattr(stage, "no_sync") else contextlib.nullcontext()
