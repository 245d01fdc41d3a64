"""A unit of ZeRO: some parameters in one flat tensor, cut into one chunk for each rank. What `mini.zero`
does, it does unit by unit.

    full     | weight ............................ | bias ......... | padding |
    chunks   | rank 0        | rank 1        | rank 2        | rank 3        |

Parameters are views of `full`, so they need no copying: what all_gather writes there, they see.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.mini import ring
from course_lib.mini.zero.away import Away
from course_lib.mini.zero.gradients import Spread, plain

__all__ = ["Unit"]


class Unit:
    """Some parameters in one flat tensor, of which this rank owns one of n equal chunks.

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
        rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self.numel = sum(parameter.numel() for parameter in parameters)
        shard_numel = -(-self.numel // self.size)
        self.nothing = parameters[0].detach().new_empty(0)
        self.full = self.nothing.new_zeros(self.size * shard_numel)
        self.views = dict(zip(parameters, self._cut(self.full, parameters)))
        for parameter, view in self.views.items():
            view.copy_(parameter.detach())
            parameter.data = view
        self.own = slice(rank * shard_numel, (rank + 1) * shard_numel)
        mine = self.full[self.own]
        self.shard = nn.Parameter(
            mine.clone() if stage == 3 else mine, requires_grad=parameters[0].requires_grad
        )
        self.learns = self.shard.requires_grad
        if stage == 3:
            module.register_parameter(key, self.shard)
        self.forget()
        self.free()

    @staticmethod
    def _cut(flat: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
        begin, parts = 0, []
        for parameter in parameters:
            parts.append(flat[begin : begin + parameter.numel()].view(parameter.shape))
            begin += parameter.numel()
        return parts

    @property
    def full_bytes(self) -> int:
        """Bytes of the parameters in full on this rank, at this moment: 0 if they are not there."""
        return self.full.untyped_storage().nbytes()

    @torch.no_grad()
    def gather(self) -> None:
        """Make the parameters whole: all_gather of all ranks' shards."""
        if not self.full_bytes:
            self.full.untyped_storage().resize_(self.full.nbytes)
            for parameter, view in self.views.items():
                parameter.__class__ = nn.Parameter
                parameter.data = view
        ring.all_gather(self.full, self.shard, self.process_group)

    def free(self) -> None:
        """Stage 3: give the memory of the full parameters back.

        What autograd has saved for backward stays valid: views of the same storage, which has its memory and
        its values again by then.
        """
        if self.stage == 3 and self.full_bytes:
            for parameter in self.views:
                parameter.data = self.nothing
                parameter.__class__ = Away
            self.full.untyped_storage().resize_(0)

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
            self.places = dict(zip(self.views, self._cut(self.grads, self.views.values())))
        if (grad := parameter.grad.to_dense()).data_ptr() != self.places[parameter].data_ptr():
            self.places[parameter].copy_(grad)
        parameter.grad = self.places[parameter] if self.stage == 1 else None
        self.missing.discard(parameter)
        self.unused.discard(parameter)

    @torch.no_grad()
    def reduce(self) -> None:
        """Leave in (or add to) `shard.grad` this rank's chunk of the average over ranks. Stages 2 and 3 then
        let go of the gradients in full.
        """
        for parameter in self.missing:
            self.places[parameter].zero_()
        mine = self.grads[self.own] if self.stage == 1 else torch.empty_like(self.shard)
        ring.reduce_scatter(mine, self.grads, self.process_group)
        mine.div_(self.size)
        if self.replicas is not None:
            ring.all_reduce(mine, self.replicas)
            mine.div_(dist.get_world_size(self.replicas))
        self.averaged = True
        if self.stage == 1 or self.shard.grad is None:
            self.shard.grad = Spread.of(self, mine)
        else:
            plain(self.shard.grad).add_(mine)
        if self.stage > 1:
            self._drop_full()

    def average(self) -> None:
        """Stage 1: average the gradients, now that no more will come. The other stages did so in backward."""
        if self.stage == 1 and self.grads is not None and not self.averaged:
            self.reduce()

    def forget(self) -> None:
        """Let go of all gradients."""
        self.shard.grad, self.averaged, self.unused = None, False, set(self.views)
        for parameter in self.views:
            parameter.grad = None
        self._drop_full()

    def _drop_full(self) -> None:
        self.grads, self.places, self.missing = None, {}, set(self.views)
