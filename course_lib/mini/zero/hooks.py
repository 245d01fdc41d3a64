"""Who calls `zero.Events` when: hooks of modules and of autograd."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from course_lib import torch_internals
from course_lib.mini.zero import refusals as refuse
from course_lib.mini.zero.gradients import dropped, show, take_back
from course_lib.mini.zero.saved import Saved
from course_lib.torch_internals import tree_leaves

if TYPE_CHECKING:
    from course_lib.mini.zero import Unit

__all__ = ["Hooks"]


class Hooks:
    """The base of `zero.Events`, which says what happens to the units."""

    def __init__(
        self, stage: int, needs: dict[nn.Module, list["Unit"]], unit_of: dict[nn.Parameter, "Unit"]
    ) -> None:
        self.stage, self.units, self.in_backward = stage, list(dict.fromkeys(unit_of.values())), False
        # whether the model is whole within gathered(); whether it was looked at since the last step
        self.all_gathered = self.looked = False
        for parameter, unit in unit_of.items():
            if parameter.requires_grad:
                parameter.register_hook(
                    lambda grad, parameter=parameter, unit=unit: self.announce(parameter, unit)
                )
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter, unit=unit: self.look(parameter, unit)
                )
        for module, units in needs.items() if stage == 3 else ():
            self.gather_around(module, units)

    def announce(self, parameter: nn.Parameter, unit: "Unit") -> None:
        """Autograd calls this when it is about to add to `parameter.grad`."""
        self.expect_end()
        take_back(unit, parameter)

    def look(self, parameter: nn.Parameter, unit: "Unit") -> None:
        """Autograd calls this when it has written `parameter.grad`."""
        refuse.late(unit, self)
        refuse.second_order()
        self.arrive(parameter, unit)

    def expect_end(self) -> None:
        """Ask autograd for a call when this backward ends."""
        if not self.in_backward:
            self.in_backward = True
            torch_internals.when_backward_ends(self.finish)
            self.notice_dropped()

    def finish(self) -> None:
        """The end of backward: parameters without gradient count as zero if others of their unit have one."""
        self.in_backward = False
        for unit in self.units:
            if self.stage > 1 and unit.grads is not None:
                unit.reduce()
            unit.free()
            show(unit)

    def notice_dropped(self) -> None:
        """`model.zero_grad()` lets go of the gradients that a model shows. So the units let go of theirs."""
        for unit in self.units:
            if dropped(unit):
                unit.forget()

    def reset(self) -> None:
        """Between a step and the next forward: no gradients, nothing gathered; also if a backward was not
        finished.
        """
        self.in_backward = False
        for unit in self.units:
            unit.forget()
            unit.free()

    def gather_around(self, owner: nn.Module, units: list["Unit"]) -> None:
        """Stage 3: a module's units are whole during its forward, and from its output's gradient on until
        their own gradients are complete.

        An output may hide from this hook: in an object of the model's own, as a view that is written to, as a
        tensor that a module keeps. So autograd, too, asks for a unit before it takes out what it has saved of
        its parameters.
        """
        mine: list[Unit] = []  # not what another module, or backward, has gathered and still needs
        saving: list[Saved] = []

        def before_forward(module, args, kwargs):
            if module is not owner:  # but a copy of it, which has its parameters, and these hooks, too
                return
            mine[:] = self.before(units)
            inputs = _with_grad((args, kwargs))
            frozen = [unit for unit in units if not any(parameter.requires_grad for parameter in unit.views)]
            if frozen and inputs and torch.is_grad_enabled():
                # Frozen parameters get no gradients. Backward is done with them when it has those of the
                # inputs.
                register_multi_grad_hook(inputs, lambda grads: [unit.free() for unit in frozen])
            saving.append(Saved(units, before_backward))
            saving[-1].__enter__()

        def after_forward(module, args, kwargs, output):
            if module is not owner or not saving:
                return
            saving.pop().__exit__()
            self.after(mine)
            # their gradients are complete after this backward
            handed_on = {id(tensor) for tensor in tree_leaves((args, kwargs))}
            for tensor in _with_grad(output):
                if id(tensor) not in handed_on:
                    tensor.register_hook(before_backward)

        def before_backward(grad):
            refuse.second_order()
            self.expect_end()
            self.before(units)

        # First of all before forward, for other hooks may compute with parameters (weight_norm's); and last
        # after it, also when forward raises.
        owner.register_forward_pre_hook(before_forward, with_kwargs=True, prepend=True)
        owner.register_forward_hook(after_forward, with_kwargs=True, always_call=True)


def _with_grad(tensors) -> list[Tensor]:
    return [tensor for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor) and tensor.requires_grad]
