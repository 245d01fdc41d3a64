"""What mini.compression refuses, each in one sentence."""

from torch import Tensor

from course_lib.arguments import dense, number, whole

__all__ = ["no_key", "no_gradient", "no_share", "no_rank", "no_feedback", "other_shape"]


def no_key(name: str, key) -> None:
    """Whose gradient it is: something that a dict can hold."""
    try:
        hash(key)
    except TypeError:
        raise TypeError(f"{name} is a {type(key).__name__}: it must be the parameter, or its name.") from None


def no_gradient(name: str, gradient) -> None:
    """Numbers with a fraction, one at least."""
    dense(name, gradient)
    if not isinstance(gradient, Tensor) or not gradient.is_floating_point() or not gradient.numel():
        raise ValueError(f"{name}: it must be a tensor of floating point numbers, one at least.")


def no_share(name: str, share) -> None:
    """A part of all numbers."""
    if not 0 < number(name, share) <= 1:
        raise ValueError(f"{name}={share!r}: it must be above 0, and 1 at most.")


def no_rank(name: str, rank) -> None:
    """A rank of matrices."""
    whole(name, rank)


def no_feedback(name: str, state) -> None:
    """What averages gradients by parameter."""
    if not callable(getattr(state, "average", None)):
        raise TypeError(f"{name} is a {type(state).__name__}: it must be an ErrorFeedback.")


def other_shape(self, key, gradient: Tensor) -> None:
    """What was unsaid of this gradient before can be added to it."""
    before = self.memory.get(key, {}).get("unsaid", gradient)
    if before.shape != gradient.shape:
        raise ValueError(
            f"gradient is {list(gradient.shape)}, and was {list(before.shape)} before: each parameter needs"
            " a key of its own."
        )
