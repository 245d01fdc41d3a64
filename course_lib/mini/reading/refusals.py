"""What mini.reading refuses, each in one sentence."""

import torch

from course_lib.arguments import dense, instance, listed, whole

__all__ = [
    "no_such_rank",
    "no_sizes",
    "no_losses",
    "other_weights",
    "other_states",
    "beyond_the_samples",
]


def no_such_rank(rank: int, ranks: int) -> None:
    """A rank is one of `ranks`."""
    whole("rank", rank, least=0, most=ranks - 1)


def no_sizes(name: str, sizes) -> None:
    """Sizes are a list of whole numbers, 0 too."""
    for size in listed(name, sizes, "a list with the number of samples of each file"):
        whole(f"a size in {name}", size, least=0)


def no_losses(name: str, losses) -> None:
    """Losses are floating-point numbers."""
    if not dense(name, losses).is_floating_point():
        raise TypeError(f"{name} are {losses.dtype}, and must be floating-point numbers.")


def other_weights(losses: torch.Tensor, weights: torch.Tensor | None) -> None:
    """A weight for each loss."""
    if weights is None:
        return
    if instance("weights", weights, torch.Tensor).shape != losses.shape:
        raise ValueError(f"weights are {list(weights.shape)}, and losses {list(losses.shape)}.")


def other_states(name: str, state) -> None:
    """A state is what `Steps.state_dict` returns."""
    if "trained" not in instance(name, state, dict):
        raise ValueError(f"{name}={state!r:.60}: it must be what state_dict returns, with the key 'trained'.")
    whole("trained", state["trained"], least=0)


def beyond_the_samples(place: int, samples: int) -> None:
    """A place is one of an epoch."""
    if place >= samples:
        raise ValueError(f"place={place}: an epoch has the places 0 to {samples - 1}.")
