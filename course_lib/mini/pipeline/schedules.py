"""Schedules of a pipeline as data: for each rank the list of what it does, in its order.

A model is cut into p stages, one per rank, and a batch into m micro-batches. F0 is the forward of micro-batch
0 on a stage, B0 its backward. A backward may be done in two parts: I0, the gradient of the input, for which
the stage before waits, and W0, the gradients of the weights, for which nobody waits. The order of a rank's
list decides when it is idle, and how many micro-batches it holds at once:

    schedule      idle share of a step     micro-batches in flight on stage s
    naive         (p-1) / p                1
    gpipe         (p-1) / (m+p-1)          m
    one_f_one_b   (p-1) / (m+p-1)          min(p-s, m)
    interleaved   (p-1) / (v m+p-1)        more, but each of 1/v the work: every rank has v stages
    zb_h1         (p-1) / (3 m+p-1)        min(p, m), between F and W; for F, I and W of one length

Sources: Huang et al. 2019, "GPipe", section 2; Narayanan et al. 2021, "Efficient large-scale language model
    training", section 2.2; Qi et al. 2023, "Zero bubble pipeline parallelism", section 2 (their B is I here,
    as torch calls it).
"""

import torch

from course_lib.arguments import takes, whole
from course_lib.mini.pipeline.instructions import (
    Instruction,
    Schedule,
    backward,
    backward_input,
    backward_weight,
    forward,
)
from course_lib.mini.pipeline.validator import validate

__all__ = ["naive", "gpipe", "one_f_one_b", "interleaved", "zb_h1", "zb_h2", "validate"]
__all__ += ["Instruction", "Schedule", "forward", "backward", "backward_input", "backward_weight"]


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


@takes(num_stages=whole, num_microbatches=whole)
def zb_h1(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule ZB-H1: 1F1B, but each W comes p-1 forwards after its own.

    So every rank has min(p, m) micro-batches between F and W, as many as 1F1B's first rank has in flight.
    In a round of a rank: F of a micro-batch, I of the one that comes back to it by then, W of the one that
    came p-1 earlier.

    Source: Qi et al. 2023, section 2.1 and figure 3, top.
    """
    return _zero_bubble(num_stages, num_microbatches, deep=1)


@takes(num_stages=whole, num_microbatches=whole)
def zb_h2(num_stages: int, num_microbatches: int) -> Schedule:
    """Return the schedule ZB-H2: as ZB-H1, but with up to 2p-1 micro-batches between F and W.

    Then no rank is idle between its first instruction and its last; but the last rank still begins, and ends,
    later than the first: it gains if the next step's forwards begin before this step's end on all ranks.

    Source: Qi et al. 2023, section 2.2 and figure 3, bottom.
    """
    return _zero_bubble(num_stages, num_microbatches, deep=2)


def _zero_bubble(num_stages: int, num_microbatches: int, deep: int) -> Schedule:
    last = num_stages - 1
    return [
        [
            op(k)
            for now in range(num_microbatches + deep * last)
            for op, k in (
                (forward, now),
                (backward_input, now - deep * (last - rank)),
                (backward_weight, now - deep * last),
            )
            if 0 <= k < num_microbatches
        ]
        for rank in range(num_stages)
    ]
