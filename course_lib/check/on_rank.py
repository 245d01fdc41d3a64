"""What trials share on the ranks: fresh numbers, plain values, one distance, what all ranks say, memory that torch does not see. Imports torch alone."""
import operator
import secrets
import tracemalloc
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["private_seed", "plain", "whole", "flat", "apart", "everyone", "first_problem", "Unseen"]


def private_seed() -> int:
    """A number that this rank has just drawn, and that no other process can know: data made from it reaches others only in a message."""
    return secrets.randbelow(2**31)


def plain(value):
    """Arrays, tensors and tuples as lists, numbers of numpy and torch as Python's own, inside of lists and dicts too; everything else as it is."""
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        try:
            return value.tolist()
        except Exception:                 # a tensor without values, say
            return value
    return value


def whole(value) -> int | None:
    """A whole number of any library as Python's; None if it is something else (True and 2.0 are)."""
    try:
        return None if isinstance(plain(value), bool) else operator.index(value)
    except Exception:
        return None


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector [sum of numel] of all tensors' values."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def apart(found: Tensor | None, wanted: Tensor) -> float:
    """Relative error of `found`; 1 if there is nothing, or another shape; infinite if a value is not finite."""
    if found is None or found.shape != wanted.shape:
        return 1.0
    error = ((found - wanted).norm() / wanted.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()
    return error if error == error else float("inf")


def everyone(value) -> list:
    """What each rank has, in rank order. Every rank must call this, outside of a measured step."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_problem(problem: str) -> str:
    """The first rank's problem, on every rank, so that all leave a trial together; "" if nobody has one. Every rank must call this."""
    return next((f"on rank {rank} {text}" for rank, text in enumerate(everyone(problem)) if text), "")


class Unseen:
    """Bytes that this rank holds outside of torch, in numpy arrays and Python objects: `with Unseen() as unseen: ...; unseen.bytes()`.

    Python itself counts them (tracemalloc), so that neither other processes nor the allocator's habits play a part. It slows Python down: not for what is timed.
    """

    def __enter__(self) -> "Unseen":
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def bytes(self) -> int:
        """Held now, of what was allocated within the block."""
        return tracemalloc.get_traced_memory()[0] - self._before

    def __exit__(self, *error) -> None:
        tracemalloc.stop()
