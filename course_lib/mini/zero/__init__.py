"""ZeRO: data parallel training in which no rank holds what another one holds already.

With DDP, every rank keeps all parameters, all gradients and all optimizer states, n times the same. ZeRO cuts
them: a `Unit` puts some parameters one after the other into a flat tensor of n equal chunks, and rank k owns
chunk k, its *shard*. The optimizer gets shards instead of parameters and never knows.

    full     | weight ............................ | bias ......... | padding |
    chunks   | rank 0        | rank 1        | rank 2        | rank 3        |

    stage   optimizer states   gradients in full               parameters in full             sent per step
    1       shards             from backward to zero_grad      always                         2 r P
    2       shards             until their unit is complete    always                         2 r P
    3       shards             until their unit is complete    while their module computes    3 r P

Each stage shards one thing more. A reduce_scatter and an all_gather send r P bytes each, r = (n-1)/n.
Beside: `bookkeeping` (how far gradients have come), `sharding` (`shard`) with `given` and `dealing`, `hooks`,
`saved` and `away` (what is not whole), `gradients` (clipping), `checkpoint`, `everyday`, `refusals`.
Source: Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models", 5, 7.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.mini import ring
from course_lib.mini.zero.bookkeeping import Bookkeeping, cut
from course_lib.mini.zero.everyday import Everyday
from course_lib.mini.zero.hooks import Hooks
from course_lib.mini.zero.sharding import shard

__all__ = ["shard", "ZeroOptimizer", "Unit"]


class Unit(Bookkeeping):
    """Some parameters in one flat tensor, of which this rank owns one of n equal chunks."""

    def flatten(self, parameters: list[nn.Parameter]) -> None:
        """Move the parameters to `full`, and make the shard, which the optimizer gets."""
        rank, self.size = dist.get_rank(self.process_group), dist.get_world_size(self.process_group)
        self.numel = sum(parameter.numel() for parameter in parameters)
        chunk_numel = -(-self.numel // self.size)  # rounded up
        self.full = parameters[0].detach().new_zeros(self.size * chunk_numel)
        self.views = dict(zip(parameters, cut(self.full, parameters)))
        for parameter, view in self.views.items():
            view.copy_(parameter.detach())
            parameter.data = view  # what all_gather writes to `full`, the parameter has
        self.own = slice(rank * chunk_numel, (rank + 1) * chunk_numel)
        mine = self.full[self.own]  # the shard is cut: a view of `full`; in stage 3, which frees that, a copy
        self.shard = nn.Parameter(mine.clone() if self.stage == 3 else mine, parameters[0].requires_grad)

    @torch.no_grad()
    def gather(self) -> None:
        """Make the parameters whole: all_gather of all ranks' shards."""
        if not self.full_bytes:
            self.full.untyped_storage().resize_(self.full.nbytes)
            self.return_parameters()
        ring.all_gather(self.full, self.shard, self.process_group)

    def free(self) -> None:
        """Stage 3: give the memory of the full parameters back. (What autograd has saved for backward stays
        valid: views of the same storage, which has its memory and its values again by then.)
        """
        if self.stage == 3 and self.full_bytes:
            self.take_parameters_away()
            self.full.untyped_storage().resize_(0)

    @torch.no_grad()
    def reduce(self) -> None:
        """Leave in `shard.grad` this rank's chunk of the average of `grads`, the gradients in full."""
        self.zero_missing()
        mine = self.grads[self.own] if self.stage == 1 else torch.empty_like(self.shard)
        ring.reduce_scatter(mine, self.grads, self.process_group)
        self.keep_gradient(mine.div_(self.size))
        if self.stage > 1:
            self.drop_full_gradients()


class Events(Hooks):
    """What happens to the units in forward and backward: hooks of modules and of autograd call these."""

    def before(self, units: list[Unit]) -> list[Unit]:
        """Stage 3, before a module's forward and again before its backward: gather what is not there."""
        absent = [unit for unit in units if not unit.full_bytes]
        for unit in absent:
            unit.gather()
        return absent

    def after(self, gathered: list[Unit]) -> None:
        """Stage 3, after a module's forward."""
        for unit in gathered:
            unit.free()

    def arrive(self, parameter: nn.Parameter, unit: Unit) -> None:
        """A gradient is complete; stages 2 and 3: with the last one of a unit, the unit is done."""
        unit.put(parameter)
        if self.stage > 1 and not unit.missing:
            unit.reduce()
            unit.free()


class ZeroOptimizer(Everyday):
    """An optimizer of this rank's shards, `optim`, with what they need before and after its step."""

    def step(self, closure: Callable[[], Tensor] | None = None, **options) -> Tensor | None:
        """Average the gradients (stage 1), update this rank's shards, and make the parameters whole again
        (stages 1 and 2).
        """
        loss = self._ready(closure)
        for unit in self.units:
            unit.average()
        with self._plain_gradients():
            self.optim.step(**options)
        for unit in self.units:
            unit.free()  # stage 3: what a backward that failed has left in full is old now
            if self.stage < 3 and unit.learns:
                unit.gather()
        return loss
