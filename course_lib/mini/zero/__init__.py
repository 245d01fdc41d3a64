"""ZeRO: data parallel training in which no rank holds what another one holds already.

With DDP, every rank keeps all parameters, all gradients and all optimizer states, n times the same. ZeRO cuts
each into n shards. The means are
one and the same in its three stages: a `Unit` puts some parameters one after the other into a flat tensor of
n equal chunks (the last one is padded), and rank k owns chunk k, its *shard*. The optimizer gets shards
instead of parameters and never knows. Each stage shards one thing more:

    stage   optimizer states   gradients in full                   parameters in full                   sent
    per step 1       shards             from backward to zero_grad          always
    2 r P 2       shards             until their unit is complete        always
    2 r P 3       shards             until their unit is complete        while their module computes
    3 r P

A chunk of the gradients' average comes by reduce_scatter (r P bytes, r = (n-1)/n), and parameters become
whole by all_gather (r P): in stages 1 and 2 once, after the optimizer's step; in stage 3 twice, before a
module's forward and again before its backward.

Read on in `zero_unit` (how a unit is cut, gathered, freed and averaged) and `zero_hooks` (who calls it when).
Around the idea stand `zero_gradients` (for torch's own clipping and scaling), `zero_saved` (what backward
needs again), `zero_checkpoint` (save and load) and `zero_refusals`.

Source: Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models",
    sections 5 and 7.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import number
from course_lib.mini.zero import checkpoint as zero_checkpoint
from course_lib.mini.zero import refusals as zero_refusals
from course_lib.mini.zero.gradients import Spread, plain
from course_lib.mini.zero.hooks import Hooks
from course_lib.mini.zero.unit import Unit

__all__ = ["shard", "ZeroOptimizer", "Unit"]


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
            and what is frozen from then on. All
            start from rank 0's parameters and buffers.
        stage: 1 shards optimizer states, 2 gradients too, 3 parameters too.
        optimizer_class: an optimizer that treats each element for itself, as SGD, Adam and AdamW do.
        params: as torch's optimizers take them: parameters, or several groups of them as dicts. None: all.
            What is not to learn must be frozen
            (requires_grad=False).
        units: modules whose parameters share a flat tensor, and so travel and (stage 3) live together. What
            is in none of them makes a unit for each
            module that has parameters of its own, and is gathered when that module computes. None: for stage
            1 the whole model, for 2 and 3 none.
        process_group: the ranks that take part; None for all. Several groups train several models: nothing
            passes between them, but by `replicas`.
        replicas: the ranks of other groups that hold the same shard of the same model; gradients are averaged
            over them, too (hybrid sharding). With
            groups = hybrid.make_groups({"replicas": 2, "shards": 2}): process_group=groups["shards"],
            replicas=groups["replicas"].
        elementwise: True says that an optimizer that is none of torch's treats each element for itself.
        defaults: the optimizer's own options, such as lr.

    Returns:
        The model and its optimizer. In stage 3 the model's parameters are empty, but for shards, unless their
        module is computing: see `ZeroOptimizer.gathered`. Several backwards before a step add up; in stages 2
        and 3 each of them sends its gradients. Torch's clip_grad_norm_, clip_grad_value_ and GradScaler see
        the gradient of the whole model. Buffers are not synchronised. A weight that two modules share (tied)
        is gathered in stage 3 for each of them in forward, and stays whole in backward from one to the other.

    There is no second backward through gradients (create_graph). If, in stage 3, the forward of one module
    uses parameters of another one, as torch's MultiheadAttention does with those of its `out_proj`, they must
    be in one unit.

    Errors: ValueError for a stage, units, params or an optimizer that cannot be; RuntimeError, in forward,
        backward or step, for what one process
        could do and this cannot: each says what to do.
    """
    units, groups = zero_refusals.arguments(
        model, stage, optimizer_class, params, units, (process_group, replicas), elementwise, defaults
    )
    group_of = {
        parameter: k
        for k, group in enumerate(groups)
        for parameter in group["params"]
        if parameter.requires_grad
    }
    names = {module: name for name, module in model.named_modules()}
    for ranks in (process_group,) if replicas is None else (process_group, replicas):
        _broadcast([*model.parameters(), *model.buffers()], ranks)
    needs: dict[nn.Module, list[Unit]] = {}
    unit_of: dict[nn.Parameter, Unit] = {}
    shards: list[list[nn.Parameter]] = [[] for _ in groups]
    for module, used in _users(model, units).items():
        kinds: dict[tuple, list[nn.Parameter]] = {}
        for parameter in used:
            if parameter not in unit_of:  # a tied one belongs to the first module that uses it
                kinds.setdefault((group_of.get(parameter), parameter.dtype, parameter.device), []).append(
                    parameter
                )
        for k, ((group, *_), members) in enumerate(kinds.items()):
            unit = Unit(module, f"shard_{k}", members, stage, process_group, replicas)
            unit.name = f"{names[module]}.{unit.key}" if names[module] else unit.key
            unit_of |= dict.fromkeys(members, unit)
            if group is not None:
                shards[group].append(unit.shard)
        needs[module] = list(dict.fromkeys(unit_of[parameter] for parameter in used if parameter in unit_of))
    hooks = Hooks(stage, needs, unit_of)
    zero_refusals.guard(model, hooks)
    optim = optimizer_class(
        [{**group, "params": members} for group, members in zip(groups, shards)], **defaults
    )
    return model, ZeroOptimizer(optim, hooks, model, process_group)


class ZeroOptimizer(torch.optim.Optimizer):
    """An optimizer of this rank's shards, with what they need before and after its step.

    Attributes:
        optim: the optimizer itself, torch's own. `param_groups` and `state` are its; the tensors in them are
            shards.
        units: all units, in the order of the model's modules.
    """

    def __init__(
        self,
        optim: torch.optim.Optimizer,
        hooks: Hooks,
        model: nn.Module,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__([{**group} for group in optim.param_groups], optim.defaults)
        self.optim, self.units, self.stage, self.process_group = (
            optim,
            hooks.units,
            hooks.stage,
            process_group,
        )
        self.param_groups, self.state = optim.param_groups, optim.state
        self._hooks, self._model = hooks, model

    def step(self, closure: Callable[[], Tensor] | None = None, **options) -> Tensor | None:
        """Average the gradients (stage 1), update this rank's shards, and make the parameters whole again
        (stages 1 and 2).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._average()
        if not self._hooks.looked:
            zero_refusals.changed(self._model, self.units)
        self._hooks.looked = False
        zero_refusals.unused(self._model, self.units, self.optim)
        with self._plain_gradients():
            self.optim.step(**options)
        for unit in self.units:
            unit.free()  # stage 3: what a backward that failed has left in full is old now
            if self.stage < 3 and unit.learns:
                unit.gather()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients, in full and sharded (they are never kept as zeros), and of what a forward
        or backward that failed has left.
        """
        self._hooks.reset()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm over all parameters is at most `max_norm`; returns the norm
        before. Every rank must call this.

        A rank knows its shards only. So the squares are summed over the ranks before the root is taken.
        (Torch's own clip_grad_norm_ comes to the same result, with a collective for each parameter.)
        """
        max_norm = float(number("max_norm", max_norm, finite=False))
        self._average()
        grads = [plain(unit.shard.grad) for unit in self.units if unit.shard.grad is not None]
        norm = self.units[0].shard.new_zeros((), dtype=torch.float64)
        norm = sum((torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2 for grad in grads), norm)
        dist.all_reduce(norm, group=self.process_group)
        norm.sqrt_()
        for grad in grads:
            grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Within this context the model is as it was before `shard`: for `model.state_dict()`, a norm, a
        copy. Every rank must enter it.

        What is written there (`model.load_state_dict`, say) stays; every rank must write the same.
        """
        whole = self.units if self.stage == 3 else []
        for unit in whole:
            unit.gather()
            delattr(unit.module, unit.key)
        self._hooks.all_gathered = bool(whole)
        try:
            yield
            zero_refusals.changed(self._model, self.units)
        finally:
            self._hooks.all_gathered = False
            for unit in whole:
                unit.keep()
                unit.module.register_parameter(unit.key, unit.shard)
                unit.free()

    def state_dict(self) -> dict:
        """Return parameters and optimizer states, as this rank holds them, for torch.distributed.checkpoint:
        see `zero_checkpoint.state_dict`.
        """
        return zero_checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over parameters and optimizer states from what `state_dict` has returned and dcp has filled.
        Every rank must call this.
        """
        zero_checkpoint.load_state_dict(self, state_dict)

    def add_param_group(self, param_group: dict) -> None:
        """Refused, after `shard`."""
        zero_refusals.added(self)
        super().add_param_group(param_group)

    def __reduce_ex__(self, protocol):
        return zero_refusals.copied(self)

    def _average(self) -> None:
        zero_refusals.unfinished(self._hooks)
        self._hooks.notice_dropped()
        for unit in self.units:
            unit.average()

    @contextlib.contextmanager
    def _plain_gradients(self) -> Iterator[None]:
        """For the optimizer itself, which updates this rank's part and asks nobody."""
        for unit in self.units:
            if unit.shard.grad is not None:
                unit.shard.grad = plain(unit.shard.grad)
        try:
            yield
        finally:
            for unit in self.units:
                if unit.shard.grad is not None:
                    unit.shard.grad = Spread.of(unit, unit.shard.grad)


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


@torch.no_grad()
def _broadcast(tensors: Iterable[Tensor], process_group: dist.ProcessGroup | None) -> None:
    for tensor in tensors:
        dense = tensor.contiguous()
        dist.broadcast(dense, group_src=0, group=process_group)
        tensor.copy_(dense)
