"""A function for each rank: what the roles are called, and ranks in words."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

__all__ = ["functions_of", "roles_of", "label_of", "rank_name", "ranks_in_words", "begun"]


def functions_of(fn: Callable | Sequence[Callable]) -> list[Callable]:
    """All that `run` was given to run: one function, or one for each rank."""
    return list(fn) if isinstance(fn, (list, tuple)) else [fn]


def roles_of(fn: Callable | Sequence[Callable]) -> list[str]:
    """What each rank is, by the name of its function; nothing where all ranks run one function."""
    return [_name(each) for each in fn] if isinstance(fn, (list, tuple)) else []


def label_of(fn: Callable | Sequence[Callable]) -> str:
    """A name for a job: "train", or "serve and work" of several functions."""
    return _listed(list(dict.fromkeys(map(_name, functions_of(fn)))))


def rank_name(rank: int, roles: Sequence[str] = ()) -> str:
    """What begins a line, or stands beside an axis: "rank 0", or "rank 0, serve"."""
    return f"rank {rank}, {roles[rank]}" if roles else f"rank {rank}"


def ranks_in_words(ranks: Iterable[int], roles: Sequence[str] = ()) -> str:
    """Within a sentence: "rank 1", "ranks 0 and 2", "ranks 0, 1 and 3"; with roles "rank 0 (serve)", "ranks 1
    and 2 (work)", "ranks 0 (serve) and 1 (work)".
    """
    ranks = sorted(ranks)
    names = [str(rank) for rank in ranks]
    of_one = {roles[rank] for rank in ranks} if roles else set()
    if len(of_one) > 1:
        names = [f"{rank} ({roles[rank]})" for rank in ranks]
    shared = f" ({of_one.pop()})" if len(of_one) == 1 else ""
    return f"rank{'s' * (len(names) > 1)} {_listed(names)}{shared}"


def begun(sentence: str) -> str:
    """With a capital; a role keeps its own letters."""
    return sentence[:1].upper() + sentence[1:]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _name(function: Callable) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
