"""What autograd saves in forward for backward, in stage 3: parameters among it must be whole again when they
are taken out.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_lib import torch_internals

if TYPE_CHECKING:
    from course_lib.mini.zero import Unit

__all__ = ["Saved"]


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """What autograd saves in the forward of a module: before it takes out a parameter, it calls `gather`, for
    then the parameter may have no memory.

    Hooks that are there already, such as those of a checkpoint, get to see everything as before. Torch itself
    looks whether a tensor was changed since it was saved, but not where there are hooks; so this does.
    """

    def __init__(self, units: list["Unit"], gather: Callable) -> None:
        unit_of = {unit.full.untyped_storage().data_ptr(): unit for unit in units}  # they are whole now
        others = torch_internals.saved_hooks()

        def pack(tensor: Tensor):
            # A unit is found again by this address: what is packed holds the tensor, and nothing of the unit.
            address = tensor.untyped_storage().data_ptr()
            if others:
                return address, 0, others[0](tensor)
            saved = tensor.detach()
            return address, torch_internals.version_of(watched(address, saved)), saved

        def unpack(packed) -> Tensor:
            address, version, saved = packed
            if not others and torch_internals.version_of(watched(address, saved)) != version:
                raise RuntimeError(
                    "a tensor that backward needs was changed in place after forward had saved it."
                )
            tensor = others[1](saved) if others else saved
            unit = unit_of.get(address)
            if unit is not None and not unit.full_bytes:
                gather(None)
            return tensor

        def watched(address: int, saved: Tensor) -> Tensor:
            return unit_of[address].shard if address in unit_of else saved

        super().__init__(pack, unpack)
