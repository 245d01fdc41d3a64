"""What a DistributedDataParallel needs in everyday use, and its idea does not: gradients that add up over
several backwards, parameters that get none, outputs of all kinds, a module that is wrapped twice.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.mini.ddp import refusals as refuse

__all__ = ["Everyday"]


class Everyday(nn.Module):
    """The base of DistributedDataParallel, which has the buckets, and what happens when."""

    def __init__(self, module: nn.Module, find_unused_parameters: bool) -> None:
        super().__init__()
        self.module, self._find_unused, self._sync = module, find_unused_parameters, True
        self._take_over(parameter for parameter in module.parameters() if parameter.requires_grad)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within this context, gradients add up on each rank and nothing is sent; the next backward outside
        sends the sum.
        """
        before, self._sync = self._sync, False
        try:
            yield
        finally:
            self._sync = before

    def __reduce_ex__(self, protocol):
        raise TypeError(refuse.COPY)

    def _take_over(self, parameters: Iterable[nn.Parameter]) -> None:
        """Older wrappers let go of these parameters. (They would average too: a gradient divided twice.)"""
        owners = {
            getattr(hook, "__self__", None)
            for parameter in parameters
            for hook in torch_internals.hooks_after_gradient(parameter)
        }
        for older in owners:
            if isinstance(older, Everyday):
                for hook in older._hooks:
                    hook.remove()
                older.buckets, older._bucket_of = [], {}

    def _is_sent(self, parameter: nn.Parameter) -> bool:
        """Whether a gradient that has arrived is to be averaged: not within no_sync."""
        if self._sync:
            self._note_versions()
            refuse.gradient(self.module, parameter, self._bucket_of[parameter])
        return self._sync

    def _watch(self, output):
        """Return what the module has returned, and learn of it when a backward sets out from there.

        Not only when the first parameter's gradient arrives: this may be inside a reentrant checkpoint, whose
        backward has an end of its own; or none arrives.
        """
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(self._set_out)
        return output

    def _set_out(self, grad: Tensor) -> None:
        if self._sync:
            self._note_versions()
            self._begin()

    def _note_versions(self) -> None:
        """At the beginning of a backward: which values the parameters have, for `refusals`."""
        if not self._in_backward:
            self._versions = {
                parameter: torch_internals.version_of(parameter) for parameter in self._bucket_of
            }

    def _absent(self) -> list[nn.Parameter]:
        """The parameters whose gradient has not arrived in this backward."""
        return [parameter for bucket in self.buckets for parameter in bucket.missing]

    def _is_end(self) -> bool:
        """Whether a backward through the module ends here. Else that was done already, or this one came for
        the inputs' gradients alone.
        """
        return self._in_backward and (self._find_unused or len(self._absent()) < len(self._bucket_of))

    @contextlib.contextmanager
    def _absent_as_zero(self) -> Iterator[None]:
        """Within this context, where backward ends, buckets are complete: parameters without a gradient count
        as zero. Afterwards those that no rank has a gradient of have none.
        """
        if not self._is_end():
            yield
            return
        absent = self._absent()
        refuse.touched_parameters(self.module, self.buckets, self._versions)
        if not self._find_unused:
            # others were frozen meanwhile
            refuse.no_gradient(self.module, [parameter for parameter in absent if parameter.requires_grad])
        without = {parameter for parameter in absent if parameter.grad is None}
        for parameter in absent:  # in some order: each has its place
            if parameter in without:
                parameter.grad = self._bucket_of[parameter].views[parameter].zero_()
            self._fill(parameter)
        yield
        if self._find_unused and self._bucket_of:
            without = self._without_on_all_ranks(without)
        for parameter in without:
            parameter.grad = None

    def _without_on_all_ranks(self, without: set[nn.Parameter]) -> set[nn.Parameter]:
        """Ask all ranks: after the last bucket has left, for until then one rank may have sent more of them
        than another.
        """
        has_grad = [parameter not in without for parameter in self._bucket_of]
        ranks = torch.tensor(has_grad, dtype=torch.int32, device=self.buckets[0].flat.device)
        # how many ranks have a gradient [number of parameters]
        dist.all_reduce(ranks, group=self.process_group)
        return {parameter for parameter, count in zip(self._bucket_of, ranks.tolist()) if count == 0}


def _tensors(output) -> Iterator[Tensor]:
    """The tensors in what a module returns: also in a list, a dict, or a dataclass."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, list, tuple)) or is_dataclass(output):
        if isinstance(output, Mapping):
            output = output.values()
        elif is_dataclass(output):
            output = [getattr(output, part.name) for part in fields(output)]
        for part in output:
            yield from _tensors(part)
