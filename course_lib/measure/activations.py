"""Follow the tensors that autograd saves for backward.

torch lets one pair of hooks see every tensor that is saved. Whoever keeps something else in its place
(checkpointing, offloading to the CPU, a pair of the learner's own) has a pair of hooks too, and torch asks
the innermost pair only. So while we look, ours are put around each of theirs: theirs decide what is kept,
ours count what that is.
"""

import contextlib
import weakref
from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.measure.instruments import why
from course_lib.measure.storages import held_by, storages_of

__all__ = ["SavedForBackward"]


class SavedForBackward:
    """Bytes that are saved for backward; parameters and buffers don't count.

    A storage counts from the moment it is first saved until the last node that saved it lets go.

    Args:
        modules: whose parameters and buffers those are.
        cuda: whether the rank computes on a GPU: what hooks have moved to the CPU does not count then.

    Attributes:
        live_bytes, peak_bytes: saved now, and the most at any moment.
        unknown: why these are not known, "" if they are.
    """

    def __init__(self, modules: list[nn.Module], cuda: bool):
        self._modules, self._cuda = modules, cuda
        self._places: list[dict[str, Tensor | None]] = []
        self._holders: dict[int, int] = {}  # storage -> how many nodes hold it
        self.live_bytes = self.peak_bytes = 0
        self.unknown = ""

    def attach(self) -> Callable[[], None]:
        """Look from now on, until what is returned is called."""
        self._places = torch_internals.places_of_tensors(self._modules)
        graph = torch.autograd.graph
        enter, disable = graph.saved_tensors_hooks.__enter__, graph.disable_saved_tensors_hooks
        around = torch_internals.saved_hooks(tracing=True)  # entered by the learner, around the step
        ours = (
            self._counting(*around)
            if around
            else self._counting(lambda tensor: tensor, lambda tensor: tensor)
        )

        def enter_counted(hooks) -> None:
            torch_internals.push_saved_hooks(*self._counting(hooks.pack_hook, hooks.unpack_hook))

        @contextlib.contextmanager
        def step_aside(message: str):
            """Who disables hooks, as torch.func does, wants that there are none at all."""
            aside = _is(torch_internals.saved_hooks(tracing=True), ours)
            if aside:
                torch_internals.pop_saved_hooks()
                self.unknown = (
                    "hooks on what is saved for backward were disabled in the step, as torch.func does"
                )
            try:
                with disable(message):
                    yield
            finally:
                if aside:
                    torch_internals.push_saved_hooks(*ours)

        def detach() -> None:
            graph.saved_tensors_hooks.__enter__, graph.disable_saved_tensors_hooks = enter, disable
            above = []  # hooks that were entered in the step, and not left yet
            while (top := torch_internals.saved_hooks(tracing=True)) is not None and not _is(top, ours):
                above.append(top)
                torch_internals.pop_saved_hooks()
            if top is not None:
                torch_internals.pop_saved_hooks()
            for hooks in reversed(above):
                torch_internals.push_saved_hooks(*hooks)

        torch_internals.push_saved_hooks(*ours)
        graph.saved_tensors_hooks.__enter__, graph.disable_saved_tensors_hooks = enter_counted, step_aside
        return detach

    def _counting(self, pack: Callable, unpack: Callable) -> tuple[Callable, Callable]:
        """A pair of hooks around another pair."""

        def pack_and_count(tensor: Tensor) -> _Saved:
            try:
                saved = _Saved(pack(tensor))
            except Exception:  # so a checkpoint says that it has computed enough again
                self._try_to_count(tensor, tensor, tensor)  # it keeps this one, too
                raise
            self._try_to_count(tensor, saved.kept, saved)
            return saved

        return pack_and_count, lambda saved: unpack(saved.kept)

    def _try_to_count(self, given: Tensor, kept, node) -> None:
        try:
            self._count(given, kept, node)
        except Exception as error:  # the training goes on, and this number is absent
            self.unknown = f"a saved tensor could not be looked into ({why(error)})"

    def _count(self, given: Tensor, kept, node) -> None:
        """What is `kept` in place of the tensor that was `given` counts until the end of `node`."""
        models = self._model_storages()
        for part in (kept,) if kept is given else held_by(kept):
            on_cpu = not isinstance(part, Tensor) or part.device.type == "cpu"
            if self._cuda and on_cpu and part is not given:
                continue  # offloaded
            if isinstance(part, Tensor):
                storages = storages_of(part)
            elif isinstance(part, numpy.ndarray):
                storages = [(part.ctypes.data, part.nbytes)]
            else:
                storages = [(id(part), len(part))]
            for address, count in storages:
                if address not in models:
                    self._hold(address, count, until_the_end_of=node)
                    if isinstance(part, Tensor) and part is not given:
                        # made by the hook, which may keep it for longer than the node
                        self._hold(address, count, until_the_end_of=part)

    def _hold(self, address: int, count: int, until_the_end_of) -> None:
        if address not in self._holders:
            self.live_bytes += count
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._holders[address] = self._holders.get(address, 0) + 1
        weakref.finalize(until_the_end_of, self._release, address, count).atexit = False

    def _release(self, address: int, count: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.live_bytes -= count

    def _model_storages(self) -> set[int]:
        """Looked up anew each time: fully_shard swaps a module's parameters between shard and whole."""
        return {
            address
            for place in self._places
            for tensor in place.values()
            if tensor is not None
            for address, _ in storages_of(tensor)
        }


class _Saved:
    """What autograd keeps in place of a tensor; its end is the release of what is kept."""

    __slots__ = ("kept", "__weakref__")

    def __init__(self, kept):
        self.kept = kept


def _is(hooks: tuple | None, others: tuple) -> bool:
    return hooks is not None and hooks[0] is others[0]
