"""ZeRO: data parallel training in which no rank holds what another one holds already.

With DDP, every rank keeps all parameters, all gradients and all optimizer states, n times the same. ZeRO cuts
each into n shards. The means are the same in its three stages: a `Unit` puts some parameters one after the
other into a flat tensor of n equal chunks (the last one is padded), and rank k owns chunk k, its *shard*. The
optimizer gets shards instead of parameters and never knows. Each stage shards one thing more:

    stage   optimizer states   gradients in full               parameters in full             sent per step
    1       shards             from backward to zero_grad      always                         2 r P
    2       shards             until their unit is complete    always                         2 r P
    3       shards             until their unit is complete    while their module computes    3 r P

A chunk of the gradients' average comes by reduce_scatter (r P bytes, r = (n-1)/n), and parameters become
whole by all_gather (r P): in stages 1 and 2 once, after the optimizer's step; in stage 3 twice, before a
module's forward and again before its backward.

Read on in `unit` (how a unit is cut, gathered, freed and averaged) and `hooks` (who calls it when). Beside:
`given` and `dealing` (what `shard` gets), `everyday`, `gradients`, `saved`, `checkpoint`, `refusals`.

Source: Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models",
    sections 5 and 7.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import process_group, takes
from course_lib.mini.first_rank import copy_from_first_rank
from course_lib.mini.zero import refusals as refuse
from course_lib.mini.zero.dealing import make_units
from course_lib.mini.zero.everyday import Everyday
from course_lib.mini.zero.given import one_to_three, units_and_groups
from course_lib.mini.zero.hooks import Hooks
from course_lib.mini.zero.unit import Unit

__all__ = ["shard", "ZeroOptimizer", "Unit"]


@takes(stage=one_to_three, model=nn.Module, process_group=process_group, replicas=process_group)
def shard(
    model: nn.Module,
    stage: int,
    optimizer_class: Callable[..., torch.optim.Optimizer],
    *,
    params: Iterable[nn.Parameter] | Iterable[dict] | None = None,
    units: Iterable[nn.Module] | None = None,
    process_group: dist.ProcessGroup | None = None,
    replicas: dist.ProcessGroup | None = None,
    elementwise: bool = False,
    **defaults,
) -> tuple[nn.Module, "ZeroOptimizer"]:
    """Shard a model's training over the ranks of a group; every rank must call this, and from then on compute
    the same layers in the same order.

    Args:
        model: the same architecture on every rank; it is changed in place, and keeps its dtype, its device
            and what is frozen from then on. All start from rank 0's parameters and buffers.
        stage: 1 shards optimizer states, 2 gradients too, 3 parameters too.
        optimizer_class: an optimizer that treats each element for itself, as SGD, Adam and AdamW do.
        params: as torch's optimizers take them: parameters, or several groups of them as dicts. None: all.
            What is not to learn must be frozen (requires_grad=False).
        units: modules whose parameters share a flat tensor, and so travel and (stage 3) live together. What
            is in none of them makes a unit for each module that has parameters of its own, and is gathered
            when that module computes. None: for stage 1 the whole model, for 2 and 3 none.
        process_group: the ranks that take part; None for all. Several groups train several models.
        replicas: the ranks of other groups that hold the same shard of the same model; gradients are averaged
            over them, too (hybrid sharding, with two axes of `hybrid.make_groups`).
        elementwise: True says that an optimizer that is none of torch's treats each element for itself.
        defaults: the optimizer's own options, such as lr.

    Returns: the model and its optimizer. In stage 3 the model's parameters are empty, but for shards, unless
        their module is computing: see `ZeroOptimizer.gathered`.

    Errors: ValueError for a stage, units, params or an optimizer that cannot be; RuntimeError, in forward,
        backward or step, for what one process could do and this cannot: each says what to do.
    """
    modules, groups = units_and_groups(model, stage, optimizer_class, params, units, elementwise, defaults)
    for ranks in (process_group,) if replicas is None else (process_group, replicas):
        copy_from_first_rank([*model.parameters(), *model.buffers()], ranks)
    needs, unit_of, shards = make_units(model, stage, modules, groups, process_group, replicas)
    hooks = Hooks(stage, needs, unit_of)
    refuse.guard(model, hooks)
    groups = [{**group, "params": members} for group, members in zip(groups, shards)]
    return model, ZeroOptimizer(optimizer_class(groups, **defaults), hooks, model, process_group)


class ZeroOptimizer(Everyday):
    """An optimizer of this rank's shards, with what they need before and after its step."""

    def step(self, closure: Callable[[], Tensor] | None = None, **options) -> Tensor | None:
        """Average the gradients (stage 1), update this rank's shards, and make the parameters whole again
        (stages 1 and 2).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._average()
        refuse.before_step(self._model, self._hooks, self.optim)
        with self._plain_gradients():
            self.optim.step(**options)
        for unit in self.units:
            unit.free()  # stage 3: what a backward that failed has left in full is old now
            if self.stage < 3 and unit.learns:
                unit.gather()
        return loss
