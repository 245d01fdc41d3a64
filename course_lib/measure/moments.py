"""What is held after every operation of a step, by what it is for.

The ledger of `measure.step` has one number for each kind of memory. Here each operation of torch (in forward,
backward and the optimizer) adds a row, so that a figure can show how they rise and fall.
"""

from torch import nn
from torch.optim import Optimizer

from course_lib.arguments import instance
from course_lib.measure.activations import SavedForBackward
from course_lib.measure.alive import Allocations
from course_lib.measure.storages import storage_bytes, tensors_in

__all__ = ["Moments"]


class Moments(Allocations):
    """Note what is held after each operation in a `with` block: `with Moments() as moments: ...`.

    Make the model and the optimizer in the block, and tell `follow` of them. What was allocated before does
    not count, nor what an operation needs inside (see `Allocations`). Not meant for steps that are timed.

    Attributes:
        rows: one per operation: the name of the part of the step ("" before the first `begin`), and a dict of
            bytes: params, grads, optimizer_states, activations (saved for backward, and nothing of the
            others), and other, which is all the rest.
    """

    def __enter__(self) -> "Moments":
        self.rows: list[tuple[str, dict[str, int]]] = []
        self._part, self._model, self._optimizer = "", None, None
        self._stop_looking = None
        return super().__enter__()

    def __exit__(self, *error) -> None:
        if self._stop_looking is not None:
            self._stop_looking()
        super().__exit__(*error)

    def follow(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Say whose parameters, gradients, states and saved tensors are to be told apart from now on."""
        self._model = instance("model", model, nn.Module)
        self._optimizer = instance("optimizer", optimizer, Optimizer)
        self._saved = SavedForBackward([model], cuda=False)
        self._stop_looking = self._saved.attach()

    def begin(self, part: str) -> None:
        """Name the part of the step that begins."""
        self._part = instance("part", part, str)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        if self._model is not None and result is not NotImplemented:
            self.rows.append((self._part, self._bytes()))
        return result

    def _note(self, mark: str) -> None:
        """Nothing but the rows is kept."""

    def _bytes(self) -> dict[str, int]:
        params, seen = list(self._model.parameters()), set()
        found = {
            "params": storage_bytes(params, seen),
            "grads": storage_bytes((p.grad for p in params if p.grad is not None), seen),
            "optimizer_states": storage_bytes(tensors_in(dict(self._optimizer.state)), seen),
            "activations": self._saved.live_bytes,
        }
        return found | {"other": max(self._live() - sum(found.values()), 0)}
