"""The blocks of a pipeline in a timeline, and the messages between them."""

import re
from dataclasses import dataclass

from course_lib.record import Job, calls

__all__ = ["Block", "block_of", "messages"]

_NAME = re.compile(r"(f|fwd|forward|b|bwd|backward)[\s_]*(\d*)(?:@(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """What a span named "F0", "forward 3" or "B1@5" is.

    Attributes:
        op: "forward" or "backward".
        microbatch: its number; None: the name has none.
        stage: the stage's number; None: the name has none.
    """

    op: str
    microbatch: int | None
    stage: int | None = None


def block_of(name: str) -> Block | None:
    """Return what a span's name says; None if it is not named like a micro-batch."""
    if not (match := _NAME.fullmatch(name)):
        return None
    kind, microbatch, stage = match.groups()
    op = "forward" if kind[0] in "fF" else "backward"
    return Block(op, int(microbatch) if microbatch else None, None if stage is None else int(stage))


def messages(job: Job) -> list[tuple[int, float, int, float]]:
    """Return what the blocks of the traced step needed of each other: (rank that made it, when its block
    ended, rank that needed it, when that block began), in seconds of `job.timeline`.

    A forward needs that of the stage before, a backward that of the stage after. Where a name has no stage, a
    rank has the stage of its place in the group that it sends to.

    Returns: [] unless each rank has sent exactly as many messages as its blocks have made.
    """
    sends = job.comm[job.comm["op"] == "send"]
    spans = job.timeline[job.timeline["kind"] == "span"]
    found, made = [], dict.fromkeys(range(job.ranks), 0)
    for group in sends["group"].unique():
        ranks = [int(rank) for rank in group.split(",")]
        at: dict[Block, tuple[int, float, float]] = {}  # rank, start, end
        for row in spans[spans["rank"].isin(ranks)].itertuples():
            block = block_of(row.name)
            if block and block.microbatch is not None:
                stage = ranks.index(row.rank) if block.stage is None else block.stage
                place = row.rank, row.start_s, row.start_s + row.seconds
                at[Block(block.op, block.microbatch, stage)] = place
        for block, (rank, _, end_s) in at.items():
            step = 1 if block.op == "forward" else -1
            heir = at.get(Block(block.op, block.microbatch, block.stage + step))
            if heir and heir[0] != rank:
                made[rank] += 1
                found.append((rank, end_s, heir[0], heir[1]))
    return found if found and made == calls(job)["send"].to_dict() else []
