"""Which memory is behind a tensor, or behind anything that holds tensors."""

import os
from collections.abc import Iterable

import numpy
import torch
from torch import Tensor

from course_lib import torch_internals

__all__ = ["storage_bytes", "storages_of", "tensors_in", "held_by"]

_ROWS_COMPRESSED = (torch.sparse_csr, torch.sparse_bsr)
_COLUMNS_COMPRESSED = (torch.sparse_csc, torch.sparse_bsc)
_HOLD_NOTHING = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    os.PathLike,
    torch.device,
    torch.dtype,
    torch.layout,
    torch.memory_format,
)


def storage_bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Bytes of the storages behind `tensors` on this rank.

    A storage that several tensors share (tied weights, views of one flat buffer) counts once; of a DTensor
    only the local shard counts, padding included; a tensor on the meta device holds nothing. `seen`: storages
    to leave out; what was counted is added to it.
    """
    seen = set() if seen is None else seen
    total = 0
    for tensor in tensors:
        for address, count in storages_of(tensor):
            if address not in seen:
                seen.add(address)
                total += count
    return total


def storages_of(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Address and bytes of what a tensor holds on this rank; a wrapper (DTensor, a collective still under
    way) is looked into.

    Errors: torch's own, for a tensor that nobody can look into, such as one of MKL-DNN.
    """
    if (wrapped := torch_internals.wrapped_by(tensor)) is not None:
        for inner in tensors_in(wrapped):
            yield from storages_of(inner)
    elif tensor.layout is torch.sparse_coo:  # such as the gradient of Embedding(sparse=True)
        for part in torch_internals.sparse_parts(tensor):
            yield from storages_of(part)
    elif tensor.layout in _ROWS_COMPRESSED:
        yield from (
            *storages_of(tensor.crow_indices()),
            *storages_of(tensor.col_indices()),
            *storages_of(tensor.values()),
        )
    elif tensor.layout in _COLUMNS_COMPRESSED:
        yield from (
            *storages_of(tensor.ccol_indices()),
            *storages_of(tensor.row_indices()),
            *storages_of(tensor.values()),
        )
    elif not tensor.is_meta:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            yield storage.data_ptr(), storage.nbytes()


def tensors_in(value) -> Iterable[Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)


def held_by(value, seen: set[int] | None = None) -> Iterable[Tensor | numpy.ndarray | bytes]:
    """What holds memory in anything that a hook may return: tensors, arrays and bytes, in containers and
    objects' attributes.

    Errors: TypeError for something that cannot be looked into, such as a function.
    """
    seen = set() if seen is None else seen
    if isinstance(value, _HOLD_NOTHING) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, numpy.ndarray, bytes, bytearray)):
        yield value
        return
    if isinstance(value, dict):
        inside = (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = tuple(value)
    elif hasattr(value, "__dict__") and not callable(value):
        inside = (
            *vars(value).values(),
            *(getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)),
        )
    elif slots := _slots(type(value)):
        inside = tuple(getattr(value, name) for name in slots if hasattr(value, name))
    else:
        raise TypeError(f"nobody can look into a {type(value).__name__}")
    for inner in inside:
        yield from held_by(inner, seen)


def _slots(kind: type) -> list[str]:
    """Names of attributes that stand in no __dict__, of a class and those that it comes from."""
    told = [vars(part).get("__slots__", ()) for part in kind.__mro__]
    return [
        name
        for slots in told
        for name in ((slots,) if isinstance(slots, str) else slots)
        if name not in ("__weakref__", "__dict__")
    ]
