"""Save and load what the ranks of `mini.zero` hold, by torch.distributed.checkpoint (dcp): what n ranks save,
m ranks can load.

    dcp.save(optimizer.state_dict(), checkpoint_id=path)

    dcp.load(state := optimizer.state_dict(), checkpoint_id=path)             # fills the state in place
    optimizer.load_state_dict(state)                                          # takes it over

Shards are DTensors: each knows which part of a longer tensor it is, and that has no padding.
"""

import copy
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from course_lib.mini.zero import Unit, ZeroOptimizer

__all__ = ["state_dict", "load_state_dict"]


def state_dict(optimizer: "ZeroOptimizer") -> dict:
    """Parameters and optimizer states, as this rank holds them, as "units"; the options of "param_groups";
    whether there was a step at all.
    """
    states = optimizer.state or _fresh_state(optimizer)
    units = {}
    for unit in optimizer.units:
        tensors = {"shard": unit.shard, **states.get(unit.shard, {})}
        units[unit.name] = {name: _saved(unit, value) for name, value in tensors.items()}
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    return {"units": units, "stepped": bool(optimizer.state), "param_groups": groups}


@torch.no_grad()
def load_state_dict(optimizer: "ZeroOptimizer", state_dict: dict) -> None:
    """Take over what `state_dict` has returned and dcp has filled. Every rank must call this."""
    optimizer.state.clear()
    for unit in optimizer.units:
        tensors = {name: _padded(unit, value) for name, value in state_dict["units"][unit.name].items()}
        unit.shard.copy_(tensors.pop("shard"))
        if state_dict["stepped"] and tensors:
            optimizer.state[unit.shard] = tensors
        unit.free()
        if unit.stage < 3:
            unit.gather()
    for group, loaded in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        group.update(loaded)


def _saved(unit: "Unit", value) -> "DTensor | object":
    """A tensor of the shard's size as this rank's part of [numel], without padding; another value, such as a
    count of steps, as it is.
    """
    if not isinstance(value, Tensor) or value.shape != unit.shard.shape:
        return value
    # here, because this import takes half a second
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(unit.process_group or dist.group.WORLD, value.device.type)
    real = value.detach()[: max(0, min(value.numel(), unit.numel - unit.own.start))]
    return DTensor.from_local(real.clone(), mesh, [Shard(0)], shape=torch.Size([unit.numel]), stride=(1,))


def _padded(unit: "Unit", value):
    """What `_saved` has made, with its padding; another value as it is."""
    if not hasattr(value, "to_local"):
        return copy.deepcopy(value)
    padded = unit.shard.detach().new_zeros(unit.shard.shape, dtype=value.dtype)
    padded[: value.to_local().numel()] = value.to_local()
    return padded


def _fresh_state(optimizer: "ZeroOptimizer") -> dict:
    """States to be filled, before the first step has made any: by a step of a copy, whose parameters are
    thrown away.
    """
    stand_ins = {
        unit.shard: torch.nn.Parameter(unit.shard.detach().clone()) for unit in optimizer.units if unit.learns
    }
    for stand_in in stand_ins.values():
        stand_in.grad = torch.zeros_like(stand_in)
    groups = [
        {**group, "params": [stand_ins[shard] for shard in group["params"]]}
        for group in optimizer.param_groups
    ]
    twin = copy.copy(optimizer.optim)
    twin.param_groups, twin.state = groups, type(optimizer.state)(dict)
    twin.step()
    return {shard: twin.state.get(stand_in, {}) for shard, stand_in in stand_ins.items()}
