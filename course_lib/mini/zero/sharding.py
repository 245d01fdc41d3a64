"""`shard`: what one gives it, and how it makes units of a model and an optimizer of their shards."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from course_lib.arguments import process_group, takes
from course_lib.mini import zero  # its classes, which are there when `shard` is called
from course_lib.mini.first_rank import copy_from_first_rank
from course_lib.mini.zero import refusals as refuse
from course_lib.mini.zero.dealing import make_units
from course_lib.mini.zero.given import one_to_three, units_and_groups

__all__ = ["shard"]


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
) -> tuple[nn.Module, "zero.ZeroOptimizer"]:
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
    make_unit = partial(zero.Unit, stage=stage, process_group=process_group, replicas=replicas)
    needs, unit_of, shards = make_units(model, modules, groups, make_unit)
    events = zero.Events(stage, needs, unit_of)
    refuse.guard(model, events)
    groups = [{**group, "params": members} for group, members in zip(groups, shards)]
    return model, zero.ZeroOptimizer(optimizer_class(groups, **defaults), events, model, process_group)
