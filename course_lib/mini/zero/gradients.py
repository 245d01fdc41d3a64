"""Gradients of which each rank has a part, for torch's own tools: clip_grad_norm_, clip_grad_value_ and
GradScaler see the whole model's.

A rank that takes the norm of its own part gets another number than its neighbour, scales by another factor,
and nothing says so. So between backward and zero_grad a gradient is a `Spread`: it computes element by
element on this rank's part, asks all ranks for a norm, and refuses everything else. (torch's DTensor does
this for every operation there is.)
"""

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.torch_internals import tree_leaves, tree_map_only

if TYPE_CHECKING:
    from course_lib.mini.zero import Unit

__all__ = ["Spread", "plain", "show", "take_back", "dropped", "LOOKS"]

LOOKS = {  # these compute nothing
    "__get__",
    "__len__",
    "data_ptr",
    "detach",
    "dim",
    "element_size",
    "get_device",
    "is_complex",
    "is_contiguous",
    "is_floating_point",
    "nelement",
    "numel",
    "requires_grad_",
    "size",
    "storage_offset",
    "stride",
    "untyped_storage",
}
NORMS = {"norm", "vector_norm", "linalg_vector_norm", torch_internals.FOREACH + "norm"}
ELEMENT_BY_ELEMENT = {
    prefix + name
    for prefix in ("", torch_internals.FOREACH)
    for name in ("mul_", "div_", "clamp_", "clamp_min_", "clamp_max_", "zero_")
} | {"__imul__", "__itruediv__", "nan_to_num_"}
UNSCALE = torch_internals.UNSCALE


class Spread(Tensor):
    """A gradient that all ranks of a unit have together; this rank has `part` of it, a view of the memory of
    `unit.shard.grad`.

    The gradient of a shard is that part itself. The gradient of a parameter has the parameter's shape and no
    memory of its own.
    """

    @classmethod
    def of(
        cls, unit: "Unit", mine: Tensor, tensor: Tensor | None = None, own: slice = slice(None)
    ) -> "Spread":
        """mine: this rank's part of the unit's gradient, and own: what of it belongs to this one; tensor:
        what it looks like.
        """
        spread = (mine if tensor is None else tensor).as_subclass(cls)
        spread.unit, spread.mine, spread.own = unit, mine, own
        return spread

    @property
    def part(self) -> Tensor:
        return self.mine[self.own]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = function.__name__
        with torch_internals.without_subclass():
            if name in LOOKS:
                result = function(*args, **(kwargs or {}))
                return args[0] if isinstance(result, Tensor) else result  # of .data, .detach() and the like
            first, *others = tree_leaves((args, kwargs))
            if (
                name not in NORMS | ELEMENT_BY_ELEMENT | {UNSCALE}
                or not isinstance(first, cls)
                or any(
                    isinstance(other, Tensor) and other.numel() > 1 and not isinstance(other, cls)
                    for other in others
                )
            ):
                raise RuntimeError(
                    f"{name} on a gradient of mini.zero: each rank has a part of it only; what it can do are"
                    " norms, and zeroing, clamping, multiplying by a number in place: torch's"
                    " clip_grad_norm_ and clip_grad_value_, and GradScaler."
                )
            for gradient in (first, *others):
                if isinstance(gradient, cls):
                    gradient.unit.average()
            parts, options = tree_map_only(cls, lambda gradient: _part(gradient, name), (args, kwargs or {}))
            result = function(*parts, **options)
            if name in NORMS:
                return _over_ranks(result, first.unit, parts[1:], options)
            if name == UNSCALE:  # all ranks skip the step, or none
                dist.all_reduce(args[1], dist.ReduceOp.MAX, group=first.unit.process_group)
                return result
            return args[0]

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"Spread(shape={list(self.shape)}, this rank has {self.part.numel()} of its elements)"


def plain(gradient: Tensor) -> Tensor:
    """This rank's part of a gradient, as a tensor like any other."""
    return gradient.part if isinstance(gradient, Spread) else gradient


def show(unit: "Unit") -> None:
    """After a backward: whoever looks for the gradient of a shard or (stages 1 and 2) of a parameter finds
    one that is spread over the ranks.
    """
    if unit.stage == 1 and unit.grads is not None and not unit.averaged:
        mine = unit.grads[unit.own]
        unit.shard.grad = Spread.of(unit, mine)
    if unit.stage == 3 or unit.shard.grad is None:
        return
    mine = plain(unit.shard.grad)
    element = mine[0]
    for parameter, view in unit.views.items():
        if parameter not in unit.unused:
            begin = view.storage_offset() - unit.own.start  # counted from the shard's first element
            own = slice(max(begin, 0), max(begin + view.numel(), 0))
            parameter.grad = Spread.of(unit, mine, element.expand(view.shape), own)


def take_back(unit: "Unit", parameter: nn.Parameter) -> None:
    """Before autograd adds to a gradient: it must find what is there in full."""
    if isinstance(parameter.grad, Spread):
        parameter.grad = unit.places[parameter] if unit.stage == 1 else None


def dropped(unit: "Unit") -> bool:
    """Whether somebody, such as `model.zero_grad()`, has let go of the gradients that `show` has shown: of
    all, or of none.

    Errors: RuntimeError if only some are gone, or one is there that `show` does not know.
    """
    if unit.stage == 3:
        return unit.shard.grad is None and len(unit.unused) < len(unit.views)
    kinds = {type(parameter.grad) for parameter in unit.views if parameter not in unit.unused}
    if not kinds <= {Spread, type(None)} or not all(parameter.grad is None for parameter in unit.unused):
        raise RuntimeError(
            "a gradient does not come from backward, but was assigned: the unit of its parameter does not"
            " know of it."
        )
    if len(kinds) == 2:
        raise RuntimeError(
            "some gradients of a unit were set to None, and others are still there: use"
            " optimizer.zero_grad()."
        )
    return kinds == {type(None)}


def _part(gradient: Spread, name: str) -> Tensor:
    return gradient.part if gradient.part.numel() or name not in NORMS else gradient.part.new_zeros(1)


def _over_ranks(norm, unit: "Unit", order: tuple, options: dict):
    """The norm of all parts together, from the norm of each."""
    if isinstance(norm, (list, tuple)):
        return [_over_ranks(one, unit, order, options) for one in norm]
    order = order[0] if order else options.get("ord", options.get("p", 2))
    order = 2.0 if order in ("fro", None) else float(order)
    if norm.dim() or not order > 0:
        raise RuntimeError(
            "a norm of a gradient of mini.zero is of the whole gradient, and its order above 0."
        )
    if order == float("inf"):
        dist.all_reduce(norm, dist.ReduceOp.MAX, group=unit.process_group)
        return norm
    power = norm.double() ** order
    dist.all_reduce(power, group=unit.process_group)
    return (power ** (1 / order)).to(norm.dtype)
