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

Read on in `buckets`; `everyday` has no_sync and odd cases, `refusals` what would go wrong in silence.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on accelerating data parallel training", 3.2.
"""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import at_least_0, function, process_group, takes
from course_lib.mini.ddp import refusals as refuse
from course_lib.mini.ddp.buckets import Bucket, make_buckets, torch_all_reduce
from course_lib.mini.ddp.everyday import Everyday
from course_lib.mini.first_rank import copy_from_first_rank

__all__ = ["DistributedDataParallel", "Bucket", "make_buckets"]


class DistributedDataParallel(Everyday):
    """Wrap `module` so that backward leaves in every `.grad` the average over the ranks; every rank must do
    and call the same.

    Args:
        module: the same architecture on every rank. Frozen parameters (requires_grad=False) are not sent,
            tied ones once. If it was wrapped before, the older wrapper lets go of it.
        bucket_cap_mb: a bucket is closed as soon as it holds so many MiB. float("inf"): one bucket, and so no
            overlap; 0: one per parameter.
        process_group: the ranks that take part; None for all.
        find_unused_parameters: allow parameters without a gradient in this backward. They count as zero where
            other ranks have one, and keep `.grad` None where no rank has. Costs one more, small, all_reduce.
        all_reduce: sums a flat tensor over a group in place: a function (tensor, group) that returns a Work
            to wait for, or None if it is done (as mini.ring's). By default torch's own, asynchronous.

    Errors: ValueError if modules differ between ranks. RuntimeError in backward if a parameter gets no
        gradient, unless find_unused_parameters, and wherever the average would be wrong (see `refusals`).
    """

    @takes(module=nn.Module, process_group=process_group, bucket_cap_mb=at_least_0, all_reduce=function)
    def __init__(
        self,
        module: nn.Module,
        bucket_cap_mb: float = 25.0,
        process_group: dist.ProcessGroup | None = None,
        *,
        find_unused_parameters: bool = False,
        all_reduce: Callable[[Tensor, dist.ProcessGroup | None], dist.Work | None] = torch_all_reduce,
    ) -> None:
        super().__init__()
        refuse.other_modules(module, process_group)
        self.module, self.process_group, self._all_reduce = module, process_group, all_reduce
        self._find_unused, self._sync = find_unused_parameters, True
        copy_from_first_rank([*module.parameters(), *module.buffers()], process_group)
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._take_over(learning)
        # Backward meets the last layer first. (torch deals out once more, in the order that it has seen.)
        self.buckets = make_buckets(reversed(learning), bucket_cap_mb * 2**20)
        self._bucket_of = {parameter: bucket for bucket in self.buckets for parameter in bucket.views}
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrive) for p in self._bucket_of]
        self._expect_all()

    def forward(self, *inputs, **kwargs):
        """Call the module, after a broadcast of rank 0's buffers (the running means of a BatchNorm, say)."""
        refuse.changed_parameters(self.module, self._bucket_of)
        if self._sync:
            copy_from_first_rank(self.module.buffers(), self.process_group)
        self._expect_all()  # whatever became of the last backward
        return self._watch(self.module(*inputs, **kwargs))

    def _expect_all(self) -> None:
        """Before a backward: no bucket is on its way any more, no gradient has arrived."""
        self._launched, self._in_backward = 0, False
        for bucket in self.buckets:
            bucket.wait()
            bucket.missing = set(bucket.views)

    def _arrive(self, parameter: nn.Parameter) -> None:
        """The hook of a parameter: autograd has just written, or added to, `parameter.grad`."""
        if not self._sync:
            return
        if not self._in_backward:  # no output told us: the module was called without this wrapper
            self._begin()
        refuse.gradient(self.module, parameter, self._bucket_of[parameter])
        self._put(parameter)
        self._launch_full()

    def _put(self, parameter: nn.Parameter) -> None:
        self._bucket_of[parameter].put(parameter, 1 / dist.get_world_size(self.process_group))

    def _launch_full(self) -> None:
        """Start the all_reduce of every bucket that is full: always in the same order, for collectives must
        match between ranks.
        """
        while self._launched < len(self.buckets) and not self.buckets[self._launched].missing:
            bucket = self.buckets[self._launched]
            bucket.work = self._all_reduce(bucket.flat, self.process_group)
            self._launched += 1

    def _finish(self) -> None:
        """The end of backward: send what is left, and wait for everything."""
        if self._is_end():
            with self._absent_as_zero():
                self._launch_full()
        self._expect_all()
