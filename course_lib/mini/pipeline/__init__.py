"""Pipeline parallelism: a model cut into stages, one after the other, each on a rank of its own;
micro-batches pass through them.

Three ideas, apart from each other:

    split       the model as a list of stages; only the activations at the cuts travel, and their gradients
    back
    schedule    data: for each rank a list of instructions, F0 (forward of micro-batch 0), B0 (its backward),
    ... (made in schedules.py) Pipeline    executes this rank's list: receive, compute, send. It knows no
    schedule by name, and runs every one that `validate` accepts

Per boundary, micro-batch and direction, one tensor travels: the activations [micro-batch, time, dim] forward,
their gradient backward.

Sources: Huang et al. 2019, "GPipe", section 2; Narayanan et al. 2021, "Efficient large-scale language model
    training", section 2.2.
"""

import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import arguments, measure, torch_internals
from course_lib.arguments import function, instance, listed, whole
from course_lib.mini.pipeline import refusals as refuse
from course_lib.mini.pipeline.schedules import (
    Instruction,
    Schedule,
    backward,
    forward,
    gpipe,
    heir_of,
    interleaved,
    naive,
    one_f_one_b,
    source_of,
    validate,
    with_stages,
)
from course_lib.models import MLP, TinyGPT

__all__ = [
    "Instruction",
    "forward",
    "backward",
    "naive",
    "gpipe",
    "one_f_one_b",
    "interleaved",
    "validate",
    "split",
    "Pipeline",
]

# of activations; a header names one by its number
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEADER = 10  # numbers in a header: dtype, how many dimensions, and up to eight sizes


def split(model: nn.Module, num_stages: int, sizes: Sequence[int] | None = None) -> list[nn.Sequential]:
    """Cut a model into stages that, one after the other, do what it does. They share its parameters: nothing
    is copied.

    Each rank builds the model from the same seed, keeps its own stage or stages, and lets go of the others.

    Args:
        model: an nn.Sequential, an MLP, or a TinyGPT that is not tied (tied, its first and last stage would
            need one weight). Of a TinyGPT, the
            first stage gets the embedding too, and the last one the norm and the head: it takes tokens[:,
            :-1] and returns logits.
        num_stages: number of stages.
        sizes: how many layers (of an MLP: of `model.layers`; of a TinyGPT: blocks) each stage gets; None: as
            even as possible.

    Errors: ValueError if the sizes don't fit the model, or two stages would share a weight. TypeError for
        other models.
    """
    whole("num_stages", num_stages, most=4096)
    if isinstance(model, TinyGPT):
        if model.head.weight is model.embedding.weight and num_stages > 1:
            raise ValueError(
                "embedding and head are one weight, and would be on two ranks: make the model with"
                " tied=False."
            )
        before, layers, after = [_Embed(model)], model.blocks, [model.norm, model.head]
    elif isinstance(model, (nn.Sequential, MLP)):
        before, layers, after = (
            ([nn.Flatten()], model.layers, []) if isinstance(model, MLP) else ([], model, [])
        )
    else:
        raise TypeError(f"split knows how to cut nn.Sequential, MLP and TinyGPT, not {type(model).__name__}.")
    if sizes is not None:
        for size in instance("sizes", sizes, Sequence, "of numbers of layers"):
            whole("each of sizes", size, least=-len(layers))
    else:
        sizes = [len(part) for part in torch.arange(len(layers), device="cpu").tensor_split(num_stages)]
    if len(sizes) != num_stages or sum(sizes) != len(layers) or min(sizes) < 0:
        raise ValueError(
            f"sizes={list(sizes)}: it must be {num_stages} numbers that sum to {len(layers)}, the model's"
            " layers."
        )
    rest = iter(layers)
    parts = [[next(rest) for _ in range(size)] for size in sizes]
    parts[0] = before + parts[0]
    parts[-1] = parts[-1] + after
    if not all(parts):
        raise ValueError(f"{len(layers)} layers leave nothing for stage {parts.index([])} of {num_stages}.")
    stages = [nn.Sequential(*part) for part in parts]
    refuse.shared_weights(stages)
    return stages


class _Embed(nn.Module):
    """TinyGPT's `embed`, from tokens int64 [batch, time] to [batch, time, dim], as a layer."""

    def __init__(self, model: TinyGPT) -> None:
        super().__init__()
        self.embedding, self.position = model.embedding, model.position

    forward = TinyGPT.embed


class Pipeline(nn.Module):
    """This rank's stages of a pipeline, and `step`, which trains them on a batch; every rank of the group
    must make one, and call the same.

    Args:
        stages: this rank's stage; or, where each rank has several, the list of those that it has: rank, rank
            + p, rank + 2p, ... A stage takes
            one tensor and returns one. It may be wrapped in mini.ddp's DistributedDataParallel over another
            group (whose ranks have the same stage): gradients are then averaged there, in the last backward
            of the step only.
        schedule: one list of instructions per rank of the group, the same on every rank.
        loss_fn: (output of the last stage, targets) -> mean loss over the samples.
        process_group: the ranks of the pipeline, stage 0 on its first; None for all.

    Attributes:
        num_microbatches: how many the schedule has.
        peak_in_flight: most micro-batches (counted once per stage, where a rank has several) whose
            activations this rank held at once in
            the last step.

    Errors: ValueError if `validate` refuses the schedule, and in `step` where inputs, targets or what a stage
        makes do not fit.
    """

    def __init__(
        self,
        stages: nn.Module | Sequence[nn.Module],
        schedule: Schedule,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        listed(
            "stages",
            list(stages) if isinstance(stages, (list, tuple, nn.ModuleList)) else [stages],
            "a module, or a list of modules",
            lambda stage: isinstance(stage, nn.Module),
        )
        instance("schedule", schedule, Sequence, "of one list of instructions per rank")
        function("loss_fn", loss_fn), arguments.process_group("process_group", process_group)
        self.stages = nn.ModuleList(stages if isinstance(stages, (list, tuple, nn.ModuleList)) else [stages])
        self.schedule, self.loss_fn, self.peak_in_flight = schedule, loss_fn, 0
        self._rank, self._size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if len(schedule) != self._size:
            raise ValueError(
                f"the schedule has lists for {len(schedule)} ranks, and the group has {self._size}."
            )
        num_stages = self._size * len(self.stages)
        self.num_microbatches = 1 + max(
            (
                instruction.microbatch
                for instructions in schedule
                if isinstance(instructions, Sequence)
                for instruction in instructions
                if isinstance(instruction, Instruction)
            ),
            default=0,
        )
        validate(schedule, num_stages, self.num_microbatches)
        lists = with_stages(schedule)
        self._last = num_stages - 1
        self._names = {
            instruction: repr(given) for instruction, given in zip(lists[self._rank], schedule[self._rank])
        }
        # the last one of each stage, a backward
        self._final = {instruction.stage: instruction for instruction in lists[self._rank]}
        forwards = [
            [instruction for instruction in instructions if instruction.op == "forward"]
            for instructions in lists
        ]
        device = next(self.parameters(), torch.empty(0)).device
        self._posts = {
            training: _Post(done, self._rank, num_stages, process_group, device)
            for training, done in ((True, lists), (False, forwards))
        }

    def step(self, inputs: Tensor | None = None, targets: Tensor | None = None) -> Tensor | None:
        """Run forward and backward of a batch, and add to every `.grad` the gradient of the mean loss over
        the whole batch.

        Under torch.no_grad(), on all ranks: the forwards alone, to evaluate. In the timeline, each
        instruction is a span with its name. Batches must keep their shape from step to step (those for
        evaluation may have another): for another one, make a second Pipeline of the same stages.

        Args:
            inputs: [batch, ...], needed on the rank of the first stage. batch must be a multiple of the
                number of micro-batches.
            targets: [batch, ...], needed on the rank of the last stage.

        Returns: the mean loss over the batch, detached, on the rank of the last stage; None on others.
        """
        self._inputs = self._micro_batches("inputs", inputs, 0)
        self._targets = self._micro_batches("targets", targets, self._last)
        # (micro-batch, stage) -> input, output with the graph behind it
        self._in_flight: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._losses: list[Tensor] = []
        self.peak_in_flight = 0
        self._post = self._posts[torch.is_grad_enabled()]
        own = self._post.open()
        for instruction, following in zip(own, [*own[1:], None]):
            self._post.expect(following)
            (self._forward if instruction.op == "forward" else self._backward)(
                instruction, self._names[instruction]
            )
        self._post.close()
        return torch.stack(self._losses).sum() if self._losses else None

    def _forward(self, instruction: Instruction, name: str) -> None:
        k, stage = instruction.microbatch, instruction.stage
        training = torch.is_grad_enabled()
        # memory of its own, to be freed with it
        x = self._post.receive(instruction).requires_grad_(training) if stage else self._inputs[k].clone()
        with measure.span(name):
            y = self.stages[stage // self._size](_Entry.apply(x) if stage else x)
            if stage == self._last:
                # m gradients of these sum to that of the mean
                y = refuse.other_losses(self.loss_fn(y, self._targets[k])) / self.num_microbatches
                self._losses.append(y.detach())
        refuse.other_outputs(y, stage, self._rank)
        if training:
            self._in_flight[k, stage] = x, y
        self.peak_in_flight = max(self.peak_in_flight, len(self._in_flight))
        if stage < self._last:
            self._post.send(y.detach(), instruction)

    def _backward(self, instruction: Instruction, name: str) -> None:
        k, stage = instruction.microbatch, instruction.stage
        grad = self._post.receive(instruction) if stage < self._last else None  # d loss / d y
        # the last to hold them: they go when this function ends
        x, y = self._in_flight.pop((k, stage))
        with measure.span(name), self._sync(instruction):
            # not so if all of the first stage is frozen
            if y.requires_grad:
                torch.autograd.backward(y, grad)
        if stage:
            if x.grad is None:
                raise RuntimeError(
                    f"stage {stage} has no gradient for its input: its output does not depend on it."
                )
            self._post.send(x.grad, instruction)

    def _sync(self, instruction: Instruction) -> contextlib.AbstractContextManager:
        """A DistributedDataParallel around a stage averages in the stage's last backward only."""
        stage = self.stages[instruction.stage // self._size]
        early = instruction != self._final[instruction.stage]
        return stage.no_sync() if early and hasattr(stage, "no_sync") else contextlib.nullcontext()

    def _micro_batches(self, name: str, batch: Tensor | None, stage: int) -> Sequence[Tensor]:
        """The micro-batches [batch / m, ...] of what `stage` needs; nothing on other ranks."""
        if stage % self._size != self._rank:
            return ()
        count = len(batch) if isinstance(batch, Tensor) and batch.dim() else None
        if not count or count % self.num_microbatches:
            raise ValueError(
                f"rank {self._rank} needs {name}, for stage {stage}: a tensor with a number of samples that"
                f" is a multiple of {self.num_microbatches} micro-batches, not {count}."
            )
        return batch.chunk(self.num_microbatches)


class _Entry(torch.autograd.Function):
    """What a stage gets is its own to write into, as a layer with inplace=True does: not a leaf, and its
    gradient goes to the leaf, which keeps it.
    """

    @staticmethod
    def forward(ctx, x):
        return x.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Post:
    """What this rank sends and receives. Sends never wait; only `receive` does, and `close`, when all is
    done.

    Between two ranks, messages come in the order in which they are sent. A rank may need them in another:
    those that come before the one that it waits for are put into a box. The order is known beforehand, for
    every rank has the whole schedule.
    """

    def __init__(
        self,
        lists: list[list[Instruction]],
        rank: int,
        num_stages: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        self._own, self._rank, self._size, self._num_stages, self._device = (
            lists[rank],
            rank,
            len(lists),
            num_stages,
            device,
        )
        self._nccl = device.type == "cuda" and torch_internals.uses_nccl(group)
        self._position = {
            instruction: index for instructions in lists for index, instruction in enumerate(instructions)
        }
        heirs = [[heir_of(instruction, num_stages) for instruction in instructions] for instructions in lists]
        # what each sends to this rank
        self._order = [
            [heir for heir in theirs if heir and heir.stage % self._size == rank] for theirs in heirs
        ]
        self._shapes: dict[int, tuple[torch.Size, torch.dtype]] = {}  # stage -> what goes into it
        # NCCL runs the messages between two ranks of a group one after the other, both ways: two that cross
        # would wait for each other for
        # ever. So there each sender has a group of its own.
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self._groups = [
            dist.new_group(ranks, use_local_synchronization=True) if self._nccl else group for _ in ranks
        ]

    def open(self) -> list[Instruction]:
        """Before a step: what this rank has to do."""
        self._coming = [deque(order) for order in self._order]
        # for which instruction -> what came, or is on its way
        self._box: dict[Instruction, tuple[Tensor, dist.Work | None]] = {}
        self._sent: dict[int, deque[tuple[int, dist.Work]]] = defaultdict(deque)
        return self._own

    def close(self) -> None:
        """After a step: wait until everything has been received."""
        for queue in self._sent.values():
            for _, work in queue:
                work.wait()

    def send(self, result: Tensor, done: Instruction) -> None:
        """Send the result of an instruction to the rank that needs it."""
        heir = heir_of(done, self._num_stages)
        peer = heir.stage % self._size
        if peer == self._rank:
            self._box[heir] = result, None
            return
        # a gradient has the shape of what went into that stage
        into = max(done.stage, heir.stage)
        # the first time, a header goes before
        if into not in self._shapes:
            if result.dtype not in DTYPES or result.dim() > HEADER - 2:
                raise ValueError(
                    f"{done} has made {result.dtype} of {result.dim()} dimensions: from stage to stage,"
                    f" {', '.join(map(str, DTYPES))} may travel, of at most {HEADER - 2}."
                )
            self._shapes[into] = result.shape, result.dtype
            header = [DTYPES.index(result.dtype), result.dim(), *result.shape]
            self._isend(
                torch.tensor(header + [0] * (HEADER - len(header)), device=self._device),
                peer,
                self._position[heir],
            )
        if (result.shape, result.dtype) != self._shapes[into]:
            raise ValueError(
                f"{done} has made {list(result.shape)}, {result.dtype}, and the first time it was"
                f" {list(self._shapes[into][0])}, {self._shapes[into][1]}: batches must keep their shape, so"
                " make another Pipeline of the same stages for this one."
            )
        self._isend(result, peer, self._position[heir])

    def expect(self, wanted: Instruction | None) -> None:
        """Begin to receive what the next instruction needs, so that it travels while this rank computes; not
        if a header comes first.
        """
        if wanted and (source := source_of(wanted, self._num_stages)):
            self._begin(wanted, source.stage % self._size, wait=False)

    def receive(self, wanted: Instruction) -> Tensor:
        """Wait for what an instruction needs, and return it."""
        source = source_of(wanted, self._num_stages)
        peer = source.stage % self._size
        self._begin(wanted, peer, wait=True)
        tensor, work = self._box.pop(wanted)
        if work is not None:
            work.wait()
            # The peer had done `source` when it sent this. What it needed for that, and before, has arrived
            # there: let go of it.
            while self._sent[peer] and self._sent[peer][0][0] <= self._position[source]:
                self._sent[peer].popleft()[1].wait()
        return tensor.to(self._device)

    def _isend(self, tensor: Tensor, peer: int, position: int) -> None:
        # gloo sends from the CPU's memory only
        tensor = tensor.contiguous() if self._nccl else tensor.cpu().contiguous()
        self._sent[peer].append(
            (position, dist.isend(tensor, group=self._groups[self._rank], group_dst=peer))
        )

    def _begin(self, wanted: Instruction, peer: int, wait: bool) -> None:
        """Begin to receive the peer's messages, up to the one that is wanted, or without `wait` up to a
        header; from this rank itself, none come.
        """
        while peer != self._rank and wanted not in self._box:
            coming = self._coming[peer][0]
            into = coming.stage + (coming.op == "backward")
            if into not in self._shapes:
                if not wait:
                    return
                header = self._empty((HEADER,), torch.int64)
                dist.irecv(header, group=self._groups[peer], group_src=peer).wait()
                dtype, dims, *sizes = header.tolist()
                self._shapes[into] = torch.Size(sizes[:dims]), DTYPES[dtype]
            buffer = self._empty(*self._shapes[into])
            self._box[self._coming[peer].popleft()] = (
                buffer,
                dist.irecv(buffer, group=self._groups[peer], group_src=peer),
            )

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device if self._nccl else "cpu")
