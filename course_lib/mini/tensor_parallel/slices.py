"""Slices of parameters: this rank's part of a weight, and all ranks' parts put together again."""

import copy
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import process_group, takes
from course_lib.mini.first_rank import copy_from_first_rank
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel.operators import Group, Region, all_slices, share

__all__ = ["SlicedLinear", "slice_of", "own", "as_on_first_rank", "retie", "gather_full"]


class SlicedLinear(nn.Module):
    """This rank's slice of an nn.Linear, cut along `cut_dims` of its parameters."""

    cut_dims: ClassVar[dict[str, int]]

    @takes(region=Region)
    def __init__(self, linear: nn.Linear, region: Region = Region()) -> None:
        super().__init__()
        refuse.other_than_plain("linear", linear, nn.Linear)
        self.region = region
        self.weight = slice_of(linear.weight, self.cut_dims["weight"], region.group)
        self.bias = slice_of(linear.bias, self.cut_dims.get("bias"), region.group)

    def extra_repr(self) -> str:
        return f"weight {list(self.weight.shape)}, one of {dist.get_world_size(self.region.group)}"


def slice_of(full: nn.Parameter | None, dim: int | None, group: Group) -> nn.Parameter | None:
    """This rank's slice along `dim` (None: all of it). A copy: a view would keep the whole tensor alive."""
    if full is None:
        return None
    part = full.detach()
    if dim is not None:
        part = part.movedim(dim, 0)[own(full.shape[dim], "features", group)].movedim(0, dim)
    return nn.Parameter(part.clone(memory_format=torch.contiguous_format), full.requires_grad)


def own(count: int, what: str, group: Group) -> slice:
    """Which of `count` things are this rank's."""
    width, rank = share(count, what, group), dist.get_rank(group)
    return slice(rank * width, (rank + 1) * width)


def as_on_first_rank(model: nn.Module, group: Group) -> nn.Module:
    """A copy with the weights of the group's first rank: slices of other weights on each rank would be no
    model at all.
    """
    model = copy.deepcopy(model)
    copy_from_first_rank(model.parameters(), group)
    return model


def retie(cut: nn.Module, whole: nn.Module) -> nn.Module:
    """Make one parameter again of those slices that were one weight in `whole`."""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for names in places.values():
        if len(names) > 1:
            owners = [(cut.get_submodule(path), name) for path, _, name in (n.rpartition(".") for n in names)]
            refuse.other_cuts(names, [getattr(owner, "cut_dims", {}).get(name) for owner, name in owners])
            for owner, name in owners[1:]:
                setattr(owner, name, getattr(*owners[0]))
    return cut


@takes(model=nn.Module, group=process_group)
def gather_full(model: nn.Module, group: Group = None, grads: bool = False) -> dict[str, Tensor]:
    """Put every parameter (or gradient) of a parallelized model together again, by name: what one process
    would have.

    Every rank of the group must call this. The names are those of the model that was cut, so that one can
    load it.
    """
    full = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = parameter.grad if grads else parameter.detach()
            dim = getattr(module, "cut_dims", {}).get(name)
            whole = dim is None or tensor is None
            full[f"{prefix}.{name}".removeprefix(".")] = tensor if whole else all_slices(tensor, group, dim)
    return full
