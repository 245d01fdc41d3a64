"""What a schedule is made of: one list of instructions per rank; and which instruction waits for which."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = [
    "Instruction",
    "Schedule",
    "forward",
    "backward",
    "backward_input",
    "backward_weight",
    "LETTERS",
    "with_stages",
    "as_sent",
    "source_of",
    "heir_of",
]

# as torch.distributed.pipelining writes them, too
LETTERS = {"forward": "F", "backward": "B", "backward_input": "I", "backward_weight": "W"}


@dataclass(frozen=True)
class Instruction:
    """One entry of a rank's list; printed F0, B0, I0, W0, or F0@2 where the stage is given.

    Attributes:
        op: "forward"; and "backward", or in its place first "backward_input", later "backward_weight".
        microbatch: number of the micro-batch, from 0.
        stage: number of the stage, from 0. Stage s lives on rank s mod p. None: the stage with the number of
            the rank; right wherever each rank has one stage.
    """

    op: str
    microbatch: int
    stage: int | None = None

    def __repr__(self) -> str:
        stage = "" if self.stage is None else f"@{self.stage}"
        return f"{LETTERS.get(self.op, str(self.op)[:1].upper())}{self.microbatch}{stage}"


Schedule = Sequence[Sequence[Instruction]]


def forward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the forward of a micro-batch."""
    return Instruction("forward", microbatch, stage)


def backward(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction to run the backward of a micro-batch."""
    return Instruction("backward", microbatch, stage)


def backward_input(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction for the first part of a backward: the gradient of the stage's input."""
    return Instruction("backward_input", microbatch, stage)


def backward_weight(microbatch: int, stage: int | None = None) -> Instruction:
    """Return the instruction for the second part: the gradients of the stage's weights."""
    return Instruction("backward_weight", microbatch, stage)


def with_stages(schedule: Schedule) -> list[list[Instruction]]:
    """The same schedule with every stage written out."""
    return [
        [_with_stage(instruction, rank) for instruction in instructions]
        for rank, instructions in enumerate(schedule)
    ]


def _with_stage(instruction: Instruction, rank: int) -> Instruction:
    return replace(instruction, stage=rank) if instruction.stage is None else instruction


def as_sent(instruction: Instruction) -> Instruction:
    """What a message is called that an instruction waits for: of a backward in two parts, the first one sends
    and receives all that the whole one would.
    """
    return replace(instruction, op="backward") if instruction.op == "backward_input" else instruction


def source_of(instruction: Instruction, num_stages: int) -> Instruction | None:
    """The instruction, on another stage, whose result this one needs, as `as_sent` calls it; None if it needs
    none.
    """
    return _neighbour(instruction, -1, num_stages)


def heir_of(instruction: Instruction, num_stages: int) -> Instruction | None:
    """The other way: the instruction, on another stage, that needs this one's result; None if none does."""
    return _neighbour(instruction, 1, num_stages)


def _neighbour(instruction: Instruction, way: int, num_stages: int) -> Instruction | None:
    stage = instruction.stage + (way if instruction.op == "forward" else -way)
    there = instruction.op != "backward_weight" and 0 <= stage < num_stages
    return replace(as_sent(instruction), stage=stage) if there else None
