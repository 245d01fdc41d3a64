"""What mini.ddp refuses: whatever would leave other weights than those of one process, without a word. The
idea itself is in `mini.ddp`.

Each function raises an error of one sentence, which says what happened and what to do, or returns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.arguments import instance

if TYPE_CHECKING:
    from course_lib.mini.ddp.buckets import Bucket

__all__ = [
    "COPY",
    "other_lists",
    "other_things",
    "other_modules",
    "changed_parameters",
    "gradient",
    "touched_parameters",
    "no_gradient",
]

MOST_NAMES = 8  # of parameters, in one error
COPY = (
    "a DistributedDataParallel cannot be copied, pickled or saved, for its hooks would stay behind: take its"
    " module (model.module), or its state_dict()."
)


def other_lists(name: str, parameters) -> None:
    """What buckets cannot be made of."""
    instance(name, parameters, Iterable, "of parameters")


def other_things(parameters: Iterable) -> Iterator[nn.Parameter]:
    """One parameter after the other: a list of them may be one that can be read once only."""
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError("parameters: it must be parameters, such as model.parameters().")
        yield parameter


def other_modules(module: nn.Module, process_group: dist.ProcessGroup | None) -> None:
    """Compare parameters and buffers over the ranks; every rank of the group must call this."""
    mine = [
        f"{name} {list(tensor.shape)}, strides {tensor.stride()},"
        f" {tensor.dtype}{', frozen' * (not tensor.requires_grad)}"
        for name, tensor in module.named_parameters()
    ]
    mine += [f"{name} {list(tensor.shape)}, {tensor.dtype}" for name, tensor in module.named_buffers()]
    all_ranks: list = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(all_ranks, mine, group=process_group)
    first, *others = zip(dist.get_process_group_ranks(process_group or dist.group.WORLD), all_ranks)
    for rank, theirs in others:
        for one, other in zip_longest(first[1], theirs, fillvalue="nothing"):
            if one != other:
                raise ValueError(
                    f"rank {first[0]} has {one}, and rank {rank} has {other}: every rank must wrap the same"
                    " module."
                )


def changed_parameters(module: nn.Module, bucket_of: Mapping) -> None:
    """Parameters that learn and have no place in a bucket would drift apart."""
    parameters = set(module.parameters())
    changed = [
        parameter
        for parameter in parameters
        if parameter.requires_grad
        and (parameter not in bucket_of or _kind(parameter) != _kind(bucket_of[parameter].views[parameter]))
    ]
    if changed := changed or [parameter for parameter in bucket_of if parameter not in parameters]:
        raise RuntimeError(
            f"{_names(module, changed)} changed since this wrapper was made (added, replaced, unfrozen,"
            " another dtype or device, or wrapped once more): wrap the module again, and use the newest"
            " wrapper."
        )


def gradient(module: nn.Module, parameter: nn.Parameter, bucket: "Bucket") -> None:
    """Look at a gradient that has arrived in `parameter.grad`."""
    if parameter not in bucket.missing:
        problem = (
            "has got a second gradient in one backward, as in two reentrant checkpoints: use checkpoint(...,"
            " use_reentrant=False), or, if a backward failed before, call forward again"
        )
    elif parameter.grad is None:
        problem = "lost its gradient to a hook before it was averaged: let the optimizer step after backward"
    elif parameter.grad.layout != torch.strided:
        problem = "has a sparse gradient, and buckets are dense: make the layer with sparse=False"
    elif parameter.grad.requires_grad:
        problem = (
            "has a gradient with a graph (create_graph=True), which an all_reduce would cut off: take"
            " torch.autograd.grad for such a gradient"
        )
    else:
        return
    raise RuntimeError(f"{_names(module, [parameter])} {problem}.")


def touched_parameters(
    module: nn.Module, buckets: Sequence["Bucket"], versions: Mapping[nn.Parameter, int]
) -> None:
    """Look whether somebody stepped, with gradients of this rank alone, while backward ran."""
    if touched := [
        parameter
        for bucket in buckets
        for parameter, view in bucket.views.items()
        if parameter not in bucket.missing
        and (parameter.grad is not view or torch_internals.version_of(parameter) != versions[parameter])
    ]:
        raise RuntimeError(
            f"{_names(module, touched)} changed, or lost its gradient, within backward, before gradients were"
            " averaged: let the optimizer step after backward, not in a hook."
        )


def no_gradient(module: nn.Module, absent: Iterable[nn.Parameter]) -> None:
    """Parameters that learn must get a gradient in every backward."""
    if absent:
        raise RuntimeError(
            f"no gradient for {_names(module, absent)} in this backward on rank {dist.get_rank()}: the loss"
            " does not depend on it. Freeze it, or pass find_unused_parameters=True. If it does depend on it,"
            " return outputs as tensors, or in a list, dict or dataclass: in other objects nobody finds them."
        )


def _kind(tensor: Tensor) -> tuple:
    return tensor.dtype, tensor.device, tensor.shape


def _names(module: nn.Module, parameters: Iterable[nn.Parameter]) -> str:
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = sorted(names.get(parameter, "a parameter that is gone") for parameter in parameters)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return ", ".join(found[:MOST_NAMES]) + more
