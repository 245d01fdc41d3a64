"""Count the bytes that a rank holds, by what they are for."""
import functools
import resource
import sys
import weakref
from collections.abc import Iterable

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["storage_bytes", "modules_of", "Watch", "Peak"]


def modules_of(model) -> list[nn.Module]:
    """The modules of what `measure.step` was given: a module, several, or None."""
    modules = [] if model is None else [model] if isinstance(model, nn.Module) else list(model) if isinstance(model, Iterable) else [model]
    if not all(callable(getattr(module, name, None)) for module in modules for name in ("parameters", "buffers")):
        raise TypeError(f"measure.step was given a model of type {type(model).__name__}: it must be a module, or a list of modules.")
    return modules


def storage_bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Bytes of the storages behind `tensors` on this rank.

    A storage that several tensors share (tied weights, views of one flat buffer) counts once; of a DTensor only the local shard counts,
    padding included; a tensor on the meta device holds nothing. `seen`: storages to leave out; what was counted is added to it.
    """
    seen = set() if seen is None else seen
    total = 0
    for tensor in tensors:
        for address, count in _storages(tensor):
            if address not in seen:
                seen.add(address)
                total += count
    return total


class Watch:
    """Memory of one step: model states right after `optimizer.step()`, and the most that was saved for backward."""

    def __init__(self, modules: list[nn.Module], optimizer):
        self._modules, self._optimizer = modules, optimizer
        self._states: dict[str, int] | None = None
        self._activations = _SavedForBackward(self._modules)

    def start(self) -> None:
        if self._optimizer is not None:
            step = self._optimizer.step
            self._own_step = vars(self._optimizer).get("step")        # a learning rate scheduler puts one there

            @functools.wraps(step)
            def step_then_count(*args, **kwargs):
                result = step(*args, **kwargs)
                self._count()                     # now: gradients still exist, and the first step has made its state
                return result

            self._optimizer.step = step_then_count
        self._activations.__enter__()

    def stop(self) -> None:
        """Take the hooks away again."""
        self._activations.__exit__()
        if self._optimizer is not None:
            del self._optimizer.step              # the class's own method shows again
            if self._own_step is not None:
                self._optimizer.step = self._own_step

    def rows(self) -> list[dict]:
        """Rows of category and bytes; without an optimizer that stepped, as things are now."""
        if self._states is None:
            self._count()
        rows = {**self._states, "activations": self._activations.peak_bytes} if self._modules or self._optimizer else {}
        return [{"category": category, "bytes": count} for category, count in rows.items()]

    def _count(self) -> None:
        params = [p for module in self._modules for p in module.parameters()]
        # What the optimizer updates may be other tensors: shards of the parameters (views of them, or not), or fp32 copies of 16-bit ones.
        updated = [p for group in getattr(self._optimizer, "param_groups", ()) for p in group["params"]] if self._modules else []
        seen: set[int] = set()
        self._states = {
            "params": storage_bytes(params, seen),
            "grads": storage_bytes((p.grad for p in (*params, *updated) if p.grad is not None), seen),
            "optimizer_states": storage_bytes((*_states_of(self._optimizer), *updated), seen),       # copies count here, as in the ZeRO paper
            "buffers": storage_bytes((b for module in self._modules for b in module.buffers()), seen),
        }
        if torch.get_default_device().type == "cuda":
            held = torch.cuda.memory_allocated() - self._activations.live_bytes
            self._states["other"] = max(held - sum(self._states.values()), 0)


class Peak:
    """The most memory that this rank has held since this object was made."""

    def __init__(self, cuda: bool):
        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """GPU: the allocator's own count. CPU: growth of the resident memory, from the operating system's high-water mark."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - self._before, 0)


class _SavedForBackward:
    """Follow the tensors that autograd saves for backward; parameters and buffers don't count.

    A storage counts from the moment it is first saved until the last node that saved it lets go.
    """

    def __init__(self, modules: list[nn.Module]):
        self._modules = modules
        self._holders: dict[int, int] = {}        # storage -> how many nodes hold it
        self.live_bytes = self.peak_bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self) -> None:
        self._hooks.__exit__()

    def _pack(self, tensor: Tensor) -> "_Saved":
        saved, models = _Saved(tensor), self._model_storages()
        for address, count in _storages(tensor):
            if address in models:
                continue
            if address not in self._holders:
                self.live_bytes += count
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            self._holders[address] = self._holders.get(address, 0) + 1
            weakref.finalize(saved, self._release, address, count).atexit = False
        return saved

    def _release(self, address: int, count: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.live_bytes -= count

    def _model_storages(self) -> set[int]:
        """Looked up anew each time: fully_shard swaps a module's parameters between shard and whole."""
        return {address for module in self._modules for tensor in (*module.parameters(), *module.buffers()) for address, _ in _storages(tensor)}


class _Saved:
    """What autograd keeps in place of a tensor; its end is the tensor's release."""
    __slots__ = ("tensor", "__weakref__")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _storages(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """Address and bytes of what a tensor holds on this rank; a wrapper (DTensor, a collective still under way) is looked into."""
    if is_traceable_wrapper_subclass(tensor):
        for inner in _tensors_in([getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]):
            yield from _storages(inner)
    elif tensor.layout is torch.sparse_coo:       # such as the gradient of Embedding(sparse=True)
        yield from (*_storages(tensor._indices()), *_storages(tensor._values()))
    elif not tensor.is_meta:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            yield storage.data_ptr(), storage.nbytes()


def _states_of(optimizer) -> Iterable[Tensor]:
    """An optimizer's state; ZeroRedundancyOptimizer keeps it in the optimizer that it wraps."""
    yield from _tensors_in(getattr(optimizer, "state", {}))
    yield from _tensors_in(getattr(getattr(optimizer, "optim", None), "state", {}))


def _tensors_in(value) -> Iterable[Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors_in(inner)
