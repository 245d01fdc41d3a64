"""Torch keeps some switches for each thread: gradients, inference, autocast, the default device."""

import contextlib
from collections.abc import Callable

import torch

__all__ = ["as_in_this_thread"]


def as_in_this_thread(function: Callable) -> Callable:
    """Return the function so that, in whatever thread it runs, it computes as this thread does now."""
    modes = _modes()

    def in_these_modes(*arguments):
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            return function(*arguments)

    return in_these_modes


def _modes() -> list[Callable[[], contextlib.AbstractContextManager]]:
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device, cached = torch.get_default_device(), torch.is_autocast_cache_enabled()
    modes = [lambda: torch.inference_mode(inference), lambda: torch.set_grad_enabled(grad)]
    if device != torch.device("cpu"):
        modes.append(lambda: torch.device(device))
    for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps")):
        dtype = torch.get_autocast_dtype(kind)
        modes.append(lambda kind=kind, dtype=dtype: torch.autocast(kind, dtype, cache_enabled=cached))
    return modes
