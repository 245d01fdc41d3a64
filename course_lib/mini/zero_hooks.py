"""When the units of ZeRO come together and go apart: hooks of modules and of autograd that call `mini.zero_unit.Unit`."""
import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from course_lib.mini.zero_unit import Unit

__all__ = ["Hooks"]


class Hooks:
    """Who calls a unit when: the forward of modules, and autograd."""

    def __init__(self, stage: int, needs: dict[nn.Module, list[Unit]], unit_of: dict[nn.Parameter, Unit]) -> None:
        self.stage, self.units, self.in_backward = stage, list(dict.fromkeys(unit_of.values())), False
        for parameter, unit in unit_of.items():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda parameter, unit=unit: self.arrive(parameter, unit))
        for module, units in needs.items() if stage == 3 else ():
            self.gather_around(module, units)

    def arrive(self, parameter: nn.Parameter, unit: Unit) -> None:
        """Autograd calls this when it has written `parameter.grad`."""
        if self.stage == 1 and unit.shard.grad is not None:
            raise RuntimeError("a gradient has come after the gradients were averaged: call optimizer.zero_grad() between step() and backward.")
        unit.put(parameter)
        self.expect_end()
        if self.stage > 1 and not unit.missing:
            unit.reduce()
            unit.free()

    def expect_end(self) -> None:
        """Ask autograd for a call when this backward ends."""
        if not self.in_backward:
            self.in_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)

    def finish(self) -> None:
        """The end of backward: parameters without a gradient count as zero if others of their unit have one."""
        self.in_backward = False
        for unit in self.units:
            if self.stage > 1 and unit.grads is not None:
                unit.reduce()
            unit.free()

    def reset(self) -> None:
        """Between a step and the next forward: no gradients, nothing gathered; also if a backward was not finished."""
        self.in_backward = False
        for unit in self.units:
            unit.forget()
            unit.free()

    def gather_around(self, module: nn.Module, units: list[Unit]) -> None:
        """Stage 3: the module's units are whole during its forward, and from its output's gradient on until their own gradients are complete."""
        frozen = [unit for unit in units if not unit.shard.requires_grad]
        mine: list[Unit] = []             # not what another module, or backward, has gathered and still needs

        def before_forward(module, args, kwargs):
            mine[:] = gather()
            inputs = _with_grad((args, kwargs))
            if frozen and inputs and torch.is_grad_enabled():
                # Frozen parameters get no gradients. Backward is done with them when it has those of the inputs.
                register_multi_grad_hook(inputs, lambda grads: [unit.free() for unit in frozen])

        def after_forward(module, args, kwargs, output):
            for unit in mine:
                unit.free()
            handed_on = {id(tensor) for tensor in tree_leaves((args, kwargs))}           # their gradients are complete after this backward
            for tensor in _with_grad(output):
                if id(tensor) not in handed_on:
                    tensor.register_hook(before_backward)

        def before_backward(grad):
            self.expect_end()
            gather()

        def gather():
            absent = [unit for unit in units if not unit.full_bytes]
            for unit in absent:
                unit.gather()
            return absent

        module.register_forward_pre_hook(before_forward, with_kwargs=True)
        module.register_forward_hook(after_forward, with_kwargs=True, always_call=True)           # also when forward raises


def _with_grad(tensors) -> list[Tensor]:
    return [tensor for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor) and tensor.requires_grad]
