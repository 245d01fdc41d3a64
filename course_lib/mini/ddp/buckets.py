"""Buckets: gradients that travel together, in one flat tensor."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import at_least_0, takes
from course_lib.mini.ddp import refusals as refuse

__all__ = ["Bucket", "make_buckets", "torch_all_reduce"]


@dataclass
class Bucket:
    """Gradients that travel together.

    Attributes:
        flat: [sum of the parameters' numel]: what the all_reduce gets. Between backward and zero_grad, the
            gradients live here.
        views: each parameter's place in `flat`, in the parameter's shape.
        missing: the parameters whose gradient has not arrived in this backward.
        work: the all_reduce on its way.
    """

    flat: Tensor
    views: dict[nn.Parameter, Tensor]
    missing: set[nn.Parameter] = field(default_factory=set)
    work: dist.Work | None = None

    def wait(self) -> None:
        """Wait for the all_reduce, if one is on its way."""
        if self.work is not None:
            self.work.wait()
        self.work = None


def torch_all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> dist.Work | None:
    """Begin torch's own sum over the ranks, in place; returns what to wait for."""
    return dist.all_reduce(tensor, group=group, async_op=True)


@takes(cap_bytes=at_least_0, parameters=refuse.other_lists)
def make_buckets(parameters: Iterable[nn.Parameter], cap_bytes: float) -> list[Bucket]:
    """Deal out parameters, in their order, to buckets of one dtype and device; a bucket is closed as soon as
    it holds `cap_bytes` or more.
    """
    closed: list[list[nn.Parameter]] = []
    still_open: dict[tuple, list[nn.Parameter]] = {}
    for parameter in refuse.other_things(parameters):
        kind = parameter.dtype, parameter.device
        still_open.setdefault(kind, []).append(parameter)
        if sum(member.nbytes for member in still_open[kind]) >= cap_bytes:
            closed.append(still_open.pop(kind))
    return [_bucket(members) for members in [*closed, *still_open.values()]]


def _bucket(parameters: list[nn.Parameter]) -> Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].detach().new_zeros(sum(sizes))
    views = {}
    for parameter, part in zip(parameters, flat.split(sizes)):
        strides = torch.empty_like(parameter, device="meta").stride()  # channels_last, say, as the parameter
        views[parameter] = part.as_strided(parameter.shape, strides, part.storage_offset())
    return Bucket(flat, views)
