"""The arguments of `mini.zero.shard`: what is given as params, units and optimizer, and what cannot be."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.arguments import function, instance

__all__ = ["one_to_three", "units_and_groups", "ELEMENTWISE"]

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


def one_to_three(name: str, stage: int) -> None:
    """A stage of ZeRO."""
    if not isinstance(stage, int) or stage not in (1, 2, 3):
        raise ValueError(f"{name}={stage!r}: it must be 1, 2 or 3.")


def units_and_groups(
    model: nn.Module, stage: int, optimizer_class: Callable, params, units, elementwise: bool, defaults: dict
) -> tuple[list[nn.Module], list[dict]]:
    """Look at arguments of `shard`; returns units as a list, and params as a list of dicts with a list of
    parameters each.
    """
    _optimizer(optimizer_class, elementwise, defaults)
    if units is None:
        units = [model] if stage == 1 else []
    else:
        units = list(instance("units", units, Iterable, "of modules of the model"))
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
    if not isinstance(kind, type):
        kind = type(optimizer_class([nn.Parameter(torch.zeros(1))], **defaults))
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
    if any(torch_internals.hooks_after_gradient(parameter) for parameter in given):
        raise ValueError(
            "model: its gradients have hooks already, from another `shard`, say, or from DDP: make the model"
            " anew and wrap it once."
        )
    return groups
