"""What trials share on the ranks: fresh numbers, one distance, what all ranks say, memory that torch does not see. Imports what a rank has anyhow."""
import array
import gc
import os
import secrets
import stat
import sys
import tracemalloc
from collections.abc import Iterable

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["private_seed", "flat", "apart", "everyone", "first_problem", "outside_torch", "written_bytes", "Unseen"]


def private_seed() -> int:
    """A number that this rank has just drawn, and that no other process can know: data made from it reaches others only in a message."""
    return secrets.randbelow(2**31)


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


def outside_torch() -> int:
    """Bytes of the numpy arrays, bytes and floats that Python objects of this rank hold now. It costs nothing while the answer runs."""
    gc.collect()
    kinds = {float, bytes, bytearray, array.array, np.ndarray}
    held = {id(thing): thing for holder in gc.get_objects() for thing in gc.get_referents(holder) if type(thing) in kinds}
    bases = {id(thing.base): thing.base for thing in held.values() if isinstance(thing, np.ndarray) and isinstance(thing.base, np.ndarray)}
    return sum(sys.getsizeof(thing) for thing in (held | bases).values())         # of a view, what it is a view of


def written_bytes() -> int:
    """Bytes that this rank has written so far, to files and to other ranks, and not what it has printed; 0 where the system does not count them."""
    process = psutil.Process()
    if not hasattr(process, "io_counters"):
        return 0
    sys.stdout.flush(), sys.stderr.flush()
    printed = {status.st_ino: status.st_size for status in map(os.fstat, (1, 2)) if stat.S_ISREG(status.st_mode)}
    return process.io_counters().write_chars - sum(printed.values())


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
