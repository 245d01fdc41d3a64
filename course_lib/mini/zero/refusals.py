"""What `mini.zero` refuses while it trains, and why: each in one sentence, at the first moment at which it
shows. Nothing of ZeRO's idea is here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from course_lib.mini.zero.away import Away

if TYPE_CHECKING:
    from course_lib.mini.zero import Unit
    from course_lib.mini.zero.hooks import Hooks

__all__ = [
    "changed",
    "late",
    "second_order",
    "unfinished",
    "before_step",
    "unused",
    "added",
    "copied",
    "guard",
]


def changed(model: nn.Module, units: list["Unit"]) -> None:
    """Before forward, or at the step: what was done to the model since `shard` that units do not know of?"""
    if new := set(model.parameters()).difference(
        *(unit.views for unit in units), (unit.shard for unit in units)
    ):
        names = ", ".join(name for name, parameter in model.named_parameters() if parameter in new)
        raise RuntimeError(
            f"{names}: new since `shard`, and would not learn: build the model first, then shard it."
        )
    for unit in units:
        learn = [parameter.requires_grad for parameter in unit.views]
        if any(learn) and not (unit.learns and all(learn)):
            names = _names(model, unit, lambda parameter, unit=unit: parameter.requires_grad != unit.learns)
            raise RuntimeError(
                f"in {names} requires_grad has changed since `shard`: freeze or unfreeze before it, or put"
                " what is frozen for a while into a unit of its own, as a whole."
            )
        whole = [
            (p, view)
            for p, view in unit.views.items()
            if unit.full_bytes and (p.dtype != view.dtype or p.data_ptr() != view.data_ptr())
        ]
        if whole or unit.shard.dtype != unit.full.dtype or unit.shard.device != unit.full.device:
            raise RuntimeError(
                f"the parameters of {unit.name.rpartition('.')[0] or 'the model'} are other tensors since"
                " `shard`: move or convert the model (model.to, .double(), p.data = ...) before it."
            )


def late(unit: "Unit", hooks: "Hooks") -> None:
    """A gradient has come that nobody waits for."""
    if unit.stage == 1 and unit.averaged:
        raise RuntimeError(
            "a gradient has come after the gradients were averaged: call optimizer.zero_grad() between step()"
            " and backward."
        )
    if hooks.all_gathered:
        raise RuntimeError("no backward within optimizer.gathered(): leave it first.")


def second_order() -> None:
    """Within a backward."""
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph=True: the gradients of mini.zero have no graph of their own.")


def unfinished(hooks: "Hooks") -> None:
    """Before the gradients are used."""
    if hooks.in_backward:
        raise RuntimeError(
            "the last backward did not come to its end: call optimizer.zero_grad() and begin the step anew."
        )


def before_step(model: nn.Module, hooks: "Hooks", optimizer: torch.optim.Optimizer) -> None:
    """Look at the model, unless its forward did, and at parameters without a gradient."""
    if not hooks.looked:
        changed(model, hooks.units)
    hooks.looked = False
    unused(model, hooks.units, optimizer)


def unused(model: nn.Module, units: list["Unit"], optimizer: torch.optim.Optimizer) -> None:
    """Before the step: without a gradient a parameter of one process stays as it is; in a unit with others it
    decays and goes on with momentum.
    """
    plain = {  # those that a gradient of zero leaves as they are
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if type(optimizer) is torch.optim.SGD and not group["momentum"] and not group["weight_decay"]
    }
    for unit in units:
        if unit.shard.grad is not None and unit.unused and unit.shard not in plain:
            raise RuntimeError(
                f"{_names(model, unit, unit.unused.__contains__)}: no gradient, but others of the unit have"
                f" one, and {type(optimizer).__name__} would take it as zero: freeze what is not used, or"
                " shard with units=[] (each module is a unit then)."
            )


def added(optimizer: torch.optim.Optimizer) -> None:
    """Every parameter has its unit since `shard`."""
    if hasattr(optimizer, "optim"):
        raise RuntimeError(
            "add_param_group after `shard`: give all groups to shard, as params=[{'params': ..., 'lr': ...},"
            " ...]."
        )


def copied(optimizer: torch.optim.Optimizer):
    """Hooks of the model hold on to this optimizer, and its process group is one."""
    raise TypeError(
        "the optimizer of a sharded model cannot be copied or pickled: save and load its state_dict()."
    )


def guard(model: nn.Module, hooks: "Hooks") -> None:
    """Hooks of the model that refuse. A copy of the model has them, too; it is none of this optimizer's."""
    units, sharded = hooks.units, hooks.stage == 3

    def before_forward(module, args):
        if module is model:
            changed(model, units)
            hooks.looked = True

    def before_state_dict(module, *args):
        if any(map(_is_away, module.parameters())):
            raise RuntimeError(
                "in stage 3 a rank has shards of the parameters: save and load the model's state_dict within"
                " optimizer.gathered()."
            )

    model.register_forward_pre_hook(before_forward, prepend=True)
    for module in model.modules() if sharded else ():
        module.register_state_dict_pre_hook(before_state_dict)
        module.register_load_state_dict_pre_hook(before_state_dict)


def _is_away(parameter: nn.Parameter) -> bool:
    return type(parameter) is Away


def _names(model: nn.Module, unit: "Unit", which: Callable[[nn.Parameter], bool]) -> str:
    return ", ".join(
        name for name, parameter in model.named_parameters() if parameter in unit.views and which(parameter)
    )
