"""Which layers' full parameters are alive when, and what a step really allocates.

The ledger of `measure.step` looks at one moment, right after `optimizer.step()`. A rank runs out of memory at
the worst moment, which may be another one. Here are two instruments that look at all of them, whoever shards
(a notebook, mini.zero, fully_shard):

    watch(layers)    in every forward and backward of a layer: which layers have all their parameters on
                     this rank?
    Allocations()    all memory of a block of code: what exists after each operation, whoever holds it

Neither is meant for steps that are timed.
"""

import functools
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.arguments import instance, listed
from course_lib.measure import looks
from course_lib.measure.storages import storage_bytes
from course_lib.torch_internals import TorchDispatchMode, tree_leaves

__all__ = ["watch", "Allocations"]

GLOO_PATIENCE_S = 10.0  # in one block

# "F0", "B7": the layer that works; for each layer, the bytes of parameters that are there in full; and, if
# asked for, of those that are gathered and wait
Moment = tuple[str, list[int]] | tuple[str, list[int], list[int]]


def watch(layers: Iterable[nn.Module], waiting: bool = False) -> list[Moment]:
    """Note from now on, whenever one of `layers` works, which layers have their full parameters on this rank.

    Args:
        layers: modules that take and return one tensor; each should work once in a forward.
        waiting: note as well which layers `fully_shard` has gathered ahead of their time. They lie in a
            buffer, and no parameter shows them yet.

    Returns:
        A list that grows: ("F2", [bytes of layer 0, ...]) in the forward of layer 2, and ("B2", [...]) as its
        backward begins; with `waiting`, a third entry has the bytes that wait, by layer. `plots.alive` draws
        it.
    """
    instance("layers", layers, Iterable, "of modules")
    instance("waiting", waiting, bool)
    layers = listed("layers", list(layers), "modules", lambda layer: isinstance(layer, nn.Module))
    moments: list[Moment] = []
    names = [
        [name for name, _ in layer.named_parameters() if not name.rpartition(".")[2].startswith("shard")]
        for layer in layers
    ]

    def note(name: str) -> None:
        full = [_full_bytes(layer, its) for layer, its in zip(layers, names)]
        if waiting:
            ahead = [torch_internals.gathered_and_waiting_bytes(layer) for layer in layers]
            moments.append((name, full, ahead))
        else:
            moments.append((name, full))

    for number, layer in enumerate(layers):

        def forward(*inputs, number=number, own_forward=layer.forward):
            output = own_forward(*inputs)
            note(f"F{number}")
            return _Mark.apply(output, lambda: note(f"B{number}"))

        # inside of all hooks: what they gather is there, what they free is not yet gone
        layer.forward = forward
    return moments


class _Mark(torch.autograd.Function):
    """Does nothing but call `note` when backward comes by."""

    @staticmethod
    def forward(ctx, output: Tensor, note) -> Tensor:
        ctx.note = note
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.note()
        return grad, None


def _full_bytes(layer: nn.Module, names: Sequence[str]) -> int:
    """Bytes of those of the layer's tensors that are on this rank as a whole, and not as a shard
    (fully_shard's, mini.zero's) or as an empty shell.
    """
    tensors = [
        functools.reduce(lambda module, name: getattr(module, name, None), path.split("."), layer)
        for path in names
    ]
    tensors = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    return sum(
        t.numel() * t.element_size() for t in tensors if storage_bytes([t]) >= t.numel() * t.element_size()
    )


class Allocations(TorchDispatchMode):
    """Follow all memory that torch's tensors take and let go of in a `with` block:
    `with Allocations() as held: ...`.

    After every operation (forward, backward, optimizer, communication) it looks at the storages that were
    made in the block and really exist, whoever holds them. Nothing depends on when things happen: garbage
    that Python has not yet collected does not count, and gloo's threads get the time to let go of what they
    have sent. What was allocated before does not count, nor what an operation needs inside, nor what another
    thread makes.
    """

    def __init__(self) -> None:
        super().__init__()

    def __enter__(self) -> "Allocations":
        self._device, self._made, self._peak, self.events = torch.get_default_device().type, {}, 0, []
        self._patience_s = GLOO_PATIENCE_S
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._note("")
        for weak in self._made:
            torch_internals.let_go(weak)
        self._made = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(map(torch_internals.is_wrapper, types)):
            return NotImplemented  # what a DTensor, say, does with tensors of this rank comes by next
        result = operation(*args, **(kwargs or {}))
        number = torch_internals.storage_number
        # those made by this operation; and views of older ones, which are taken out again below
        made = [storage for storage in self._storages(result) if number(storage) not in self._made]
        if made:
            given = {number(storage) for storage in self._storages((args, kwargs))}
            # held weakly, so that no other storage gets the same number
            self._made |= {
                torch_internals.hold_weakly(storage): None for storage in made if number(storage) not in given
            }
        live = self._live()
        if live > self._peak:  # the worst moment so far, or so it seems
            self._note("")
        return result

    def _storages(self, tree) -> list[torch.UntypedStorage]:
        return [
            leaf.untyped_storage()
            for leaf in tree_leaves(tree)
            if type(leaf) in (Tensor, nn.Parameter)
            and leaf.device.type == self._device
            and leaf.layout == torch.strided
        ]

    def _live(self) -> int:
        with looks.lock:
            made = [*self._made]
            counts = torch_internals.bytes_if_alive(made)
            for weak, count in zip(made, counts):
                if count is None:
                    torch_internals.let_go(weak)
                    del self._made[weak]
        return sum(filter(None, counts))

    def _note(self, mark: str) -> None:
        gc.collect()
        self._patience_s -= _wait_for_gloos_threads(self._patience_s)
        live = self._live()
        self._peak = live if mark else max(self._peak, live)  # a peak is asked for between two marks
        self.events.append((live, mark))

    def mark(self, name: str) -> None:
        """Name this moment."""
        self._note(name)

    def at(self, mark: str) -> int:
        """Bytes held when `mark` was set (the first time)."""
        return self.events[self._place(mark)][0]

    def peak_bytes(self, begin: str = "", end: str = "") -> int:
        """The most bytes held at any moment between two marks (from the start, and to the end, if they are
        not given).
        """
        first = self._place(begin) if begin else 0
        last = self._place(end) + 1 if end else len(self.events)
        return max((live for live, _ in self.events[first:last]), default=0)

    def _place(self, mark: str) -> int:
        names = [name for _, name in self.events]
        if mark not in names:
            raise ValueError(
                f"there is no mark {mark!r}; there are {', '.join(map(repr, filter(None, names))) or 'none'}."
            )
        return names.index(mark)


def _wait_for_gloos_threads(patience_s: float) -> float:
    """Give gloo's threads the CPU until they sleep: on a busy machine one may hold the tensors of a call for
    long after it is done. Returns the seconds it took.
    """
    begin = time.monotonic()
    while _gloo_is_awake() and time.monotonic() < begin + patience_s:
        time.sleep(0.001)
    return time.monotonic() - begin


def _gloo_is_awake() -> bool:
    """Whether a thread that runs gloo's calls wants the CPU. False where the system does not say (macOS)."""
    try:
        threads = [
            Path(folder, "stat").read_text().rpartition(")") for folder in Path("/proc/self/task").iterdir()
        ]
    except OSError:  # a thread has ended meanwhile: nothing is sure
        return sys.platform == "linux"
    return any(torch_internals.GLOO_RUNS in name and state.split()[0] == "R" for name, _, state in threads)
