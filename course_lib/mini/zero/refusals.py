"""What `mini.zero` refuses, and why: each in one sentence, at the first moment at which it shows. Nothing of
ZeRO's idea is here.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from course_lib.arguments import function, instance
from course_lib.mini.zero.gradients import LOOKS

if TYPE_CHECKING:
    from course_lib.mini.zero.hooks import Hooks
    from course_lib.mini.zero.unit import Unit

__all__ = [
    "Away",
    "one_to_three",
    "arguments",
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

# These update each element by itself. Not SparseAdam (it wants sparse gradients), nor LBFGS, Adafactor and
# Muon (they look at whole tensors).
ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in (
        "SGD",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "Adagrad",
        "Adadelta",
        "RMSprop",
        "Rprop",
        "ASGD",
    )
)


class Away(nn.Parameter):
    """A parameter in stage 3 while it is not whole: whoever computes with it is told so, where it would be
    found empty, or worse.
    """

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = "data" if function == Tensor.data.__get__ else function.__name__
        if name in LOOKS - {"detach"} | {
            "__set__",
            "__delete__",
            "__repr__",
            "__format__",
            "register_hook",
            "register_post_accumulate_grad_hook",
        }:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        raise RuntimeError(
            f"{name} on a parameter that is not whole now: in stage 3 it is while the forward of its module,"
            " or of its unit, computes. Put the modules that use it into one unit (units=[...]), call the"
            " unit itself, look at it within optimizer.gathered(), and convert a model before `shard`."
        )

    def __deepcopy__(self, memo):
        raise RuntimeError(
            "a model in stage 3 can be copied within optimizer.gathered() only: else its parameters are"
            " shards."
        )

    def __reduce_ex__(self, protocol):
        raise RuntimeError(
            "a model in stage 3 cannot be pickled: save its state_dict() within optimizer.gathered()."
        )


def one_to_three(name: str, stage: int) -> None:
    """A stage of ZeRO."""
    if not isinstance(stage, int) or stage not in (1, 2, 3):
        raise ValueError(f"{name}={stage!r}: it must be 1, 2 or 3.")


def arguments(
    model: nn.Module, stage: int, optimizer_class: Callable, params, units, elementwise: bool, defaults: dict
) -> tuple[list[nn.Module], list[dict]]:
    """Look at arguments of `shard`; returns units as a list, and params as a list of dicts with a list of
    parameters each.
    """
    _optimizer(optimizer_class, elementwise, defaults)
    units = (
        ([model] if stage == 1 else [])
        if units is None
        else list(instance("units", units, Iterable, "of modules of the model"))
    )
    if foreign := [type(module).__name__ for module in units if module not in list(model.modules())]:
        raise ValueError(f"units: {', '.join(foreign)} is no part of the model.")
    return units, _param_groups(model, params)


def _optimizer(optimizer_class: Callable, elementwise: bool, defaults: dict) -> None:
    if isinstance(function("optimizer_class", optimizer_class), type) and not issubclass(
        optimizer_class, torch.optim.Optimizer
    ):
        raise TypeError(f"optimizer_class={optimizer_class.__name__}: it must be one of torch's optimizers.")
    if defaults.get("differentiable"):
        raise ValueError(
            "differentiable=True: shards are updated in place, and no gradient goes through that."
        )
    if elementwise:
        return
    kind = getattr(optimizer_class, "func", optimizer_class)  # of a functools.partial
    kind = (
        kind if isinstance(kind, type) else type(optimizer_class([nn.Parameter(torch.zeros(1))], **defaults))
    )
    if kind not in ELEMENTWISE:
        raise ValueError(
            f"optimizer_class={kind.__name__}: it would see parts of flattened parameters, and goes wrong in"
            " silence if it looks at a tensor as a whole (its shape, its norm), as Adafactor, Muon, LAMB,"
            " Shampoo and LBFGS do. If you know that it treats each element for itself, pass"
            " elementwise=True."
        )


def _param_groups(model: nn.Module, params) -> list[dict]:
    groups = list(
        model.parameters()
        if params is None
        else instance("params", params, Iterable, "of parameters, or of dicts with them")
    )
    groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
    if not all(isinstance(group, dict) and isinstance(group.get("params"), Iterable) for group in groups):
        raise ValueError("params: groups of parameters must be dicts with the key 'params'.")
    groups = [
        {
            **group,
            "params": [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"]),
        }
        for group in groups
    ]
    given = [parameter for group in groups for parameter in group["params"]]
    if not all(isinstance(parameter, nn.Parameter) for parameter in given):
        raise ValueError("params: it must be parameters of the model, or groups of them as dicts.")
    if not set(given) <= set(model.parameters()):
        raise ValueError("params: some are no parameters of the model.")
    if len(set(given)) < len(given):
        raise ValueError("params: a parameter is there twice.")
    if missing := [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter not in set(given)
    ]:
        raise ValueError(
            f"params has no {', '.join(missing)}: one optimizer has all that learns, so freeze them"
            " (requires_grad_(False)), or make them a group of their own."
        )
    if not any(parameter.requires_grad for parameter in given):
        raise ValueError("model: it has no parameter that learns.")
    if any(parameter._post_accumulate_grad_hooks for parameter in given):
        raise ValueError(
            "model: its gradients have hooks already, from another `shard`, say, or from DDP: make the model"
            " anew and wrap it once."
        )
    return groups


def changed(model: nn.Module, units: list["Unit"]) -> None:
    """Before forward, or at the step: what was done to the model since `shard` that its units do not know
    of?
    """
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
    plain = {
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        # a zero changes nothing
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
    """Hooks of the model that refuse. A copy of the model has them, too; but it is none of this
    optimizer's.
    """
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
