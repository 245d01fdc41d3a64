"""What f and g of `mini.tensor_parallel` become under sequence parallelism, where each rank has a slice of
the tokens outside of the cut part; and `Region`, which knows the two at its borders.

                                  forward          backward
    f   gather_from_group         all_gather       reduce_scatter
    g   reduce_scatter_to_group   reduce_scatter   all_gather

All ranks of the group must call them together, and run the same backward.

Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", section
    4.2.2 (which calls them g and g with a bar).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import process_group, takes
from course_lib.mini import tensor_parallel as plain  # for f and g, when they are called
from course_lib.mini.tensor_parallel import refusals as refuse

__all__ = ["gather_from_group", "reduce_scatter_to_group", "Region"]

Group = dist.ProcessGroup | None
# (output, input, group=...), as dist.reduce_scatter_tensor or mini.ring.reduce_scatter
ReduceScatter = Callable[..., object]


@takes(x=refuse.other_shapes, group=process_group, reduce_scatter=refuse.other_sums)
def gather_from_group(x: Tensor, group: Group = None, reduce_scatter: ReduceScatter | None = None) -> Tensor:
    """f under sequence parallelism: forward all ranks' slices [..., time / n, dim] as [..., time, dim];
    backward the sum of its own slice.
    """
    return plain.Operator.apply(
        x, lambda x: all_slices(x, group, -2), lambda grad: _sum_slice(grad, group, reduce_scatter)
    )


@takes(x=refuse.other_shapes, group=process_group, reduce_scatter=refuse.other_sums)
def reduce_scatter_to_group(
    x: Tensor, group: Group = None, reduce_scatter: ReduceScatter | None = None
) -> Tensor:
    """g under sequence parallelism: forward this rank's slice [..., time / n, dim] of the sum of x over the
    ranks; backward all slices.
    """
    return plain.Operator.apply(
        x, lambda x: _sum_slice(x, group, reduce_scatter), lambda grad: all_slices(grad, group, -2)
    )


@dataclass(frozen=True)
class Region:
    """The part of a network in which tensors are cut by features (a pair of layers): who shares it, and which
    operators stand at its borders.

    Attributes: as the arguments of tensor_parallel.parallelize.
    """

    group: Group = None
    sequence_parallel: bool = False
    reduce_scatter: ReduceScatter | None = None

    def __post_init__(self) -> None:
        process_group("group", self.group)
        refuse.other_sums("reduce_scatter", self.reduce_scatter)

    def enter(self, x: Tensor) -> Tensor:
        """f: [..., time (or time / n), dim] in, [..., time, dim] out."""
        return (
            gather_from_group(x, self.group, self.reduce_scatter)
            if self.sequence_parallel
            else plain.copy_to_group(x, self.group)
        )

    def leave(self, x: Tensor) -> Tensor:
        """g: an addend [..., time, dim] in, the sum [..., time (or time / n), dim] out."""
        return (
            reduce_scatter_to_group(x, self.group, self.reduce_scatter)
            if self.sequence_parallel
            else plain.reduce_from_group(x, self.group)
        )

    def outside(self, parameter: nn.Parameter) -> Tensor:
        """A parameter that is whole on every rank, for use outside the region.

        Under sequence parallelism each rank uses it for its own tokens, so its gradient has an addend on
        every rank. f sums them; without it the ranks' copies would drift apart. (Megatron sums them in one
        all_reduce after backward.)
        """
        return plain.copy_to_group(parameter, self.group) if self.sequence_parallel else parameter


def all_slices(x: Tensor, group: Group, dim: int) -> Tensor:
    """All ranks' slices, put together along `dim`."""
    parts = x.new_empty(dist.get_world_size(group), *x.shape)
    dist.all_gather_into_tensor(parts.view(-1), x.contiguous().view(-1), group=group)
    return torch.cat(list(parts), dim)


def _sum_slice(x: Tensor, group: Group, reduce_scatter: ReduceScatter | None) -> Tensor:
    share(x.shape[-2], "tokens", group)
    # [n, ..., time / n, dim]: in memory, one slice after the other
    parts = torch.stack(x.chunk(dist.get_world_size(group), -2))
    output = torch.empty_like(parts[0])
    (reduce_scatter or dist.reduce_scatter_tensor)(output.view(-1), parts.view(-1), group=group)
    return output


def share(count: int, what: str, group: Group) -> int:
    """How many of `count` things each rank gets. Errors: ValueError if they cannot be dealt out evenly."""
    size = dist.get_world_size(group)
    if count % size:
        raise ValueError(f"{count} {what} cannot be dealt out evenly to {size} ranks.")
    return count // size
