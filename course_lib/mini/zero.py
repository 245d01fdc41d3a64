"""ZeRO: data parallel training in which no rank holds what another one holds already.

With DDP, every rank keeps all parameters, all gradients and all optimizer states, n times the same. ZeRO cuts each into n shards. The means are
one and the same in its three stages: a `Unit` puts some parameters one after the other into a flat tensor of n equal chunks (the last one is
padded), and rank k owns chunk k, its *shard*. The optimizer gets shards instead of parameters and never knows. Each stage shards one thing more:

    stage   optimizer states   gradients in full                   parameters in full                   sent per step
    1       shards             from backward to zero_grad          always                               2 r P
    2       shards             until their unit is complete        always                               2 r P
    3       shards             until their unit is complete        while their module computes          3 r P

A chunk of the gradients' average comes by reduce_scatter (r P bytes, r = (n-1)/n), and parameters become whole by all_gather (r P): in stages 1 and 2
once, after the optimizer's step; in stage 3 twice, before a module's forward and again before its backward.

Read on in `zero_unit` (how a unit is cut, gathered, freed and averaged) and `zero_hooks` (who calls it when).

Source: Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models", sections 5 and 7.
"""
import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import arguments
from course_lib.arguments import function, instance, number
from course_lib.mini.zero_hooks import Hooks
from course_lib.mini.zero_unit import Unit

__all__ = ["shard", "ZeroOptimizer", "Unit"]


def shard(model: nn.Module, stage: int, optimizer_class: Callable[..., torch.optim.Optimizer], *,
          params: Iterable[nn.Parameter] | Iterable[dict] | None = None, units: Iterable[nn.Module] | None = None,
          process_group: dist.ProcessGroup | None = None, **defaults) -> tuple[nn.Module, "ZeroOptimizer"]:
    """Shard a model's training over the ranks of a group; every rank must call this, and from then on compute the same layers in the same order.

    Args:
        model: the same architecture on every rank; it is changed in place. All start from rank 0's parameters and buffers.
        stage: 1 shards optimizer states, 2 gradients too, 3 parameters too.
        optimizer_class: an optimizer that treats each element for itself, as SGD, Adam and AdamW do.
        params: as torch's optimizers take them: parameters, or several groups of them as dicts. None: all. What is not to learn must be frozen
            (requires_grad=False).
        units: modules whose parameters share a flat tensor, and so travel and (stage 3) live together. What is in none of them makes a unit for each
            module that has parameters of its own, and is gathered when that module computes. None: for stage 1 the whole model, for 2 and 3 none.
        process_group: the ranks that take part; None for all.
        defaults: the optimizer's own options, such as lr.

    Returns:
        The model and its optimizer. In stage 3 the model's parameters are empty, but for shards, unless their module is computing: see
        `ZeroOptimizer.gathered`. Several backwards before a step add up; in stages 2 and 3 each of them sends its gradients. Buffers are not
        synchronised. A weight that two modules share (tied) is gathered in stage 3 for each of them in forward, and stays whole in backward from one
        to the other.

    In stage 3 a module's output must be tensors, or tuples, lists and dicts of them, and there is no second backward through gradients (create_graph). If
    the forward of one module uses parameters of another one, as torch's MultiheadAttention does with those of its `out_proj`, they must be in one unit.

    Errors: ValueError for a stage, units or params that cannot be. In stage 1, a backward raises RuntimeError if no `zero_grad()` followed the step.
    """
    if not isinstance(stage, int) or stage not in (1, 2, 3):
        raise ValueError(f"stage={stage!r}: it must be 1, 2 or 3.")
    instance("model", model, nn.Module)
    if isinstance(function("optimizer_class", optimizer_class), type) and not issubclass(optimizer_class, torch.optim.Optimizer):
        raise TypeError(f"optimizer_class={optimizer_class.__name__}: it must be one of torch's optimizers.")
    arguments.process_group("process_group", process_group)
    units = ([model] if stage == 1 else []) if units is None else list(instance("units", units, Iterable, "of modules of the model"))
    if foreign := [type(module).__name__ for module in units if module not in list(model.modules())]:
        raise ValueError(f"units: {', '.join(foreign)} is no part of the model.")
    groups = list(model.parameters() if params is None else instance("params", params, Iterable, "of parameters, or of dicts with them"))
    groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
    if not all(isinstance(group, dict) and isinstance(group.get("params"), Iterable) for group in groups):
        raise ValueError("params: groups of parameters must be dicts with the key 'params'.")
    groups = [{**group, "params": [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])} for group in groups]
    if not all(isinstance(parameter, nn.Parameter) for group in groups for parameter in group["params"]):
        raise ValueError("params: it must be parameters of the model, or groups of them as dicts.")
    number = {parameter: k for k, group in enumerate(groups) for parameter in group["params"] if parameter.requires_grad}
    names = {module: name for name, module in model.named_modules()}
    if missing := [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in number]:
        raise ValueError(f"params has no {', '.join(missing)}: freeze what is not to learn, with requires_grad_(False).")
    _broadcast([*model.parameters(), *model.buffers()], process_group)
    needs: dict[nn.Module, list[Unit]] = {}
    unit_of: dict[nn.Parameter, Unit] = {}
    shards: list[list[nn.Parameter]] = [[] for _ in groups]
    for module, used in _users(model, units).items():
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for parameter in used:
            if parameter not in unit_of:              # a tied one belongs to the first module that uses it
                kinds.setdefault((number.get(parameter), parameter.dtype, parameter.device), []).append(parameter)
        for k, ((group, *_), members) in enumerate(kinds.items()):
            unit = Unit(module, f"shard_{k}", members, stage, process_group)
            unit.name = f"{names[module]}.{unit.key}" if names[module] else unit.key
            unit_of |= dict.fromkeys(members, unit)
            if group is not None:
                shards[group].append(unit.shard)
        needs[module] = list(dict.fromkeys(unit_of[parameter] for parameter in used if parameter in unit_of))
    hooks = Hooks(stage, needs, unit_of)
    optim = optimizer_class([{**group, "params": members} for group, members in zip(groups, shards)], **defaults)
    return model, ZeroOptimizer(optim, hooks, stage, process_group)


class ZeroOptimizer(torch.optim.Optimizer):
    """An optimizer of this rank's shards, with what they need before and after its step.

    Attributes:
        optim: the optimizer itself, torch's own. `param_groups` and `state` are its; the tensors in them are shards.
        units: all units, in the order of the model's modules.
    """

    def __init__(self, optim: torch.optim.Optimizer, hooks: Hooks, stage: int, process_group: dist.ProcessGroup | None) -> None:
        self.optim, self.units, self.stage, self.process_group = optim, hooks.units, stage, process_group
        self.defaults, self._hooks = optim.defaults, hooks

    @property
    def param_groups(self) -> list[dict]:
        return self.optim.param_groups

    @property
    def state(self) -> dict:
        return self.optim.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Average the gradients (stage 1), update this rank's shards, and make the parameters whole again (stages 1 and 2)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._average()
        self.optim.step()
        for unit in self.units:
            unit.free()                   # stage 3: what a backward that failed has left in full is old now
            if self.stage < 3 and unit.shard.requires_grad:
                unit.gather()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients, in full and sharded (they are never kept as zeros), and of what a forward or backward that failed has left."""
        self._hooks.reset()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm over all parameters is at most `max_norm`; returns the norm before. Every rank must call this.

        A rank knows its shards only. So the squares are summed over the ranks before the root is taken.
        """
        max_norm = float(number("max_norm", max_norm, finite=False))
        self._average()
        grads = [unit.shard.grad for unit in self.units if unit.shard.grad is not None]
        norm = sum(torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2 for grad in grads)
        dist.all_reduce(norm, group=self.process_group)
        norm.sqrt_()
        for grad in grads:
            grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Within this context the model is as it was before `shard`, to be read: `model.state_dict()`, or a norm. Every rank must enter it."""
        for unit in self.units if self.stage == 3 else ():
            unit.gather()
            del unit.module._parameters[unit.key]
        try:
            yield
        finally:
            for unit in self.units if self.stage == 3 else ():
                unit.module.register_parameter(unit.key, unit.shard)
                unit.free()

    def state_dict(self) -> dict:
        """Return parameters and optimizer states, as this rank holds them, for torch.distributed.checkpoint: `dcp.save(optimizer.state_dict(), ...)`.

        Shards are DTensors: each knows which part of a longer tensor it is, and that has no padding. So what n ranks save, m ranks can load:
        `dcp.load(state := optimizer.state_dict(), ...)` fills the state in place, and `optimizer.load_state_dict(state)` takes it over.
        """
        first = not self.state
        if first:                         # before the first step: states to be filled, that are not in use
            self._make_state()
        units = {unit.name: {"shard": unit.as_dtensor(unit.shard)} for unit in self.units}
        for unit in self.units:
            for name, value in self.state.get(unit.shard, {}).items():
                units[unit.name][name] = unit.as_dtensor(value) if value.shape == unit.shard.shape else value
        if first:
            self.state.clear()
        return {"units": units, "param_groups": [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Take over parameters and optimizer states from what `state_dict` has returned and dcp has filled. Every rank must call this."""
        if not self.state:
            self._make_state()
        own = self.state_dict()
        for name, tensors in own["units"].items():
            for key, value in tensors.items():
                _local(value).copy_(_local(state_dict["units"][name][key]))
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(loaded)
        for unit in self.units:
            unit.free()
            if self.stage < 3:
                unit.gather()

    def _make_state(self) -> None:
        """Let the optimizer make its states, by a step that changes nothing."""
        before = [unit.shard.grad for unit in self.units], [group["lr"] for group in self.param_groups]
        for unit in self.units:
            unit.shard.grad = torch.zeros_like(unit.shard) if unit.shard.requires_grad else None
        for group in self.param_groups:
            group["lr"] = 0.0
        self.optim.step()
        for state in self.state.values():
            if "step" in state:
                state["step"] *= 0
        for unit, grad in zip(self.units, before[0]):
            unit.shard.grad = grad
        for group, lr in zip(self.param_groups, before[1]):
            group["lr"] = lr

    def _average(self) -> None:
        """Stage 1: now that no more gradients will come, average them; the other stages did so during backward."""
        for unit in self.units:
            if self.stage == 1 and unit.grads is not None and unit.shard.grad is None:
                unit.reduce()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _users(module: nn.Module, units: list[nn.Module], within: nn.Module | None = None) -> dict[nn.Module, list[nn.Parameter]]:
    """For each module whose forward uses parameters, which ones. A unit uses all that is in it, but for units inside it."""
    within = module if module in units else within
    found = {within or module: list(module.parameters(recurse=False))}
    for child in module.children():
        lists = isinstance(child, (nn.ParameterList, nn.ParameterDict))       # they have no forward; their parent uses them
        for user, parameters in _users(child, units, (within or module) if lists else within).items():
            found.setdefault(user, []).extend(parameters)
    return {user: list(dict.fromkeys(parameters)) for user, parameters in found.items() if parameters}        # tied: once


@torch.no_grad()
def _broadcast(tensors: Iterable[Tensor], process_group: dist.ProcessGroup | None) -> None:
    for tensor in tensors:
        dense = tensor.contiguous()
        dist.broadcast(dense, group_src=0, group=process_group)
        tensor.copy_(dense)
