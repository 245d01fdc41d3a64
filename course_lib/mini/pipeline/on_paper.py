"""When what would run, if nothing but the order of the lists and the length of each instruction counted: no
message takes time. The data of a drawn schedule.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from course_lib import torch_internals
from course_lib.arguments import fits, one_of, takes, whole
from course_lib.mini.pipeline import refusals as refuse
from course_lib.mini.pipeline import schedules
from course_lib.mini.pipeline.instructions import (
    LETTERS,
    Instruction,
    Schedule,
    as_sent,
    source_of,
    with_stages,
)

__all__ = ["Slot", "blocks", "play", "idle_share", "in_flight", "lists_of_torch", "KINDS"]

KINDS: dict[str, Callable[..., Schedule]] = {
    "naive": schedules.naive,
    "gpipe": schedules.gpipe,
    "1f1b": schedules.one_f_one_b,
    "interleaved": schedules.interleaved,
    "zb_h1": schedules.zb_h1,
    "zb_h2": schedules.zb_h2,
}
# a linear layer has one product of matrices in forward, and two in backward: one for its input, one for W
COSTS = {"forward": 1.0, "backward": 2.0, "backward_input": 1.0, "backward_weight": 1.0}


class Slot(NamedTuple):
    """One instruction on paper.

    Attributes:
        begin, end: in units of a forward of one of p equal stages.
    """

    rank: int
    stage: int
    microbatch: int
    op: str
    begin: float
    end: float


def blocks(
    kind: str, num_ranks: int, num_microbatches: int, chunks: int = 1, costs: Mapping[str, float] = COSTS
) -> list[Slot]:
    """Return what each rank does when, under a schedule by name.

    Args:
        kind: one of `KINDS`.
        chunks: stages per rank, of "interleaved"; each takes 1/chunks of the time.
        costs: how long each op takes on one of p equal stages.

    Returns:
        `Slot`s, those of a rank one after the other, in its order. `pandas.DataFrame(...)` makes a table of
        them.
    """
    make = one_of("kind", kind, KINDS)
    if kind == "interleaved":
        schedule = make(num_ranks, num_microbatches, chunks)
    else:
        one_of("chunks", chunks, (1,))
        schedule = make(num_ranks, num_microbatches)
    return play(schedule, {op: cost / chunks for op, cost in costs.items()})


@takes(schedule=refuse.other_lists)
@fits(refuse.other_costs)
def play(schedule: Schedule, costs: Mapping[str, float] = COSTS) -> list[Slot]:
    """Return what each rank does when, under any valid schedule: an instruction begins as soon as its rank is
    free, and what it needs is there.

    Args:
        schedule: one list per rank; a stage may live on any rank, where the lists name their stages.

    Errors: ValueError if the ranks cannot come to the end of their lists.
    """
    lists = with_stages(schedule)
    num_stages = 1 + max((one.stage for instructions in lists for one in instructions), default=-1)
    ends: dict[Instruction, float] = {}
    played: list[list[Slot]] = [[] for _ in lists]
    went_on = True
    while went_on:
        went_on = False
        for rank, (instructions, mine) in enumerate(zip(lists, played)):
            while len(mine) < len(instructions):
                one = instructions[len(mine)]
                source = source_of(one, num_stages)
                if source is not None and source not in ends:
                    break
                begin = max(mine[-1].end if mine else 0.0, ends.get(source, 0.0))
                ends[as_sent(one)] = end = begin + costs[one.op]
                mine.append(Slot(rank, one.stage, one.microbatch, one.op, begin, end))
                went_on = True
    stuck = [rank for rank, mine in enumerate(played) if len(mine) < len(lists[rank])]
    if stuck:
        raise ValueError(f"ranks {stuck} cannot come to the end of their lists: `validate` says why.")
    return [block for mine in played for block in mine]


@takes(found=refuse.other_slots)
def idle_share(found: list[Slot], rank: int | None = None) -> float:
    """Return the bubble: the idle time of all ranks over ranks x length of the step; or that of one rank."""
    ranks, length = 1 + max(block.rank for block in found), max(block.end for block in found)
    if rank is not None:
        ranks, found = 1, [block for block in found if block.rank == whole("rank", rank, 0, ranks - 1)]
    return 1 - sum(block.end - block.begin for block in found) / (ranks * length)


@takes(found=refuse.other_slots)
def in_flight(found: list[Slot]) -> list[int]:
    """Return, for each rank, how many micro-batches it holds at most between their forward and the end of
    their backward, counted once per stage. (`theory.microbatches_in_flight` has it as formulas.)
    """
    held = [0] * (1 + max(block.rank for block in found))
    over = {(block.stage, block.microbatch): block.end for block in found if block.op != "forward"}
    for rank in range(len(held)):
        begun = [its for its in found if its.rank == rank and its.op == "forward"]
        kept = [(its.begin, over.get((its.stage, its.microbatch), math.inf)) for its in begun]
        held[rank] = max((sum(begin <= at < end for begin, end in kept) for at, _ in kept), default=0)
    return held


@takes(schedule=refuse.other_torch_schedules)
def lists_of_torch(schedule) -> Schedule:
    """Return the lists of a schedule of torch.distributed.pipelining that has several stages on a rank.

    Its stages may live elsewhere than ours, as in a V; so `play` takes these lists, and `Pipeline` does not.

    Errors: ValueError for one that does two things at once, as ScheduleDualPipeV.
    """
    ops = {letter: op for op, letter in LETTERS.items()}
    order = torch_internals.pipeline_order(schedule)
    return [[Instruction(one_of("op", letter, ops), k, stage) for letter, k, stage in mine] for mine in order]
