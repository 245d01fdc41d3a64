"""What mini.parameter_server refuses, each in one sentence."""

import torch

from course_lib.arguments import dense

__all__ = ["other_weights", "other_gradient"]


def other_weights(name: str, params) -> None:
    """One vector, whose numbers can hold a version as well."""
    dense(name, params)
    if params.dtype not in (torch.float32, torch.float64) or params.ndim != 1 or not params.numel():
        raise TypeError(
            f"{name}: it must be float32 or float64 [numel], not {params.dtype} {list(params.shape)}."
        )


def other_gradient(found, params: torch.Tensor) -> torch.Tensor:
    """A gradient is as large as the weights."""
    if not isinstance(found, torch.Tensor) or found.shape != params.shape:
        shown = f"{list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"gradient must return {list(params.shape)}, as the weights are, not {shown}.")
    return found.detach()
