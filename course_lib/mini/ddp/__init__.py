"""DistributedDataParallel: every rank trains the same model on its own data, and only gradients travel.

Four ideas, in the order in which they come to work:

    broadcast   all ranks start from rank 0's parameters and buffers
    hooks       autograd calls us when a parameter's gradient is complete, and goes on with the layers before
    it
    buckets     gradients travel in a few large flat tensors: one all_reduce of 25 MB is quicker than a
    thousand small ones overlap     a bucket that is full starts its all_reduce at once, while backward still
    computes

When backward ends, every `.grad` is the average over the ranks, so the same optimizer step leaves the same
weights on each.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", section
    3.2.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import arguments, torch_internals
from course_lib.arguments import function, instance, number
from course_lib.mini.ddp import refusals as refuse

__all__ = ["DistributedDataParallel", "Bucket", "make_buckets"]


def _torch_all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> dist.Work | None:
    return dist.all_reduce(tensor, group=group, async_op=True)


class DistributedDataParallel(nn.Module):
    """Wrap `module` so that backward leaves in every `.grad` the average over the ranks; every rank must do
    and call the same.

    Args:
        module: the same architecture on every rank. Frozen parameters (requires_grad=False) are not sent,
            tied ones once. If it was wrapped
            before, the older wrapper lets go of it.
        bucket_cap_mb: a bucket is closed as soon as it holds so many MiB. float("inf"): one bucket, and so no
            overlap; 0: one per parameter.
        process_group: the ranks that take part; None for all.
        find_unused_parameters: allow parameters without a gradient in this backward. They count as zero where
            other ranks have one, and
            keep `.grad` None where no rank has. Costs one more, small, all_reduce.
        all_reduce: sums a flat tensor over a group in place: a function (tensor, group) that returns a Work
            to wait for, or None
            if it is done (as mini.ring's). By default torch's own, asynchronous.

    Errors: ValueError if modules differ between ranks. RuntimeError in backward if a parameter gets no
        gradient, unless
        find_unused_parameters, and wherever the average would be wrong (see ddp_refusals.py).
    """

    def __init__(
        self,
        module: nn.Module,
        bucket_cap_mb: float = 25.0,
        process_group: dist.ProcessGroup | None = None,
        *,
        find_unused_parameters: bool = False,
        all_reduce: Callable[[Tensor, dist.ProcessGroup | None], dist.Work | None] = _torch_all_reduce,
    ) -> None:
        super().__init__()
        instance("module", module, nn.Module), arguments.process_group("process_group", process_group)
        number("bucket_cap_mb", bucket_cap_mb, finite=False), function("all_reduce", all_reduce)
        refuse.other_modules(module, process_group)
        self.module, self.process_group = module, process_group
        self._find_unused, self._all_reduce, self._sync = find_unused_parameters, all_reduce, True
        self._broadcast([*module.parameters(), *module.buffers()])
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for older in refuse.wrappers_of(learning):
            older._let_go()
        # Backward meets the last layer first. (torch deals out once more after the first backward, in the
        # order that it has seen.)
        self.buckets = make_buckets(reversed(learning), bucket_cap_mb * 2**20)
        self._bucket_of = {parameter: bucket for bucket in self.buckets for parameter in bucket.views}
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrive) for parameter in self._bucket_of
        ]
        self._expect_all()

    def forward(self, *inputs, **kwargs):
        """Call the module, after a broadcast of rank 0's buffers (the running means of a BatchNorm, for
        example).
        """
        refuse.changed_parameters(self.module, self._bucket_of)
        if self._sync:
            self._broadcast(self.module.buffers())
        self._expect_all()  # whatever became of the last backward
        output = self.module(*inputs, **kwargs)
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(self._begin)
        return output

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

    def _let_go(self) -> None:
        """Another wrapper takes over."""
        for hook in self._hooks:
            hook.remove()
        self.buckets, self._bucket_of = [], {}

    @torch.no_grad()
    def _broadcast(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dense = tensor.contiguous()
            dist.broadcast(dense, group_src=0, group=self.process_group)
            # .data: autograd need not know. (A BatchNorm's forward before this one has kept its running
            # means.)
            tensor.data.copy_(dense)

    def _expect_all(self) -> None:
        """Before a backward: no gradient has arrived, no bucket is on its way."""
        self._launched, self._in_backward = 0, False
        for bucket in self.buckets:
            bucket.wait()
            bucket.missing = set(bucket.views)

    def _begin(self, grad: Tensor | None = None) -> None:
        """The hook of an output: a backward sets out. Ask autograd for a call when it ends.

        Not only when the first parameter's gradient arrives: this may be inside a reentrant checkpoint, whose
        backward has an end of its own.
        """
        if self._sync:
            torch_internals.when_backward_ends(self._finish)
            if not self._in_backward:
                self._in_backward, self._versions = (
                    True,
                    {parameter: torch_internals.version_of(parameter) for parameter in self._bucket_of},
                )

    def _arrive(self, parameter: nn.Parameter) -> None:
        """The hook of a parameter: autograd calls it right after it has written (or added to)
        `parameter.grad`.
        """
        if not self._sync:
            return
        if not self._in_backward:  # no output told us: the module was called without this wrapper
            self._begin()
        bucket = self._bucket_of[parameter]
        refuse.gradient(self.module, parameter, arrived=parameter not in bucket.missing)
        bucket.put(parameter, 1 / dist.get_world_size(self.process_group))
        self._launch_full()

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
        absent = [parameter for bucket in self.buckets for parameter in bucket.missing]
        if not self._in_backward or (len(absent) == len(self._bucket_of) and not self._find_unused):
            return self._expect_all()  # done already, or it came for the inputs' gradients alone
        refuse.touched_parameters(
            self.module,
            {
                parameter: bucket.views[parameter]
                for parameter, bucket in self._bucket_of.items()
                if parameter not in bucket.missing
            },
            self._versions,
        )
        if not self._find_unused:
            # others were frozen meanwhile
            refuse.no_gradient(self.module, [parameter for parameter in absent if parameter.requires_grad])
        without = {parameter for parameter in absent if parameter.grad is None}
        for parameter in absent:  # in some order: each has its place
            self._bucket_of[parameter].put(parameter, 1 / dist.get_world_size(self.process_group))
        self._launch_full()
        if self._find_unused and self._bucket_of:
            without = self._without_gradient_on_all_ranks(without)
        for bucket in self.buckets:
            bucket.wait()
        for parameter in without:
            parameter.grad = None
        self._expect_all()

    def _without_gradient_on_all_ranks(self, without: set[nn.Parameter]) -> set[nn.Parameter]:
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

    @torch.no_grad()
    def put(self, parameter: nn.Parameter, scale: float) -> None:
        """Write parameter.grad * scale to its place (zeros if there is none), and let `.grad` be that place
        from now on.
        """
        view = self.views[parameter]
        if parameter.grad is None:
            view.zero_()
        else:
            # also right where .grad is this view already: gradients that were not zeroed
            torch.mul(parameter.grad, scale, out=view)
        parameter.grad = view
        self.missing.discard(parameter)

    def wait(self) -> None:
        """Wait for the all_reduce, if one is on its way."""
        if self.work is not None:
            self.work.wait()
        self.work = None


def make_buckets(parameters: Iterable[nn.Parameter], cap_bytes: float) -> list[Bucket]:
    """Deal out parameters, in their order, to buckets of one dtype and device; a bucket is closed as soon as
    it holds `cap_bytes` or more.
    """
    number("cap_bytes", cap_bytes, finite=False)
    parameters = list(instance("parameters", parameters, Iterable, "of parameters"))
    if not all(isinstance(parameter, Tensor) for parameter in parameters):
        raise TypeError("parameters: it must be parameters, such as model.parameters().")
    closed: list[list[nn.Parameter]] = []
    still_open: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        kind = parameter.dtype, parameter.device
        still_open.setdefault(kind, []).append(parameter)
        if sum(member.nbytes for member in still_open[kind]) >= cap_bytes:
            closed.append(still_open.pop(kind))
    return [_bucket(members) for members in [*closed, *still_open.values()]]


def _bucket(parameters: list[nn.Parameter]) -> Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].detach().new_zeros(sum(sizes))
    parts = zip(parameters, flat.split(sizes))
    return Bucket(
        flat,
        {
            parameter: part.as_strided(
                parameter.shape, torch.empty_like(parameter, device="meta").stride(), part.storage_offset()
            )
            for parameter, part in parts
        },
    )  # channels_last, say, as the parameter
