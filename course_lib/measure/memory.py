"""Count the bytes that a rank holds, by what they are for."""

import functools
import inspect
import resource
import sys
from collections.abc import Callable, Iterable

import psutil
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from course_lib import torch_internals
from course_lib.measure.activations import SavedForBackward
from course_lib.measure.instruments import Instrument, why
from course_lib.measure.storages import storage_bytes, tensors_in

__all__ = ["modules_of", "Watch", "Peak"]


def modules_of(model) -> list[nn.Module]:
    """The modules of what `measure.step` was given: a module, several, or None."""
    if model is None:
        modules = []
    elif isinstance(model, Iterable) and not isinstance(model, nn.Module):
        modules = list(model)
    else:
        modules = [model]
    if not all(
        callable(getattr(module, name, None)) for module in modules for name in ("parameters", "buffers")
    ):
        raise TypeError(
            f"measure.step was given a model of type {type(model).__name__}: it must be a module, or a list"
            " of modules."
        )
    return modules


class Watch:
    """Memory of one step: model states right after `optimizer.step()`, and the most that was saved for
    backward.

    Attributes:
        instruments: what is to be attached for the step, by the layer that it measures; each returns what
            takes it away again.
        absent: gets the layers that cannot be measured, each with the reason.
    """

    def __init__(self, modules: list[nn.Module], optimizer, cuda: bool, absent: dict[str, str]):
        self._modules, self._optimizer, self._cuda = modules, optimizer, cuda
        self._states: dict[str, int] | None = None
        self._activations = SavedForBackward(modules, cuda)
        self.instruments: dict[str, Instrument] = {"activations": self._activations.attach}
        if optimizer is not None:
            self.instruments["model states"] = lambda: after_each_step(optimizer, self._count)
        self.absent = absent

    def rows(self) -> list[dict]:
        """Rows of category and bytes; without an optimizer that stepped, as things are now."""
        if not self._modules and self._optimizer is None:
            return []
        if self._activations.unknown:
            self.absent.setdefault("activations", self._activations.unknown)
        if self._states is None and "model states" not in self.absent:
            self._count()
        rows = {} if "model states" in self.absent else dict(self._states)
        if "activations" not in self.absent:
            rows["activations"] = self._activations.peak_bytes
        return [{"category": category, "bytes": count} for category, count in rows.items()]

    def _count(self) -> None:
        """Now: after a step gradients still exist, and the first step has made the optimizer's states."""
        try:
            self._states = self._bytes()
        except Exception as error:  # of a tensor that nobody can look into
            self.absent["model states"] = f"a tensor could not be looked into ({why(error)})"

    def _bytes(self) -> dict[str, int]:
        params = [p for module in self._modules for p in module.parameters()]
        # What the optimizer updates may be other tensors: shards of the parameters (views of them, or not),
        # or fp32 copies of 16-bit ones.
        updated = (
            [p for group in getattr(self._optimizer, "param_groups", ()) for p in group["params"]]
            if self._modules
            else []
        )
        seen: set[int] = set()
        states = {
            "params": storage_bytes(params, seen),
            "grads": storage_bytes((p.grad for p in (*params, *updated) if p.grad is not None), seen),
            # copies count here, as in the ZeRO paper
            "optimizer_states": storage_bytes((*_states_of(self._optimizer), *updated), seen),
            "buffers": storage_bytes((b for module in self._modules for b in module.buffers()), seen),
        }
        if self._cuda:
            held = torch.cuda.memory_allocated() - self._activations.live_bytes
            states["other"] = max(held - sum(states.values()), 0)
        return states


def after_each_step(optimizer, call: Callable[[], None]) -> Callable[[], None]:
    """Call `call` right after every `optimizer.step()`, and after the learner's own hooks on it, until what
    is returned is called.

    Where it can be, nothing is put on the optimizer itself: a copy of it, made in the step, would take it
    along and step the original.
    """
    # what stands on the object itself: a learning rate scheduler puts one there
    own = vars(optimizer).get("step") if hasattr(optimizer, "__dict__") else None
    by_class = inspect.getattr_static(type(optimizer), "step", None)
    by_hook = isinstance(optimizer, torch.optim.Optimizer) and torch_internals.calls_step_hooks(by_class)
    if own is None and by_hook:
        return register_optimizer_step_post_hook(
            lambda stepped, *_: call() if stepped is optimizer else None
        ).remove
    if own is None and inspect.isfunction(by_class):
        owner, step = type(optimizer), by_class
    else:
        owner, step = optimizer, optimizer.step
    attached, put_there = True, vars(owner).get("step") if hasattr(owner, "__dict__") else None

    @functools.wraps(step)
    def step_then_call(*args, **kwargs):
        result = step(*args, **kwargs)
        if attached and (owner is optimizer or args[0] is optimizer):
            call()
        return result

    owner.step = step_then_call

    def detach() -> None:
        nonlocal attached
        attached = False
        if vars(owner).get("step") is not step_then_call:
            return  # the learner has put another one there in the meantime
        if put_there is None:
            del owner.step  # the class's own method shows again
        else:
            owner.step = put_there

    return detach


class Peak:
    """The most memory that this rank has held since this object was made."""

    def __init__(self, cuda: bool):
        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        """GPU: the allocator's own count. CPU: growth of the resident memory, from the operating system's
        high-water mark.
        """
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - self._before, 0)


def _states_of(optimizer) -> Iterable[Tensor]:
    """An optimizer's state; ZeroRedundancyOptimizer keeps it in the optimizer that it wraps."""
    yield from tensors_in(getattr(optimizer, "state", {}))
    yield from tensors_in(getattr(getattr(optimizer, "optim", None), "state", {}))
