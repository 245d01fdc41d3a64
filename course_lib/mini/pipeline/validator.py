"""Runs a schedule without computing, and says what is wrong with it."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral

from course_lib.arguments import instance, whole
from course_lib.mini.pipeline.instructions import (
    LETTERS,
    Instruction,
    Schedule,
    as_sent,
    backward,
    forward,
    source_of,
    with_stages,
)

__all__ = ["validate"]


def validate(schedule: Schedule, num_stages: int, num_microbatches: int) -> None:
    """Check that a schedule runs to its end and does each forward and backward once, on the right rank; a
    backward whole, or in two parts.

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
            position[_full(instruction, rank)] = index
        for stage in range(rank, num_stages, size):
            for needed in (op(k, stage) for op in (forward, backward) for k in range(num_microbatches)):
                if needed.op == "backward" and replace(needed, op="backward_input") in position:
                    needed = replace(needed, op="backward_weight")
                if needed not in position:
                    raise ValueError(
                        f"rank {rank}, end of its list (position {len(instructions)}): {needed} is missing; "
                        f"stage {stage} skips the {needed.op} of micro-batch {needed.microbatch}."
                    )
    if waiting := _stuck(with_stages(schedule), num_stages):
        there = {
            as_sent(instruction): instruction
            for instruction in position
            if instruction.op != "backward_weight"
        }
        told = [
            f"rank {rank}, position {index}, {schedule[rank][index]} waits for {there[source]}, which rank"
            f" {source.stage % size} has at position {position[there[source]]}"
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
    full = _full(instruction, rank)
    stage, k = full.stage, full.microbatch
    if full.op not in LETTERS:
        return f"op={full.op!r} must be {', '.join(map(repr, LETTERS))}"
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
    if full.op != "forward" and forward(k, stage) not in position:
        return f"a backward before its forward, F{k}"
    parts = [replace(full, op=op) for op in ("backward_input", "backward_weight")]
    if full.op == "backward_weight" and parts[0] not in position:
        return f"the second part of a backward before its first, I{k}"
    others = parts if full.op == "backward" else [backward(k, stage)] if full.op == "backward_input" else []
    if there := [other for other in others if other in position]:
        return f"this repeats a part of position {position[there[0]]}, {there[0]}"
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
                done.add(as_sent(instructions[at[rank]]))
                at[rank] += 1
    stuck = [rank for rank, instructions in enumerate(lists) if at[rank] < len(instructions)]
    return [(rank, at[rank], source_of(lists[rank][at[rank]], num_stages)) for rank in stuck]


def _full(instruction: Instruction, rank: int) -> Instruction:
    return with_stages([[]] * rank + [[instruction]])[rank][0]
