"""Schedules of a pipeline as data: for each rank the list of what it does, in its order; and a validator that
runs a list without computing.

A model is cut into p stages, one per rank, and a batch into m micro-batches. F0 is the forward of micro-batch
0 on a stage, B0 its backward. The order of a rank's list decides when it is idle, and how many micro-batches'
activations it holds at once:

    schedule      idle share of a step     micro-batches in flight on stage s
    naive         (p-1) / p                1
    gpipe         (p-1) / (m+p-1)          m
    one_f_one_b   (p-1) / (m+p-1)          min(p-s, m)
    interleaved   (p-1) / (v m+p-1)        more, but each of 1/v the work: every rank has v stages

Sources: Huang et al. 2019, "GPipe", section 2; Narayanan et al. 2021, "Efficient large-scale language model
    training", section 2.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch

from course_lib.arguments import instance, takes, whole

__all__ = [
    "Instruction",
    "Schedule",
    "forward",
    "backward",
    "naive",
    "gpipe",
    "one_f_one_b",
    "interleaved",
    "validate",
]


@dataclass(frozen=True)
class Instruction:
    """One entry of a rank's list; printed F0, B0, or F0@2 where the stage is given.

    Attributes:
        op: "forward" or "backward".
        microbatch: number of the micro-batch, from 0.
        stage: number of the stage, from 0. Stage s lives on rank s mod p. None: the stage with the number of
            the rank; right wherever each rank has one stage.
    """

    op: str
    microbatch: int
    stage: int | None = None

    def __repr__(self) -> str:
        stage = "" if self.stage is None else f"@{self.stage}"
        return f"{str(self.op)[:1].upper()}{self.microbatch}{stage}"


Schedule = Sequence[Sequence[Instruction]]


def forward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the forward of a micro-batch."""
    return Instruction("forward", microbatch, stage)


def backward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the backward of a micro-batch."""
    return Instruction("backward", microbatch, stage)


@takes(num_stages=whole, num_microbatches=whole)
def naive(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule F0 B0 F1 B1 ...: a micro-batch sets out when the one before is back, so one rank
    works at a time.
    """
    return [[op(k) for k in range(num_microbatches) for op in (forward, backward)] for _ in range(num_stages)]


@takes(num_stages=whole, num_microbatches=whole)
def gpipe(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule of GPipe: all forwards, then all backwards."""
    return [[op(k) for op in (forward, backward) for k in range(num_microbatches)] for _ in range(num_stages)]


@takes(num_stages=whole, num_microbatches=whole)
def one_f_one_b(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule 1F1B: as few forwards as fill the pipeline, then one forward and one backward in
    turn, then the backwards that are left.
    """
    forwards, backwards = ([op(k) for k in range(num_microbatches)] for op in (forward, backward))
    return [_alternate(forwards, backwards, warm_up=num_stages - 1 - rank) for rank in range(num_stages)]


@takes(num_ranks=whole, num_microbatches=whole, chunks=whole)
def interleaved(num_ranks: int, num_microbatches: int, chunks: int) -> Schedule:
    """Return interleaved 1F1B: each rank has `chunks` stages, rank r the stages r, r + p, r + 2p, ...

    So a micro-batch goes round the ranks several times. A rank runs p micro-batches through its first stage,
    the same through its next one, and so on, and then the next p. (Where m is not a multiple of p, these
    rounds are a little longer.) The idle share is that of the table from m = p on: fewer don't fill the
    pipeline.
    """
    count = max(1, num_microbatches // num_ranks)
    rounds = [part.tolist() for part in torch.arange(num_microbatches, device="cpu").tensor_split(count)]
    schedule = []
    for rank in range(num_ranks):
        stages = range(rank, chunks * num_ranks, num_ranks)
        forwards = [forward(k, stage) for part in rounds for stage in stages for k in part]
        backwards = [backward(k, stage) for part in rounds for stage in reversed(stages) for k in part]
        warm_up = 2 * (num_ranks - 1 - rank) + (chunks - 1) * len(rounds[0])
        schedule.append(_alternate(forwards, backwards, warm_up))
    return schedule


def _alternate(forwards: list[Instruction], backwards: list[Instruction], warm_up: int) -> list[Instruction]:
    """`warm_up` forwards, then one forward and one backward in turn, then the other backwards."""
    warm_up = min(warm_up, len(forwards))
    pairs = [instruction for pair in zip(forwards[warm_up:], backwards) for instruction in pair]
    return forwards[:warm_up] + pairs + backwards[len(forwards) - warm_up :]


def validate(schedule: Schedule, num_stages: int, num_microbatches: int) -> None:
    """Check that a schedule runs to its end and does each forward and backward once, on the right rank.

    Sends don't block, receives do. So ranks get stuck only where one waits for what another, in the order of
    its list, can never come to.

    Args:
        schedule: one list per rank.
        num_stages: how many stages there are: a multiple of the number of ranks.
        num_microbatches: how many micro-batches.

    Errors: ValueError that names the rank, the position in its list (from 0) and the instruction: a wrong
        stage or micro-batch, one that is repeated, one that is skipped, a backward before its forward, or a
        deadlock (then of each rank that is stuck, and what it waits for).
    """
    instance("schedule", schedule, Sequence, "of one list of instructions per rank")
    for instructions in schedule:
        instance("the list of a rank", instructions, Sequence, "of instructions")
    size = len(schedule)
    whole("num_microbatches", num_microbatches)
    if not isinstance(num_stages, int) or not size or num_stages < 1 or num_stages % size:
        raise ValueError(
            f"the schedule has lists for {size} ranks, and {num_stages} stages cannot be dealt out evenly to"
            " them."
        )
    position: dict[Instruction, int] = {}  # of those that are in order so far
    for rank, instructions in enumerate(schedule):
        for index, instruction in enumerate(instructions):
            wrong = _wrong(instruction, rank, size, num_stages, num_microbatches, position)
            if wrong:
                raise ValueError(f"rank {rank}, position {index}, {instruction!r}: {wrong}.")
            position[_with_stage(instruction, rank)] = index
        for stage in range(rank, num_stages, size):
            for needed in (op(k, stage) for op in (forward, backward) for k in range(num_microbatches)):
                if needed not in position:
                    raise ValueError(
                        f"rank {rank}, end of its list (position {len(instructions)}): {needed} is missing; "
                        f"stage {stage} skips the {needed.op} of micro-batch {needed.microbatch}."
                    )
    if waiting := _stuck(with_stages(schedule), num_stages):
        told = [
            f"rank {rank}, position {index}, {schedule[rank][index]} waits for {source}, which rank"
            f" {source.stage % size} has at position {position[source]}"
            for rank, index, source in waiting
        ]
        raise ValueError(f"deadlock: {'; '.join(told)}.")


def _wrong(
    instruction: Instruction,
    rank: int,
    size: int,
    num_stages: int,
    num_microbatches: int,
    position: dict[Instruction, int],
) -> str | None:
    """What is wrong with one instruction, after those at `position`; None if nothing."""
    if not isinstance(instruction, Instruction):
        return "it must be an Instruction"
    full = _with_stage(instruction, rank)
    stage, k = full.stage, full.microbatch
    if full.op not in ("forward", "backward"):
        return f"op={full.op!r} must be 'forward' or 'backward'"
    if not isinstance(stage, Integral) or stage not in range(num_stages):
        return f"there is no stage {stage}; stages are 0 to {num_stages - 1}"
    if stage % size != rank:
        return f"stage {stage} lives on rank {stage % size}"
    # a tensor equals a number, and is another key
    if not isinstance(k, Integral) or k not in range(num_microbatches):
        return (
            f"there is no micro-batch {k!r}; micro-batches are 0 to {num_microbatches - 1}, as whole numbers"
        )
    if full in position:
        return f"this repeats position {position[full]}"
    if full.op == "backward" and forward(k, stage) not in position:
        return f"a backward before its forward, F{k}"
    return None


def _stuck(lists: list[list[Instruction]], num_stages: int) -> list[tuple[int, int, Instruction]]:
    """Run a schedule without computing: (rank, position, the instruction that it waits for) of each rank that
    does not come to its end.
    """
    done: set[Instruction] = set()
    at, before = [0] * len(lists), -1  # where each rank stands
    while len(done) > before:  # as long as any rank went on
        before = len(done)
        for rank, instructions in enumerate(lists):
            while at[rank] < len(instructions) and (
                (source := source_of(instructions[at[rank]], num_stages)) is None or source in done
            ):
                done.add(instructions[at[rank]])
                at[rank] += 1
    stuck = [rank for rank, instructions in enumerate(lists) if at[rank] < len(instructions)]
    return [(rank, at[rank], source_of(lists[rank][at[rank]], num_stages)) for rank in stuck]


def with_stages(schedule: Schedule) -> list[list[Instruction]]:
    """The same schedule with every stage written out."""
    return [
        [_with_stage(instruction, rank) for instruction in instructions]
        for rank, instructions in enumerate(schedule)
    ]


def _with_stage(instruction: Instruction, rank: int) -> Instruction:
    return replace(instruction, stage=rank) if instruction.stage is None else instruction


def source_of(instruction: Instruction, num_stages: int) -> Instruction | None:
    """The instruction, on another stage, whose result this one needs; None if it needs none."""
    stage = instruction.stage + (-1 if instruction.op == "forward" else 1)
    return replace(instruction, stage=stage) if 0 <= stage < num_stages else None


def heir_of(instruction: Instruction, num_stages: int) -> Instruction | None:
    """The other way: the instruction, on another stage, that needs this one's result; None if none does."""
    stage = instruction.stage + (1 if instruction.op == "forward" else -1)
    return replace(instruction, stage=stage) if 0 <= stage < num_stages else None
