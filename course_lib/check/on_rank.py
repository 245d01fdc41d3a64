"""What trials share on the ranks: fresh numbers, plain values, one distance, what all ranks say, calls, memory outside of torch. Imports what a rank has anyhow."""
import array
import gc
import operator
import secrets
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["private_seed", "plain", "whole", "flat", "apart", "everyone", "first_problem", "Calls", "late", "outside_torch", "Unseen"]


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


class Calls:
    """Every collective, send and receive that this rank calls: `with Calls() as calls: ...; calls.rows`, each with op, dtype, payload_bytes, algorithm_bytes.

    Unlike the ledger it looks at any call, and not at the traced step alone: small tensors may go another way. Not inside of a traced step.
    `before(row)` is called before each of them goes on, and may let it wait.
    """

    def __init__(self, before: Callable[[dict], None] | None = None):
        self._before, self.rows = before, []

    def __enter__(self) -> "Calls":
        from course_lib import tracing        # here: a rank has loaded it, and who only tests this module need not

        self._library = torch.library.Library("c10d", "IMPL")
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
        for name, (op, which, work) in tracing._COLLECTIVES.items():
            if packet := getattr(torch.ops.c10d, name, None):
                def kernel(keyset, *args, operator=packet.default, op=op, which=which, work=work):
                    row = tracing._note(op, which, work, args)
                    self.rows.append({name: row[name] for name in ("op", "dtype", "payload_bytes", "algorithm_bytes")})
                    if self._before:
                        self._before(self.rows[-1])
                    return operator.redispatch(keyset & below, *args)

                self._library.impl(name, kernel, "BackendSelect", with_keyset=True)
        return self

    def __exit__(self, *error) -> None:
        self._library._destroy()


def late(calls: int = 8, pause_s: float = 0.1) -> Callable[[dict], None]:
    """For `Calls`: what this rank sends leaves late, so that a rank that does not wait for it is seen. A pause: nothing tells that nobody waits."""
    left = [calls]

    def before(row):
        if row["op"] != "recv" and left[0]:
            left[0] -= 1
            time.sleep(pause_s)

    return before


def outside_torch() -> int:
    """Bytes of the numpy arrays, bytes and floats that Python objects of this rank hold now. It costs nothing while the answer runs."""
    gc.collect()
    kinds = {float, bytes, bytearray, array.array, np.ndarray}
    held = {id(thing): thing for holder in gc.get_objects() for thing in gc.get_referents(holder) if type(thing) in kinds}
    bases = {id(thing.base): thing.base for thing in held.values() if isinstance(thing, np.ndarray) and isinstance(thing.base, np.ndarray)}
    return sum(sys.getsizeof(thing) for thing in (held | bases).values())         # of a view, what it is a view of


class Unseen:
    """Bytes that this rank holds outside of torch, in numpy arrays and Python objects: `with Unseen() as unseen: ...; unseen.bytes()`.

    Python itself counts them (tracemalloc), so that neither other processes nor the allocator's habits play a part. It slows Python down: not for what is timed.
    All threads count, and on a busy machine a rank that is asked where it is reads sources: up to 2 MB are noise.
    """

    def __enter__(self) -> "Unseen":
        tracemalloc.start()
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def bytes(self) -> int:
        """Held now, of what was allocated within the block."""
        return tracemalloc.get_traced_memory()[0] - self._before

    def peak(self) -> int:
        """The most that was held at once."""
        return tracemalloc.get_traced_memory()[1] - self._before

    def __exit__(self, *error) -> None:
        tracemalloc.stop()
