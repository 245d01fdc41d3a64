"""Whether ranks computed what one process computes."""

from numbers import Real
from typing import Any

import numpy as np

from course_lib.arguments import instance
from course_lib.record.job import Job

__all__ = ["parity"]

# What one rank returned, taken apart: each thing by itself, as its named parts.
Things = list[dict[object, np.ndarray]]


def parity(job: Job | list, reference: Job | list, of: Any = None, start: Any = None) -> float:
    """Return the largest relative error, over the ranks, of what they returned: 0 is perfect parity.

    The error of a thing is |found - wanted| / |wanted|, as lengths of vectors, in float64. A tensor, an
    array, a number or a list of numbers is one thing. So is a dict of them, in named parts: a rank may have
    some of the parts, like a stage of a pipeline, and all ranks together have every one. Of a tuple, or a
    list of other things, each is looked at alone, and the largest error counts.

    Args:
        job: a Job, or a list with what each rank returned.
        reference: what they should have returned: a Job of one process, or of as many ranks, of which each is
            compared with its own; or a list, likewise.
        of: where functions return dicts or tuples: the key or position of what is compared.
        start: key or position at which the reference holds what there was before training. The error is then
            |found - wanted| / |wanted - start|, relative to how far training has moved. (A few steps change
            weights only a little: beside their length, even a large error would look small.)

    Returns:
        At least 0; inf if something should have no length, and has one; nan if a rank returned a nan.

    Errors: TypeError for what is no number (a saved job keeps tensors as text only); ValueError if forms,
        shapes or numbers of ranks don't match.
    """
    found = _by_rank("job", job, of)
    wanted = _for_each_rank(_by_rank("reference", reference, of), len(found))
    if start is None:
        begun = [_zeros_like(things) for things in wanted]
    else:
        begun = _for_each_rank(_by_rank("reference", reference, start), len(found))
    errors = [
        _error(f"rank {rank}", *things) for rank, things in enumerate(zip(found, wanted, begun, strict=True))
    ]
    if lost := _names(wanted) - _names(found):
        raise ValueError(f"no rank returned {min(map(str, lost))!r}, which the reference has.")
    return float(np.max(errors))


def _error(who: str, found: Things, wanted: Things, start: Things) -> float:
    """The largest error of one rank's things."""
    if not len(found) == len(wanted) == len(start):
        raise ValueError(f"{who} returned {len(found)} things, and {len(wanted)} are expected.")
    errors = [0.0]
    for thing, right, begun in zip(found, wanted, start, strict=True):
        if not thing or not set(thing) <= set(right) or set(begun) != set(right):
            raise ValueError(f"{who} returned parts of other names than the reference.")
        apart = _distance(who, [(thing[name], right[name]) for name in thing])
        scale = _distance("start", [(begun[name], right[name]) for name in right])
        errors.append(apart / scale if scale else float("inf") if apart else 0.0)
    return float(np.max(errors))


def _distance(who: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    for one, other in pairs:
        if one.shape != other.shape:
            raise ValueError(f"{who} has numbers of shape {one.shape}, and {other.shape} is expected.")
    return float(np.sqrt(sum(np.square(one - other).sum() for one, other in pairs)))


def _zeros_like(things: Things) -> Things:
    return [{name: np.zeros(part.shape) for name, part in thing.items()} for thing in things]


def _by_rank(name: str, source: Job | list, key: Any) -> list[Things]:
    values = source.results if isinstance(source, Job) else source
    if not instance(name, values, list, "of what each rank returned, or a Job"):
        raise ValueError(f"{name}=[]: it must hold what one rank returned, at least.")
    whose = [f"rank {rank}" if name == "job" else "the reference" for rank in range(len(values))]
    return [_things(who, _entry(who, value, key)) for who, value in zip(whose, values, strict=True)]


def _for_each_rank(values: list[Things], ranks: int) -> list[Things]:
    if len(values) not in (1, ranks):
        raise ValueError(
            f"the reference is of {len(values)} ranks: it must be of one, or of {ranks} like the job."
        )
    return values if len(values) == ranks else values * ranks


def _entry(who: str, value, key: Any):
    if key is None:
        return value
    try:
        if isinstance(value, (dict, tuple, list)):
            return value[key]
    except (TypeError, LookupError):
        pass
    raise ValueError(f"{who} returned a {type(value).__name__} that has no {key!r}.")


def _things(who: str, value) -> Things:
    if isinstance(value, dict):
        return [{name: _numbers(who, part) for name, part in value.items()}]
    if isinstance(value, (tuple, list)) and not all(isinstance(entry, Real) for entry in value):
        return [thing for entry in value for thing in _things(who, entry)]
    return [{"": _numbers(who, value)}]


def _numbers(who: str, value) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, of any dtype, on any device
        value = value.detach().cpu().double()
    try:
        if value is not None and not isinstance(value, (str, bytes)):
            return np.asarray(value, dtype="float64")
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{who} returned a {type(value).__name__}: parity compares tensors and numbers.")


def _names(of_ranks: list[Things]) -> set:
    return {name for things in of_ranks for thing in things for name in thing}
