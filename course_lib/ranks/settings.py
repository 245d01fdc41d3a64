"""torch's global settings: a notebook may change them, and they do not travel to the ranks."""

import torch

__all__ = ["here", "lost"]

# the function of torch that changes it: its value in a new process, and how to read it
_SETTINGS = {
    "set_default_dtype": (torch.float32, torch.get_default_dtype),
    "set_float32_matmul_precision": ("highest", torch.get_float32_matmul_precision),
    "use_deterministic_algorithms": (False, torch.are_deterministic_algorithms_enabled),
}


def here() -> dict[str, object]:
    """What they are in this process, by the name of the function that changes each."""
    return {name: read() for name, (_, read) in _SETTINGS.items()}


def lost(in_rank: dict[str, object]) -> list[str]:
    """One sentence for each that was changed in this process, and that a rank has left as it is at first.

    in_rank: what `here` returned in a rank, after its function.
    """
    return [
        f"torch.{name}({value!r}) was called in the notebook, and did not reach the ranks: they had"
        f" {in_rank[name]!r}. Call it in the function that they run."
        for name, value in here().items()
        if value != _SETTINGS[name][0] == in_rank[name]
    ]
