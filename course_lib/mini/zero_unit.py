"""A unit of ZeRO: some parameters in one flat tensor, cut into one chunk for each rank. What `mini.zero` does, it does unit by unit.

    full     | weight ............................ | bias ......... | padding |
    chunks   | rank 0        | rank 1        | rank 2        | rank 3        |

Parameters are views of `full`, so they need no copying: what all_gather writes there, they see.
"""
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.mini import ring

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Unit"]


class Unit:
    """Some parameters in one flat tensor, of which this rank owns one of n equal chunks.

    Attributes:
        module, key: whose parameters they are, and "shard_k". k counts the units of a module: one for each param group and dtype, and one for
            frozen parameters. In stage 3, the shard is the module's parameter of this name.
        name: the module's name in the model, and key.
        views: each parameter's place in `full`, in the parameter's shape.
        full: [n * ceil(numel / n)]: parameters, then padding. In stage 3 it has no memory, unless it is gathered.
        shard: [ceil(numel / n)]: what this rank owns. In stages 1 and 2 it is a chunk of `full`, in stage 3 memory of its own.
        grads: as `full`, the gradients while they are there in full; else None.
        missing: the parameters whose gradient is not there.
    """

    def __init__(self, module: nn.Module, key: str, parameters: list[nn.Parameter], stage: int, process_group: dist.ProcessGroup | None) -> None:
        self.module, self.key, self.name, self.stage, self.process_group = module, key, key, stage, process_group
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
        self.shard = nn.Parameter(mine.clone() if stage == 3 else mine, requires_grad=parameters[0].requires_grad)
        if stage == 3:
            module.register_parameter(key, self.shard)
        self.forget()
        self.free()

    @staticmethod
    def _cut(flat: Tensor, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        begin, parts = 0, []
        for parameter in parameters:
            parts.append(flat[begin : begin + parameter.numel()].view(parameter.shape))
            begin += parameter.numel()
        return parts

    @property
    def full_bytes(self) -> int:
        """Bytes of the parameters in full on this rank, at this moment: 0 if they are not there."""
        return self.full.untyped_storage().nbytes()

    def as_dtensor(self, mine: Tensor) -> "DTensor":
        """A tensor of the shard's size as this rank's part of [numel]; the padding is left out."""
        from torch.distributed.device_mesh import DeviceMesh                       # here, because this import takes half a second
        from torch.distributed.tensor import DTensor, Shard
        mesh = DeviceMesh.from_group(self.process_group or dist.group.WORLD, mine.device.type)
        real = mine.detach()[: max(0, min(mine.numel(), self.numel - self.own.start))]
        return DTensor.from_local(real, mesh, [Shard(0)], shape=torch.Size([self.numel]), stride=(1,))

    @torch.no_grad()
    def gather(self) -> None:
        """Make the parameters whole: all_gather of all ranks' shards."""
        if not self.full_bytes:
            self.full.untyped_storage().resize_(self.full.nbytes)
            for parameter, view in self.views.items():
                parameter.data = view
        ring.all_gather(self.full, self.shard, self.process_group)

    def free(self) -> None:
        """Stage 3: give the memory of the full parameters back.

        What autograd has saved for backward stays valid: views of the same storage, which has its memory and its values again by then.
        """
        if self.stage == 3:
            for parameter in self.views:
                parameter.data = self.nothing
            self.full.untyped_storage().resize_(0)

    @torch.no_grad()
    def put(self, parameter: nn.Parameter) -> None:
        """Move a gradient to its place in `grads`."""
        if self.grads is None:
            self.grads = torch.empty_like(self.full)
            self.grads[self.numel :] = 0                                          # the padding
            self.places = dict(zip(self.views, self._cut(self.grads, self.views)))
        if parameter.grad.data_ptr() != self.places[parameter].data_ptr():
            self.places[parameter].copy_(parameter.grad)
        parameter.grad = self.places[parameter] if self.stage == 1 else None
        self.missing.discard(parameter)

    @torch.no_grad()
    def reduce(self) -> None:
        """Leave in (or add to) `shard.grad` this rank's chunk of the average over ranks. Stages 2 and 3 then let go of the gradients in full."""
        for parameter in self.missing:
            self.places[parameter].zero_()
        mine = self.grads[self.own] if self.stage == 1 else torch.empty_like(self.shard)
        ring.reduce_scatter(mine, self.grads, self.process_group)
        mine.div_(self.size)
        self.shard.grad = mine if self.shard.grad is None else self.shard.grad.add_(mine)
        if self.stage > 1:
            self._drop_full()

    def forget(self) -> None:
        """Let go of all gradients."""
        self.shard.grad = None
        for parameter in self.views:
            parameter.grad = None
        self._drop_full()

    def _drop_full(self) -> None:
        self.grads, self.places, self.missing = None, {}, {p for p in self.views if p.requires_grad}
