"""What mini.compression refuses, each in one sentence."""

from torch import Tensor

from course_lib.arguments import dense, number, whole

__all__ = ["no_key", "no_gradient", "no_share", "no_rank"]


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
