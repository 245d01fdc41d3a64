"""What a unit of ZeRO keeps account of: where its parameters are, and how far their gradients have come. What
it does with them is in `mini.zero`.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.mini import ring
from course_lib.mini.zero.away import Away
from course_lib.mini.zero.gradients import Spread, plain

__all__ = ["Bookkeeping", "cut"]


class Bookkeeping:
    """The base of `zero.Unit`: some parameters in one flat tensor, of which this rank owns one of n equal
    chunks.

    Attributes:
        module, key: whose parameters they are, and "shard_k". k counts the units of a module: one for each
            param group and dtype, and one for frozen parameters. In stage 3, the shard is the module's
            parameter of this name.
        name: the module's name in the model, and key.
        views: each parameter's place in `full`, in the parameter's shape.
        full: [n * ceil(numel / n)]: parameters, then padding. In stage 3 it has no memory, unless it is
            gathered.
        shard: [ceil(numel / n)]: what this rank owns. In stages 1 and 2 it is a chunk of `full`, in stage 3
            memory of its own.
        grads: as `full`, the gradients while they are there in full; else None.
        missing: the parameters whose gradient is not there; `unused`: those that have had none since the last
            zero_grad.
        learns: False for a unit of frozen parameters.
        averaged: whether `shard.grad` is the average over the ranks, and not yet (stage 1, between backward
            and step) this rank's own.
    """

    def __init__(
        self,
        module: nn.Module,
        key: str,
        parameters: list[nn.Parameter],
        stage: int,
        process_group: dist.ProcessGroup | None,
        replicas: dist.ProcessGroup | None = None,
    ) -> None:
        self.module, self.key, self.name, self.stage = module, key, key, stage
        self.process_group, self.replicas = process_group, replicas
        self.nothing = parameters[0].detach().new_empty(0)
        self.flatten(parameters)
        self.learns = self.shard.requires_grad
        if stage == 3:
            module.register_parameter(key, self.shard)
        self.forget()
        self.free()

    @property
    def full_bytes(self) -> int:
        """Bytes of the parameters in full on this rank, at this moment: 0 if they are not there."""
        return self.full.untyped_storage().nbytes()

    def return_parameters(self) -> None:
        """Let parameters be their places in `full`, which has its memory again."""
        for parameter, view in self.views.items():
            parameter.__class__ = nn.Parameter
            parameter.data = view

    def take_parameters_away(self) -> None:
        """Let parameters be empty, before `full` gives its memory back."""
        for parameter in self.views:
            parameter.data = self.nothing
            parameter.__class__ = Away

    @torch.no_grad()
    def keep(self) -> None:
        """Stage 3: what was written to the parameters in full stays in the shard."""
        if self.full_bytes:
            self.shard.copy_(self.full[self.own])

    @torch.no_grad()
    def put(self, parameter: nn.Parameter) -> None:
        """Move a gradient to its place in `grads`."""
        if self.grads is None:
            self.grads = torch.empty_like(self.full)
            self.grads[self.numel :] = 0  # the padding
            self.places = dict(zip(self.views, cut(self.grads, self.views.values())))
        if (grad := parameter.grad.to_dense()).data_ptr() != self.places[parameter].data_ptr():
            self.places[parameter].copy_(grad)
        parameter.grad = self.places[parameter] if self.stage == 1 else None
        self.missing.discard(parameter)
        self.unused.discard(parameter)

    def zero_missing(self) -> None:
        """Parameters without a gradient count as zero."""
        for parameter in self.missing:
            self.places[parameter].zero_()

    def keep_gradient(self, mine: Tensor) -> None:
        """Leave in (or add to) `shard.grad` this rank's chunk of the average, over the replicas too."""
        if self.replicas is not None:
            ring.all_reduce(mine, self.replicas)
            mine.div_(dist.get_world_size(self.replicas))
        self.averaged = True
        if self.stage == 1 or self.shard.grad is None:
            self.shard.grad = Spread.of(self, mine)
        else:
            plain(self.shard.grad).add_(mine)

    def average(self) -> None:
        """Stage 1: average the gradients, now that no more will come. The other stages did so in backward."""
        if self.stage == 1 and self.grads is not None and not self.averaged:
            self.reduce()

    def forget(self) -> None:
        """Let go of all gradients."""
        self.shard.grad, self.averaged, self.unused = None, False, set(self.views)
        for parameter in self.views:
            parameter.grad = None
        self.drop_full_gradients()

    def drop_full_gradients(self) -> None:
        """Let go of the gradients in full."""
        self.grads, self.places, self.missing = None, {}, set(self.views)


def cut(flat: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Cut the beginning of `flat` into views, one after the other, of the parameters' shapes."""
    begin, parts = 0, []
    for parameter in parameters:
        parts.append(flat[begin : begin + parameter.numel()].view(parameter.shape))
        begin += parameter.numel()
    return parts
