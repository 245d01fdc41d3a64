"""What holds for `mini.zero` in everyday use, and is not its idea.

Several backwards before a step add up; in stages 2 and 3 each of them sends its gradients. Torch's
clip_grad_norm_, clip_grad_value_ and GradScaler see the gradient of the whole model. Buffers are not
synchronised. A weight that two modules share (tied) is gathered in stage 3 for each of them in forward, and
stays whole in backward from one to the other.

There is no second backward through gradients (create_graph). If, in stage 3, the forward of one module uses
parameters of another one, as torch's MultiheadAttention does with those of its `out_proj`, they must be in
one unit.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import at_least_0, takes
from course_lib.mini.zero import checkpoint
from course_lib.mini.zero import refusals as refuse
from course_lib.mini.zero.gradients import Spread, plain
from course_lib.mini.zero.hooks import Hooks

__all__ = ["Everyday"]


class Everyday(torch.optim.Optimizer):
    """The base of ZeroOptimizer, which has the step itself.

    Attributes:
        optim: the optimizer that steps, torch's own. `param_groups` and `state` are its; the tensors in them
            are shards.
        units: all units, in the order of the model's modules.
    """

    def __init__(
        self,
        optim: torch.optim.Optimizer,
        hooks: Hooks,
        model: nn.Module,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__([{**group} for group in optim.param_groups], optim.defaults)
        self.optim, self.param_groups, self.state = optim, optim.param_groups, optim.state
        self.units, self.stage, self.process_group = hooks.units, hooks.stage, process_group
        self._hooks, self._model = hooks, model

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients, in full and sharded (they are never kept as zeros), and of what a forward
        or backward that failed has left.
        """
        self._hooks.reset()

    @takes(max_norm=at_least_0)
    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm over all parameters is at most `max_norm`; returns the norm
        before. Every rank must call this.

        A rank knows its shards only. So the squares are summed over the ranks before the root is taken.
        (Torch's own clip_grad_norm_ comes to the same result, with a collective for each parameter.)
        """
        self._ready()
        for unit in self.units:
            unit.average()
        grads = [plain(unit.shard.grad) for unit in self.units if unit.shard.grad is not None]
        norm = self.units[0].shard.new_zeros((), dtype=torch.float64)
        norm = sum((torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2 for grad in grads), norm)
        dist.all_reduce(norm, group=self.process_group)
        norm.sqrt_()
        for grad in grads:
            grad.mul_((float(max_norm) / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Within this context the model is as it was before `shard`: for `model.state_dict()`, a norm, a
        copy. Every rank must enter it.

        What is written there (`model.load_state_dict`, say) stays; every rank must write the same.
        """
        whole = self.units if self.stage == 3 else []
        for unit in whole:
            unit.gather()
            delattr(unit.module, unit.key)
        self._hooks.all_gathered = bool(whole)
        try:
            yield
            refuse.changed(self._model, self.units)
        finally:
            self._hooks.all_gathered = False
            for unit in whole:
                unit.keep()
                unit.module.register_parameter(unit.key, unit.shard)
                unit.free()

    def state_dict(self) -> dict:
        """Return parameters and optimizer states, as this rank holds them, for torch.distributed.checkpoint:
        see `zero.checkpoint`.
        """
        return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over parameters and optimizer states from what `state_dict` has returned and dcp has filled.
        Every rank must call this.
        """
        checkpoint.load_state_dict(self, state_dict)

    def add_param_group(self, param_group: dict) -> None:
        """Refused, after `shard`."""
        refuse.added(self)
        super().add_param_group(param_group)

    def __reduce_ex__(self, protocol):
        return refuse.copied(self)

    def _ready(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Before the gradients are used: compute them anew if there is a closure, whose loss comes back."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        refuse.unfinished(self._hooks)
        self._hooks.notice_dropped()
        return loss

    @contextlib.contextmanager
    def _plain_gradients(self) -> Iterator[None]:
        """For the optimizer itself, which updates this rank's part and asks nobody."""
        refuse.before_step(self._model, self._hooks, self.optim)
        for unit in self.units:
            if unit.shard.grad is not None:
                unit.shard.grad = plain(unit.shard.grad)
        try:
            yield
        finally:
            for unit in self.units:
                if unit.shard.grad is not None:
                    unit.shard.grad = Spread.of(unit, unit.shard.grad)
