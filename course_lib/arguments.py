"""Check arguments: each function returns the value, or raises a ValueError that says in one sentence what is allowed."""
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

__all__ = ["whole", "number", "one_of", "instance", "listed"]


def whole(name: str, value, least: int = 1, most: int = 2**62) -> int:
    """A whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        limit = f"of at least {least}" if most == 2**62 else f"from {least} to {most}"
        raise ValueError(f"{name}={_shown(value)}: it must be a whole number {limit}.")
    return value


def number(name: str, value, above: bool = False) -> float:
    """A finite number of at least 0, or above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0 or (above and value == 0):
        raise ValueError(f"{name}={_shown(value)}: it must be a number {'above 0' if above else 'of at least 0'}.")
    return value


def one_of(name: str, value, allowed):
    """One of `allowed`; where that is a dict, the entry for it."""
    if not isinstance(value, (str, int, type(None))) or isinstance(value, bool) or value not in allowed:
        raise ValueError(f"{name}={_shown(value)}: it must be one of {', '.join(map(repr, allowed))}.")
    return allowed[value] if isinstance(allowed, dict) else value


def instance(name: str, value, kind: type, hint: str = ""):
    """An instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}={_shown(value)}: it must be a {kind.__name__}{', ' + hint if hint else ''}.")
    return value


def listed(name: str, value, what: str, good: Callable[[object], bool] = lambda entry: True):
    """A list or tuple with one entry at least, each of them good; `what` says what such a list is."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value or not all(map(good, value)):
        raise ValueError(f"{name}={_shown(value)}: it must be {what}.")
    return value


def _shown(value) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else text[:57] + "..."
