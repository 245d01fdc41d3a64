"""What mini.local_sgd refuses, each in one sentence."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from course_lib.arguments import number, whole

__all__ = ["other_params", "other_rate", "other_momentum", "other_number"]


def other_params(name: str, params) -> None:
    """Parameters that can be averaged. (An iterator is not looked at: it would be used up.)"""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"{name}: it must be a list of parameters, such as list(model.parameters()).")
    if not isinstance(params, Iterator) and not (list(params) and all(map(_real, params))):
        raise TypeError(f"{name}: it must be a list of one or more parameters, of floating point.")


def _real(p) -> bool:
    return isinstance(p, Tensor) and p.is_floating_point()


def other_rate(name: str, rate) -> None:
    """A learning rate, or none."""
    if rate is not None:
        number(name, rate, above=True)


def other_momentum(name: str, momentum) -> None:
    """From 0 to 1."""
    if number(name, momentum) > 1:
        raise ValueError(f"{name}={momentum!r}: it must be a number from 0 to 1.")


def other_number(name: str, count) -> None:
    """How many samples: 0 or more."""
    whole(name, count, least=0, most=2**24)
