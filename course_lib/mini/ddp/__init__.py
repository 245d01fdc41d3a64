"""DistributedDataParallel: every rank trains the same model on its own data, and only gradients travel.

If time did not matter, this would be all of it:

    for tensor in [*module.parameters(), *module.buffers()]:    # once: all ranks start from rank 0's
        dist.broadcast(tensor, 0)
    for parameter in module.parameters():                       # after each backward: the average over ranks
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()

From equal weights, equal gradients make equal weights. Three ideas make it quick:

    hooks     autograd calls us when a parameter's gradient is complete, and goes on with the layers before it
    buckets   gradients travel in a few large flat tensors: one all_reduce of 25 MB is quicker than a thousand
    overlap   a bucket that is full starts its all_reduce at once, while backward still computes

Beside: `buckets` (who shares one), `everyday` (no_sync, odd cases), `refusals` (what would be wrong).
Source: Li et al. 2020, "PyTorch Distributed: Experiences on accelerating data parallel training", 3.2.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import at_least_0, fits, function, process_group, takes
from course_lib.mini.ddp import refusals as refuse
from course_lib.mini.ddp.buckets import Bucket, make_buckets, torch_all_reduce
from course_lib.mini.ddp.everyday import Everyday
from course_lib.mini.first_rank import copy_from_first_rank
from course_lib.torch_internals import when_backward_ends

__all__ = ["DistributedDataParallel", "Bucket", "make_buckets"]


class DistributedDataParallel(Everyday):
    """Let backward leave in every `.grad` the average over the ranks; every rank must do and call the same.

    Args:
        module: the same on every rank. Frozen parameters are not sent; an older one (but torch's) lets go.
        bucket_cap_mb: a bucket is closed when it holds so many MiB. float("inf"): one, and so no overlap.
        process_group: the ranks that take part; None for all.
        find_unused_parameters: allow parameters without a gradient in this backward: zero where other ranks
            have one; where no rank has, `.grad` stays None. Costs one more, small, all_reduce.
        all_reduce: sums a flat tensor over a group in place: (tensor, group) -> a Work to wait for, or None
            if it is done (as mini.ring's). By default torch's own, asynchronous.

    Errors: ValueError if modules differ between ranks; RuntimeError where the average would be wrong.
    """

    @takes(module=nn.Module, process_group=process_group, bucket_cap_mb=at_least_0, all_reduce=function)
    @fits(refuse.other_modules)
    def __init__(
        self,
        module: nn.Module,
        bucket_cap_mb: float = 25.0,
        process_group: dist.ProcessGroup | None = None,
        *,
        find_unused_parameters: bool = False,
        all_reduce: Callable[[Tensor, dist.ProcessGroup | None], dist.Work | None] = torch_all_reduce,
    ) -> None:
        super().__init__(module, find_unused_parameters)
        self.process_group, self._all_reduce = process_group, all_reduce
        copy_from_first_rank([*module.parameters(), *module.buffers()], process_group)
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buckets = make_buckets(reversed(learning), bucket_cap_mb * 2**20)  # as backward meets them
        self._bucket_of = {parameter: bucket for bucket in self.buckets for parameter in bucket.views}
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrive) for p in self._bucket_of]
        self._empty()

    def forward(self, *inputs, **kwargs):
        """Call the module, after a broadcast of rank 0's buffers (the running means of a BatchNorm, say)."""
        refuse.changed_parameters(self.module, self._bucket_of)
        self._empty()  # whatever became of the last backward
        if self._sync:
            copy_from_first_rank(self.module.buffers(), self.process_group)
        return self._watch(self.module(*inputs, **kwargs))

    def _empty(self) -> None:
        """Before a backward: no gradient has arrived, no bucket is on its way any more."""
        self._launched, self._in_backward = 0, False
        for bucket in self.buckets:
            bucket.wait()
            bucket.missing = set(bucket.views)

    def _arrive(self, parameter: nn.Parameter) -> None:
        """The hook of a parameter: autograd has just written, or added to, `parameter.grad`."""
        if self._is_sent(parameter):
            if not self._in_backward:
                self._begin()
            self._fill(parameter)
            self._launch_full()

    def _begin(self) -> None:
        """A backward sets out: ask autograd for a call when it ends."""
        when_backward_ends(self._finish)
        self._in_backward = True

    @torch.no_grad()
    def _fill(self, parameter: nn.Parameter) -> None:
        """Move a gradient to its place in a bucket, and let `.grad` be that place from now on."""
        bucket = self._bucket_of[parameter]
        place = bucket.views[parameter]
        torch.mul(parameter.grad, 1 / dist.get_world_size(self.process_group), out=place)
        parameter.grad = place
        bucket.missing.discard(parameter)

    def _launch_full(self) -> None:
        """Start the all_reduce of full buckets: in one order on all ranks, for collectives must match."""
        while self._launched < len(self.buckets) and not self.buckets[self._launched].missing:
            bucket = self.buckets[self._launched]
            bucket.work = self._all_reduce(bucket.flat, self.process_group)
            self._launched += 1

    def _finish(self) -> None:
        """The end of backward: send what is left, wait, and every `.grad` is the average."""
        with self._absent_as_zero():
            self._launch_full()
        self._empty()
