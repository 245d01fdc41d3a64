"""Pipeline parallelism: a model cut into stages, one after the other, each on a rank of its own; micro-batches pass through them.

Three ideas, apart from each other:

    split       the model as a list of stages; only the activations at the cuts travel, and their gradients back
    schedule    data: for each rank a list of instructions, F0 (forward of micro-batch 0), B0 (its backward), and so on, in their order
    Pipeline    executes this rank's list: receive, compute, send. It knows no schedule by name, and runs every one that `validate` accepts

What a schedule decides is when a rank is idle, and how many micro-batches' activations it holds at once (p stages, m micro-batches):

    schedule      idle share of a step     micro-batches in flight on stage s
    naive         (p-1) / p                1
    gpipe         (p-1) / (m+p-1)          m
    one_f_one_b   (p-1) / (m+p-1)          min(p-s, m)
    interleaved   (p-1) / (v m+p-1)        more: v stages per rank, each of 1/v the work

Sources: Huang et al. 2019, "GPipe", section 2; Narayanan et al. 2021, "Efficient large-scale language model training", section 2.2.
"""
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import measure
from course_lib.models import MLP, TinyGPT

__all__ = ["Instruction", "forward", "backward", "naive", "gpipe", "one_f_one_b", "interleaved", "validate", "split", "Pipeline"]


@dataclass(frozen=True)
class Instruction:
    """One entry of a rank's list; printed F0, B0, or F0@2 where the stage is given.

    Attributes:
        op: "forward" or "backward".
        microbatch: number of the micro-batch, from 0.
        stage: number of the stage, from 0. Stage s lives on rank s mod p. None: the stage with the number of the rank; right wherever each
            rank has one stage.
    """
    op: str
    microbatch: int
    stage: int | None = None

    def __repr__(self) -> str:
        return f"{self.op[:1].upper()}{self.microbatch}" + ("" if self.stage is None else f"@{self.stage}")


Schedule = Sequence[Sequence[Instruction]]


def forward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the forward of a micro-batch."""
    return Instruction("forward", microbatch, stage)


def backward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the backward of a micro-batch."""
    return Instruction("backward", microbatch, stage)


def naive(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule F0 B0 F1 B1 ...: a micro-batch sets out when the one before is back, so one rank works at a time."""
    return [[op(k) for k in range(num_microbatches) for op in (forward, backward)] for _ in range(num_stages)]


def gpipe(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule of GPipe: all forwards, then all backwards."""
    return [[op(k) for op in (forward, backward) for k in range(num_microbatches)] for _ in range(num_stages)]


def one_f_one_b(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule 1F1B: as few forwards as fill the pipeline, then one forward and one backward in turn, then the backwards that are left."""
    forwards, backwards = ([op(k) for k in range(num_microbatches)] for op in (forward, backward))
    return [_alternate(forwards, backwards, warm_up=num_stages - 1 - rank) for rank in range(num_stages)]


def interleaved(num_ranks: int, num_microbatches: int, chunks: int) -> Schedule:
    """Return interleaved 1F1B: each rank has `chunks` stages, rank r the stages r, r + p, r + 2p, ..., so micro-batches go round the ranks several times.

    A rank runs p micro-batches through its first stage, the same p through its next one, and so on. The idle share is that of the table
    above where num_microbatches is a multiple of num_ranks, and more elsewhere.
    """
    schedule = []
    for rank in range(num_ranks):
        stages = range(rank, chunks * num_ranks, num_ranks)
        rounds = [range(first, min(first + num_ranks, num_microbatches)) for first in range(0, num_microbatches, num_ranks)]
        forwards = [forward(k, stage) for round in rounds for stage in stages for k in round]
        backwards = [backward(k, stage) for round in rounds for stage in reversed(stages) for k in round]
        schedule.append(_alternate(forwards, backwards, warm_up=2 * (num_ranks - 1 - rank) + (chunks - 1) * num_ranks))
    return schedule


def _alternate(forwards: list[Instruction], backwards: list[Instruction], warm_up: int) -> list[Instruction]:
    """`warm_up` forwards, then one forward and one backward in turn, then the other backwards."""
    warm_up = min(warm_up, len(forwards))
    pairs = [instruction for pair in zip(forwards[warm_up:], backwards) for instruction in pair]
    return forwards[:warm_up] + pairs + backwards[len(forwards) - warm_up:]


def validate(schedule: Schedule, num_stages: int, num_microbatches: int) -> None:
    """Check that a schedule runs to its end and does each forward and backward once, on the right rank.

    Sends don't block, receives do. So ranks get stuck only where one waits for what another, in the order of its list, can never come to.

    Args:
        schedule: one list per rank.
        num_stages: how many stages there are: a multiple of the number of ranks. num_microbatches: how many micro-batches.

    Errors: ValueError that names the rank, the position in its list (from 0) and the instruction: a wrong stage or micro-batch, one that is
        repeated, one that is skipped, a backward before its forward, or a deadlock (then of each rank that is stuck, and what it waits for).
    """
    size = len(schedule)
    if not size or num_stages % size:
        raise ValueError(f"the schedule has lists for {size} ranks, and {num_stages} stages cannot be dealt out evenly to them.")
    position: dict[Instruction, int] = {}
    lists = _with_stages(schedule)
    for rank, instructions in enumerate(lists):
        for index, instruction in enumerate(instructions):
            _check(instruction, f"rank {rank}, position {index}, {schedule[rank][index]}", rank, size, num_stages, num_microbatches, position)
            position[instruction] = index
        for stage in range(rank, num_stages, size):
            for op in (forward, backward):
                for k in range(num_microbatches):
                    if op(k, stage) not in position:
                        raise ValueError(f"rank {rank}, end of its list (position {len(instructions)}): {op(k, stage)} is missing; "
                                         f"stage {stage} skips the {op.__name__} of micro-batch {k}.")
    done, at = set(), [0] * size          # run it without computing: `at` is where each rank stands
    before = -1
    while len(done) > before:
        before = len(done)
        for rank, instructions in enumerate(lists):
            while at[rank] < len(instructions) and _source(instructions[at[rank]], num_stages) in {None, *done}:
                done.add(instructions[at[rank]])
                at[rank] += 1
    waits = []
    for rank in range(size):
        if at[rank] < len(lists[rank]):
            source = _source(lists[rank][at[rank]], num_stages)
            waits.append(f"rank {rank}, position {at[rank]}, {schedule[rank][at[rank]]} waits for {source}, which rank {source.stage % size} "
                         f"has at position {position[source]}")
    if waits:
        raise ValueError(f"deadlock: {'; '.join(waits)}.")


def _with_stages(schedule: Schedule) -> list[list[Instruction]]:
    return [[replace(instruction, stage=rank) if instruction.stage is None else instruction for instruction in instructions]
            for rank, instructions in enumerate(schedule)]


def _check(instruction: Instruction, where: str, rank: int, size: int, num_stages: int, num_microbatches: int, position: dict[Instruction, int]) -> None:
    stage, k = instruction.stage, instruction.microbatch
    if instruction.op not in ("forward", "backward"):
        raise ValueError(f"{where}: op={instruction.op!r} must be 'forward' or 'backward'.")
    if not 0 <= stage < num_stages:
        raise ValueError(f"{where}: there is no stage {stage}; stages are 0 to {num_stages - 1}.")
    if stage % size != rank:
        raise ValueError(f"{where}: stage {stage} lives on rank {stage % size}.")
    if not 0 <= k < num_microbatches:
        raise ValueError(f"{where}: there is no micro-batch {k}; micro-batches are 0 to {num_microbatches - 1}.")
    if instruction in position:
        raise ValueError(f"{where}: this repeats position {position[instruction]}.")
    if instruction.op == "backward" and forward(k, stage) not in position:
        raise ValueError(f"{where}: a backward before its forward, F{k}.")


def _source(instruction: Instruction, num_stages: int) -> Instruction | None:
    """The instruction, on another stage, whose result this one needs; None if it needs none."""
    stage = instruction.stage + (-1 if instruction.op == "forward" else 1)
    return replace(instruction, stage=stage) if 0 <= stage < num_stages else None


def split(model: nn.Module, num_stages: int, sizes: Sequence[int] | None = None) -> list[nn.Sequential]:
    """Cut a model into stages that, one after the other, do what it does. They share its parameters: nothing is copied.

    Each rank builds the model from the same seed, keeps its own stage or stages, and lets go of the others.

    Args:
        model: an nn.Sequential, an MLP, or a TinyGPT that is not tied (tied, its first and last stage would need one weight). Of a TinyGPT, the
            first stage gets the embedding too, and the last one the norm and the head: it takes tokens[:, :-1] and returns logits.
        num_stages: number of stages.
        sizes: how many layers (of an MLP: of `model.layers`; of a TinyGPT: blocks) each stage gets; None: as even as possible.

    Errors: ValueError if the sizes don't fit the model, or the model is tied. TypeError for other models.
    """
    if isinstance(model, TinyGPT):
        if model.head.weight is model.embedding.weight and num_stages > 1:
            raise ValueError("embedding and head are one weight, and would be on two ranks: make the model with tied=False.")
        before, layers, after = [_Embed(model)], model.blocks, [model.norm, model.head]
    elif isinstance(model, (nn.Sequential, MLP)):
        before, layers, after = ([nn.Flatten()], model.layers, []) if isinstance(model, MLP) else ([], model, [])
    else:
        raise TypeError(f"split knows how to cut nn.Sequential, MLP and TinyGPT, not {type(model).__name__}.")
    if sizes is None:
        sizes = [len(part) for part in torch.arange(len(layers), device="cpu").tensor_split(num_stages)]
    if len(sizes) != num_stages or sum(sizes) != len(layers) or min(sizes) < 0:
        raise ValueError(f"sizes={list(sizes)}: it must be {num_stages} numbers that sum to {len(layers)}, the model's layers.")
    rest = iter(layers)
    parts = [[next(rest) for _ in range(size)] for size in sizes]
    parts[0], parts[-1] = before + parts[0], parts[-1] + after
    if not all(parts):
        raise ValueError(f"{len(layers)} layers leave nothing for stage {parts.index([])} of {num_stages}.")
    return [nn.Sequential(*part) for part in parts]


class _Embed(nn.Module):
    """TinyGPT's `embed`, from tokens int64 [batch, time] to [batch, time, dim], as a layer."""

    def __init__(self, model: TinyGPT) -> None:
        super().__init__()
        self.embedding, self.position = model.embedding, model.position

    forward = TinyGPT.embed


class Pipeline(nn.Module):
    """This rank's stages of a pipeline, and `step`, which trains them on a batch; every rank of the group must make one, and call the same.

    Args:
        stages: this rank's stage; or, where each rank has several, the list of those that it has: rank, rank + p, rank + 2p, ... A stage takes
            one tensor and returns one. It may be wrapped in mini.ddp's DistributedDataParallel over another group (whose ranks have the
            same stage): gradients are then averaged there, in the last backward of the step only.
        schedule: one list of instructions per rank of the group, the same on every rank.
        loss_fn: (output of the last stage, targets) -> mean loss over the samples.
        process_group: the ranks of the pipeline, stage 0 on its first; None for all.

    Attributes:
        peak_in_flight: most micro-batches (times stages, where a rank has several) whose activations this rank held at once in the last step.

    Errors: ValueError if `validate` refuses the schedule.
    """

    def __init__(self, stages: nn.Module | Sequence[nn.Module], schedule: Schedule, loss_fn: Callable[[Tensor, Tensor], Tensor],
                 process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages if isinstance(stages, (list, tuple, nn.ModuleList)) else [stages])
        self.schedule, self.loss_fn, self.process_group, self.peak_in_flight = schedule, loss_fn, process_group, 0

    def step(self, inputs: Tensor | None = None, targets: Tensor | None = None) -> Tensor | None:
        """Run forward and backward of a batch, and add to every `.grad` the gradient of the mean loss over the whole batch.

        In the timeline, each instruction is a span with its name. Batches must keep their shape from step to step.

        Args:
            inputs: [batch, ...], needed on the rank of the first stage. batch must be a multiple of the number of micro-batches.
            targets: [batch, ...], needed on the rank of the last stage.

        Returns: the mean loss over the batch, detached, on the rank of the last stage; None on others.
        """
        raise NotImplementedError
