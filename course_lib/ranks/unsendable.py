"""Find the variable because of which something cannot be sent, and name it as the learner would:
`trainer.guard`.
"""

import contextlib
import functools
import pickle
import types
from collections.abc import Iterable, Iterator

import cloudpickle.cloudpickle as cloudpickle
import torch

from course_lib import torch_internals

__all__ = ["culprit", "belongs_to_notebook"]

_NOTEBOOKS_OWN = {
    ("IPython.core.interactiveshell", "InteractiveShell"),
    ("IPython.core.autocall", "IPyAutocall"),
}
_DEEPEST = 20  # steps from the variable to its part
_PLAIN = (type(None), bool, int, float, complex, str, bytes, types.ModuleType)


def culprit(named: Iterable[tuple[str, object]], pickler: type[pickle.Pickler]) -> tuple[str, object, str]:
    """Its name, the innermost part that `pickler` cannot take, and why.

    Args:
        named: pairs of a name and a value, one of which cannot be pickled.
        pickler: its class, which takes a file.
    """
    name, value, why, seen = "something", None, "it cannot be pickled", set()
    # a learner's object may fail where it is looked at: then the name that is known so far
    with contextlib.suppress(Exception):
        for _ in range(_DEEPEST):
            for its_name, part in named:
                told = None if id(part) in seen or isinstance(part, _PLAIN) else _why_not(part, pickler)
                if told is not None:
                    name, value, why = its_name, part, told
                    break
            else:
                break
            if belongs_to_notebook(value):
                break
            seen.add(id(value))
            named = _parts(value, name)
    return name, value, why


def _why_not(value, pickler) -> str | None:
    try:
        pickler(_Nowhere()).dump(value)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


class _Nowhere:
    """A file that forgets what is written."""

    def write(self, data) -> int:
        return len(data)


def belongs_to_notebook(value) -> bool:
    """Whether this is IPython's shell, something bound to it (get_ipython, which ! and % call), or exit and
    quit.
    """
    owner = type(value.__self__ if isinstance(value, types.MethodType) else value)
    return any((kind.__module__, kind.__name__) in _NOTEBOOKS_OWN for kind in owner.__mro__)


def _parts(value, name: str) -> Iterator[tuple[str, object]]:
    """What is pickled with a value, each part by its name. A function's variables have names of their own."""
    if isinstance(value, types.MethodType):
        yield "self", value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield from ((f"an argument of {name}", part) for part in value.args)
        yield from _parts(value.func, name)
        yield from value.keywords.items()
    elif isinstance(value, types.FunctionType):
        yield from (
            (n, cell.cell_contents)
            for n, cell in zip(value.__code__.co_freevars, value.__closure__ or ())
            if not _is_empty(cell)
        )
        yield from (
            (n, value.__globals__[n])
            for n in cloudpickle._extract_code_globals(value.__code__)
            if n in value.__globals__
        )
        yield from (
            (f"{name}'s default value", part)
            for part in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        )
        yield from ((f"{name}.{n}", part) for n, part in vars(value).items())
    elif isinstance(value, type):
        yield from ((base.__name__, base) for base in value.__bases__)
        yield from (
            (f"{name}.{n}", part) for n, part in vars(value).items() if n not in ("__dict__", "__weakref__")
        )
    elif isinstance(value, (classmethod, staticmethod)):
        yield name, value.__func__
    elif isinstance(value, property):
        yield from ((name, part) for part in (value.fget, value.fset, value.fdel))
    elif isinstance(value, functools._lru_cache_wrapper):
        yield name, value.__wrapped__
    elif isinstance(value, functools.cached_property):
        yield name, value.func
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"a member of {name}", part) for part in value)
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
        yield from ((f"a key of {name}", key) for key in value)
    elif isinstance(value, torch.nn.Module):
        yield type(value).__name__, type(value)
        yield from ((f"{name}.{n}", part) for n, part in torch_internals.held_by_module(value).items())
    else:
        yield from _parts_of_instance(value, name)


def _parts_of_instance(value, name: str) -> Iterator[tuple[str, object]]:
    try:
        _, arguments, *rest = value.__reduce_ex__(5)
    except Exception:  # this is what cannot be pickled
        return
    # with __slots__: (__dict__, slots)
    states = rest[0] if rest and isinstance(rest[0], tuple) else rest[:1]
    for state in states:
        if isinstance(state, dict):
            yield from ((f"{name}.{n}", part) for n, part in state.items())
    yield from ((part.__name__ if isinstance(part, type) else name, part) for part in arguments)


def _is_empty(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (an empty one raises)
    except ValueError:
        return True
    return False
