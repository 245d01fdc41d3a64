"""What mini.pipeline refuses, each in one sentence that says what happened and what to do. The ideas
themselves are in pipeline.py.
"""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["shared_weights", "other_outputs", "other_losses"]


def shared_weights(stages: Sequence[nn.Module]) -> None:
    """Each rank would train a copy of its own."""
    stage_of: dict[Tensor, int] = {}
    for stage, module in enumerate(stages):
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if stage_of.setdefault(tensor, stage) != stage:
                raise ValueError(
                    f"stages {stage_of[tensor]} and {stage} share a weight, {name} of stage {stage}, and"
                    " would be on two ranks: untie it, or cut elsewhere, with sizes."
                )


def other_outputs(output, stage: int, rank: int) -> None:
    """From stage to stage, one tensor travels."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"stage {stage}, on rank {rank}, returned a {type(output).__name__}: a stage takes one tensor and"
            " returns one."
        )


def other_losses(loss) -> Tensor:
    """The step's loss is a mean of micro-batches' means."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f"of the shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(
            f"loss_fn returned {shape}: it must be one number, the mean over the samples, as a tensor."
        )
    return loss
