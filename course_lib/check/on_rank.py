"""What trials share on the ranks: fresh numbers, plain values, one distance, what all ranks say, calls,
memory. Imports what a rank has anyhow.
"""

import array
import gc
import operator
import secrets
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Sequence

# as they are now: an answer or a check may put others in their place
from time import monotonic, sleep

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from course_lib import torch_internals
from course_lib.check.stillness import looking, still_at
from course_lib.collectives import of_kind
from course_lib.measure.looks import lock as frames_lock
from course_lib.torch_internals import TorchDispatchMode, tree_leaves

__all__ = [
    "use_cpu",
    "private_seed",
    "plain",
    "whole",
    "short",
    "listed",
    "flat",
    "apart",
    "times",
    "looks",
    "rounding",
    "everyone",
    "first_problem",
    "wait_until",
    "LATE_S",
    "NOT_WAITED",
    "come_late",
    "is_back",
    "store",
    "Calls",
    "late",
    "NewTensors",
    "outside_torch",
    "Unseen",
]

LATE_S = 1.5  # so late at most comes a rank for which the others wait
# of wrong numbers, where they were right before
NOT_WAITED = (
    "right while all ranks are in step, and wrong when one comes late: wait for what you have asked for"
)
LOOK_EVERY_S = 0.005
SOON_LOOKS, SURE_LOOKS = 20, 300  # looks in a row at which nobody moves: to go on; to refuse an answer for it
LATE_EACH_S = (0.8, 0.4, *[0.2] * 6)  # where it is every message that is late


def private_seed() -> int:
    """A number that this rank has just drawn, and that no other process can know: data made from it reaches
    others only in a message.
    """
    return secrets.randbelow(2**31)


def plain(value):
    """Arrays, tensors and tuples as lists, numbers of numpy and torch as Python's own, inside of lists and
    dicts too; everything else as it is.
    """
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        try:
            return value.tolist()
        except Exception:  # a tensor without values, say
            return value
    return value


def whole(value) -> int | None:
    """A whole number of any library as Python's; None if it is something else (True and 2.0 are)."""
    try:
        return None if isinstance(plain(value), bool) else operator.index(value)
    except Exception:
        return None


def short(value, limit: int = 60) -> str:
    """A value in one line, for a sentence."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(values: Iterable) -> str:
    """Values one after the other, for a sentence: "3, 1, 2"."""
    return ", ".join(map(str, values))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector [sum of numel] of all tensors' values."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def apart(found: Tensor | None, wanted: Tensor) -> float:
    """Relative error of `found`; 1 if there is none, or another shape; infinite if a value is not finite."""
    if found is None or found.shape != wanted.shape:
        return 1.0
    error = ((found - wanted).norm() / wanted.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()
    return error if error == error else float("inf")


def times(found: Tensor, wanted: Tensor, within: float) -> float | None:
    """The factor by which a vector is `wanted`, up to an error relative to it; None if it has another
    direction, and not only another length.
    """
    factor = ((found @ wanted) / (wanted @ wanted)).item()
    return factor if (found - factor * wanted).norm() < within * wanted.norm() else None


def looks(found: Tensor | None, guesses: dict[str, Tensor], within: float = 1e-6) -> str:
    """What wrong numbers look like: the words of the first guess that fits them; "" if none does."""
    return next((words for words, guess in guesses.items() if apart(found, guess) < within), "")


def rounding(error: float) -> str:
    """What a relative error says of the way that numbers took, in a test in float64:
    " An error of this size ...", or "" if it tells nothing.
    """
    if 1e-12 < error < 2e-6:
        return (
            " An error of this size is the rounding of float32: the numbers here are float64, and must stay"
            " so all the way (in a message, a sum, a `torch.zeros` without a dtype)."
        )
    if 2e-6 <= error < 2e-2:
        return (
            " An error of this size may be the rounding of float16 or bfloat16: does something change the"
            " dtype on the way?"
        )
    return ""


def use_cpu() -> None:
    """From here on tensors are made on the CPU: gloo sends from one CPU memory to the other.

    Where they are anyhow, nothing is set: under a default device that was set, every call of torch passes
    through Python.
    """
    if torch.get_default_device().type != "cpu":
        torch.set_default_device("cpu")


def everyone(value) -> list:
    """What each rank has, in rank order. Every rank must call this, outside of a measured step."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def first_problem(problem: str) -> str:
    """The first rank's problem, on every rank, so that all leave a trial together; "" if nobody has one.
    Every rank must call this.
    """
    return next((f"on rank {rank} {text}" for rank, text in enumerate(everyone(problem)) if text), "")


def wait_until(holds: Callable[[], bool], at_most_s: float, looks: int = SURE_LOOKS) -> bool:
    """Wait until `holds()`. False if it never will: at so many looks in a row every other rank stood still,
    or waited in here itself; or `at_most_s` have gone by.
    """
    deadline, still, found = monotonic() + at_most_s, 0, None
    with looking():
        while not holds():
            before, found = found, still_at()
            still = still + 1 if found is not None and found == before else 0
            if still >= looks or monotonic() > deadline:
                return holds()
            sleep(LOOK_EVERY_S)
    return True


def come_late(call: str, at_most_s: float = LATE_S) -> None:
    """This rank comes late to a call of the answer: when all others have come back from it, who have then not
    waited for this rank, or when they do wait, as they should, and stand still; after `at_most_s` anyhow.
    """
    told = store()
    others = [f"back/{call}/{other}" for other in range(dist.get_world_size()) if other != dist.get_rank()]
    wait_until(lambda: told.check(others), at_most_s, SOON_LOOKS)


def is_back(call: str) -> None:
    """This rank has come back from a call of the answer, and has kept what it then found: `come_late` need
    not wait for it any longer.
    """
    store().set(f"back/{call}/{dist.get_rank()}", "")


def store() -> dist.Store:
    """What the ranks of a job can tell each other beside torch.distributed, whatever an answer does there."""
    return dist.PrefixStore("check", torch_internals.default_store())


class Calls:
    """Every collective, send and receive that this rank calls: `with Calls() as calls: ...; calls.rows`, as
    `measure.calls.listen` tells of them, which has `before`, too.

    Unlike the ledger it looks at any call, and not at the traced step alone: small tensors may go another
    way. Not inside of a traced step.
    """

    def __init__(self, before: Callable[[dict], None] | None = None):
        self._before, self.rows = before, []

    def __enter__(self) -> "Calls":
        # here: a rank has loaded it, and who only tests this module need not
        from course_lib.measure.calls import listen

        self._listening = listen(self._before)
        self.rows = self._listening.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._listening.__exit__(*error)


def late(call: str, at_most_s: Sequence[float] = LATE_EACH_S) -> Callable[[dict], None]:
    """For `Calls`: each message that this rank sends in a call of the answer leaves late, as in `come_late`.

    Args:
        at_most_s: how late at most, message by message; 0 for one that leaves in time, as all after the last.
            Unless given, the first ones most: there may be no others.
    """
    left_s = [*at_most_s]

    def before(row):
        if row["op"] not in of_kind("receive") and left_s and (most_s := left_s.pop(0)):
            come_late(call, most_s)

    return before


class NewTensors(TorchDispatchMode):
    """The memory of tensors that come into being: `with NewTensors() as new: ...; new.peak_bytes`, the most
    that was alive at once.
    """

    def __init__(self):
        super().__init__()
        self.peak_bytes, self._made = 0, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        alive = self._alive()
        given = {address for address, _ in map(_storage, tree_leaves((args, kwargs)))} - set(alive)
        result = operator(*args, **(kwargs or {}))
        self._made += [
            weakref.ref(leaf)
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and _storage(leaf)[0] not in given
        ]
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes())
        return result

    def alive_bytes(self) -> int:
        """Of those that are alive now; any thread may ask."""
        return sum(self._alive().values())

    def _alive(self) -> dict[int, int]:
        """Bytes by address."""
        with frames_lock:
            self._made = [ref for ref in self._made if ref() is not None]
            return dict(_storage(tensor) for ref in self._made if (tensor := ref()) is not None)


def _storage(leaf) -> tuple[int | None, int]:
    """Address and bytes of what a tensor lies in; nothing, of anything else."""
    return (
        (leaf.untyped_storage().data_ptr(), leaf.untyped_storage().nbytes())
        if isinstance(leaf, Tensor)
        else (None, 0)
    )


def outside_torch() -> int:
    """Bytes of the numpy arrays, bytes and floats that Python objects of this rank hold now. It costs nothing
    while the answer runs.
    """
    gc.collect()
    kinds = {float, bytes, bytearray, array.array, np.ndarray}
    held = {
        id(thing): thing
        for holder in gc.get_objects()
        for thing in gc.get_referents(holder)
        if type(thing) in kinds
    }
    bases = {
        id(thing.base): thing.base
        for thing in held.values()
        if isinstance(thing, np.ndarray) and isinstance(thing.base, np.ndarray)
    }
    # of a view, what it is a view of
    return sum(sys.getsizeof(thing) for thing in (held | bases).values())


class Unseen:
    """Bytes that this rank holds outside of torch, in numpy arrays and Python objects: the most at once.
    `with Unseen() as unseen: ...; unseen.peak()`.

    Python itself counts them (tracemalloc), so that neither other processes nor the allocator's habits play a
    part. It slows Python down: not for what is timed. All threads count. A rank that is asked where it is, on
    a busy machine, reads no sources for that: its answer takes less than 0.3 MB.

    Python goes on counting after the block, to the end of the rank. To stop it would be a crash now and then:
    before Python 3.12.9 and 3.13.2, `tracemalloc.stop` takes its table away from a thread (gloo's, say) that
    allocates at that moment (CPython's issue 128679).
    """

    def __enter__(self) -> "Unseen":
        tracemalloc.start()
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def peak(self) -> int:
        """Beyond what was held when the block began."""
        return tracemalloc.get_traced_memory()[1] - self._before

    def __exit__(self, *error) -> None:
        pass
