"""Check arguments: each function returns the value, or raises an error that says in one sentence what is
allowed. `takes` has them called before the body of a function begins; `fits` looks at several together.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TypeVar

__all__ = [
    "takes",
    "fits",
    "whole",
    "number",
    "at_least_0",
    "one_of",
    "instance",
    "listed",
    "function",
    "process_group",
    "dense",
    "summable",
]

Body = TypeVar("Body", bound=Callable)


def takes(**checks: type | Callable[[str, object], object]) -> Callable[[Body], Body]:
    """Decorate a function so that its arguments are checked, in this order, before its body begins.

        @takes(tensor=dense, size=partial(whole, most=8), module=nn.Module)
        def send(tensor, size, module=None): ...

    Args:
        checks: for each parameter a type, or a function of its name and value that raises an error if the
            value cannot be, as those below do. What is not given, and so has its default, is not looked at.
    """

    def decorate(body: Body) -> Body:
        names = list(inspect.signature(body).parameters)

        @functools.wraps(body)
        def checked(*args, **kwargs):
            given = dict(zip(names, args)) | kwargs
            for name, check in checks.items():
                if name in given and isinstance(check, type):
                    instance(name, given[name], check)
                elif name in given:
                    check(name, given[name])
            return body(*args, **kwargs)

        return checked

    return decorate


def fits(check: Callable[..., object]) -> Callable[[Body], Body]:
    """Decorate a function so that `check` looks at several of its arguments together, before its body begins.

        def at_home(rank, size): ...        # raises an error if there is no such rank

        @fits(at_home)
        def place(rank, size, names=()): ...

    Args:
        check: a function whose parameters have the names of those that it looks at. It gets defaults as well.
    """
    wanted = list(inspect.signature(check).parameters)

    def decorate(body: Body) -> Body:
        parameters = inspect.signature(body).parameters
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

        @functools.wraps(body)
        def checked(*args, **kwargs):
            given = defaults | dict(zip(parameters, args)) | kwargs
            if all(name in given for name in wanted):  # else python itself says what is missing
                check(*[given[name] for name in wanted])
            return body(*args, **kwargs)

        return checked

    return decorate


def whole(name: str, value, least: int = 1, most: int = 2**62) -> int:
    """A whole number from `least` to `most`."""
    if type(value) is int and least <= value <= most:  # to ask an abstract class takes longer
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        limit = f"of at least {least}" if most == 2**62 else f"from {least} to {most}"
        raise ValueError(f"{name}={_shown(value)}: it must be a whole number {limit}.")
    return value


def number(name: str, value, above: bool = False, finite: bool = True) -> float:
    """A number of at least 0, or above 0; finite, or float("inf") as well."""
    if type(value) in (float, int) and 0 < value < math.inf:  # to ask an abstract class takes longer
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or math.isnan(value)
        or (finite and math.isinf(value))
        or value < 0
        or (above and value == 0)
    ):
        raise ValueError(
            f"{name}={_shown(value)}: it must be a number {'above 0' if above else 'of at least 0'}."
        )
    return value


def at_least_0(name: str, value) -> float:
    """A number of at least 0, or float("inf")."""
    return number(name, value, finite=False)


def one_of(name: str, value, allowed):
    """One of `allowed`; where that is a dict, the entry for it."""
    if not isinstance(value, (str, int, type(None))) or isinstance(value, bool) or value not in allowed:
        raise ValueError(f"{name}={_shown(value)}: it must be one of {', '.join(map(repr, allowed))}.")
    return allowed[value] if isinstance(allowed, dict) else value


def instance(name: str, value, kind: type, hint: str = ""):
    """An instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name}={_shown(value)}: it must be {'an' if kind.__name__[0] in 'AEIO' else 'a'}"
            f" {kind.__name__}{', ' + hint if hint else ''}."
        )
    return value


def function(name: str, value) -> Callable:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name}={_shown(value)}: it must be a function.")
    return value


def process_group(name: str, value):
    """A process group of this rank, or None, which stands for all ranks."""
    from torch.distributed import ProcessGroup  # here: who only calculates need not wait for torch

    if value is not None and not isinstance(value, ProcessGroup):
        raise TypeError(
            f"{name}={_shown(value)}: it must be a process group with this rank in it, or None for all ranks."
        )
    return value


def dense(name: str, value):
    """A tensor whose elements lie in memory one by one, as they are sent."""
    from torch import Tensor, strided

    instance(name, value, Tensor)
    if value.layout != strided or value.is_quantized or value.is_conj():
        raise TypeError(
            f"{name} is sparse, quantized or a conjugate view: only dense tensors are sent, so call"
            " to_dense(), dequantize() or resolve_conj()."
        )
    return value


def summable(name: str, value):
    """A dense tensor of a dtype that can be added up."""
    dense(name, value)
    try:
        value.new_zeros(1).add_(value.new_zeros(1))
    except RuntimeError:
        raise TypeError(
            f"{name} is {value.dtype}, which torch cannot add up: convert it first, to torch.bfloat16 say."
        ) from None
    return value


def listed(name: str, value, what: str, good: Callable[[object], bool] = lambda entry: True):
    """A list or tuple with one entry at least, each of them good; `what` says what such a list is."""
    if (
        not isinstance(value, Sequence)
        or isinstance(value, (str, bytes))
        or not value
        or not all(map(good, value))
    ):
        raise ValueError(f"{name}={_shown(value)}: it must be {what}.")
    return value


def _shown(value) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a learner's own class, say
        text = f"a {type(value).__name__}"
    return text if len(text) < 60 else text[:57] + "..."
