"""Which parameters share a unit, and which modules need it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from course_lib.mini.zero import Unit

__all__ = ["make_units"]


def make_units(
    model: nn.Module, modules: list[nn.Module], groups: list[dict], make_unit: Callable[..., "Unit"]
) -> tuple[dict[nn.Module, list["Unit"]], dict[nn.Parameter, "Unit"], list[list[nn.Parameter]]]:
    """Deal out a model's parameters to units: one for each module, group of the optimizer, dtype and device.

    Args:
        modules: whose parameters share a unit, with all that is in them, but for such modules inside it.
        groups: the optimizer's param groups, {"params": [...], ...} each.
        make_unit: makes a unit of a module, the name of its shard there, and its parameters.

    Returns: the units that each module's forward needs; each parameter's unit; and for each group, the shards
        of its units.
    """
    group_of = {p: k for k, group in enumerate(groups) for p in group["params"] if p.requires_grad}
    names = {module: name for name, module in model.named_modules()}
    needs: dict[nn.Module, list[Unit]] = {}
    unit_of: dict[nn.Parameter, Unit] = {}
    shards: list[list[nn.Parameter]] = [[] for _ in groups]
    for module, used in _users(model, modules).items():
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for p in used:
            if p not in unit_of:  # a tied one belongs to the first module that uses it
                kinds.setdefault((group_of.get(p), p.dtype, p.device), []).append(p)
        for k, ((group, *_), members) in enumerate(kinds.items()):
            unit = make_unit(module, f"shard_{k}", members)
            unit.name = f"{names[module]}.{unit.key}" if names[module] else unit.key
            unit_of |= dict.fromkeys(members, unit)
            if group is not None:
                shards[group].append(unit.shard)
        needs[module] = list(dict.fromkeys(unit_of[p] for p in used if p in unit_of))
    return needs, unit_of, shards


def _users(
    module: nn.Module, units: list[nn.Module], within: nn.Module | None = None
) -> dict[nn.Module, list[nn.Parameter]]:
    """For each module whose forward uses parameters, which ones. A unit uses all that is in it, but for units
    inside it.
    """
    within = module if module in units else within
    found = {within or module: list(module.parameters(recurse=False))}
    for child in module.children():
        # they have no forward; their parent uses them
        lists = isinstance(child, (nn.ParameterList, nn.ParameterDict))
        for user, parameters in _users(child, units, (within or module) if lists else within).items():
            found.setdefault(user, []).extend(parameters)
    # tied: once
    return {user: list(dict.fromkeys(parameters)) for user, parameters in found.items() if parameters}
