"""Checks of the chapter "Start here": ping-pong, a fair share of a batch, one average for many gradients."""

import os
import time

import psutil
import torch
import torch.distributed as dist

from course_lib import theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import BYTES_LIMIT, Demand, at_most, fact
from course_lib.collectives import of_kind
from course_lib.record import Job

__all__ = ["ping_pong", "my_share", "average"]

GONE_S = 5.0  # how long a process that was asked to end may take
SIZES = (12, 10, 3)  # samples in a batch; and one more size in each try
RELATIVE_ERROR = 1e-6  # of averages, which float32 holds exactly here
SHAPES = ((64, 32), (32,), (3, 4, 5), (1,))  # of the gradients


def _others(job: Job) -> str | None:
    """It cannot be told where nothing was sent."""
    used = {call["op"] for result in job.results for _, calls, _ in result["games"] for call in calls}
    others = ", ".join(sorted(used - of_kind("send", "receive")))
    why = f"only send and recv are needed here, and you also used {others}"
    return (why if others else "") if used else None


def _not_two(job: Job) -> str:
    pids = {result["processes"][0][0] for result in job.results}
    return "" if len(pids | {os.getpid()}) == 3 else "the two ranks were not two processes"


@exercise(
    numbers="each rank returns what it received, whatever the start",
    messages=Demand("only send and recv were used", _others),
    rounds="each rank sends once in each round",
    first=fact(
        "rank 0 sent first",
        "in_turn",
        "rank 0 must send first, and rank 1 must receive before it sends",
        after=("rounds",),
    ),
    size=at_most(
        "each message is one number",
        "largest_bytes",
        8,
        "one number needs at most 8 bytes, and your largest message has {most} bytes",
        after=("rounds",),
    ),
    processes=Demand("two processes played, and the notebook was neither of them", _not_two),
    gone="nothing is left running",
)
def ping_pong(judge: Judge, answer) -> None:
    """`answer(start, rounds)` returns what this rank received; only rank 0 is given `start`, rank 1 None."""
    # start, rounds; float32 is exact up to 16 million
    games = ((0, 3), (40, 5), (1_000 + judge.seed % 1_000_000, 5))

    def play():
        received = []
        for start, rounds in games:
            before = on_rank.late("game") if dist.get_rank() == 0 and start == 40 else None
            with on_rank.Calls(before) as calls:
                numbers = answer(start if dist.get_rank() == 0 else None, rounds)
                numbers = on_rank.plain(list(numbers)) if hasattr(said := numbers, "__iter__") else numbers
            if start == 40:
                on_rank.is_back("game")
            received.append((numbers, calls.rows, " ".join(repr(said).split())))
        me, first = psutil.Process(), "send" if dist.get_rank() == 0 else "recv"
        sizes = [call["payload_bytes"] for _, calls, _ in received for call in calls if call["op"] == "send"]
        return {
            "games": received,
            "in_turn": all(calls and calls[0]["op"] == first for _, calls, _ in received),
            "largest_bytes": max(sizes, default=0),
            "processes": [
                (process.pid, process.create_time()) for process in (me, *me.children(recursive=True))
            ],
        }

    job = judge.run(play, ranks=2)
    for game, (start, rounds) in enumerate(games):
        got = [result["games"][game][0] for result in job.results]
        wanted = [list(range(start + 2 - rank, start + 2 - rank + 2 * rounds, 2)) for rank in (0, 1)]
        wrong = [rank for rank in (1, 0) if _numbers(got[rank]) != wanted[rank]]
        case = f"start {start}, {rounds} rounds"
        why = "; ".join(
            f"{case}: rank {rank} must return {wanted[rank]}, and returned"
            f" {on_rank.short(job.results[rank]['games'][game][2])}"
            for rank in wrong
        )
        told = [on_rank.listed(numbers) for numbers in wanted]
        received = f"{case}: rank 1 received {told[1]}, and rank 0 received {told[0]}"
        # the words of an answer that passes are the same in each try
        if not judge.demand("numbers", why, received if game < 2 else "another start: right as well"):
            break

    # of each rank, in each game
    ops = [[[call["op"] for call in calls] for _, calls, _ in result["games"]] for result in job.results]
    judge.look(job, "messages")
    worst, rounds = 1, games[1][1]  # the game that is told of: the second, or a wrong one
    for game, (_, its_rounds) in enumerate(games):
        if (
            any(ops[rank][game].count("send") != its_rounds for rank in (0, 1))
            and ops[0][1].count("send") == ops[1][1].count("send") == rounds
        ):
            worst, rounds = game, its_rounds
    sends = [ops[rank][worst].count("send") for rank in (0, 1)]
    judge.case = f"{rounds} rounds"
    why = f"each rank must send {rounds} times, and rank 0 sent {sends[0]} and rank 1 sent {sends[1]} times"
    judge.demand("rounds", why if sends != [rounds, rounds] else "", f"each rank sent {rounds} times")
    judge.case = ""
    judge.look(job, "first", "size", "processes")
    left = [process for result in job.results for process in result["processes"]]
    deadline = time.monotonic() + GONE_S
    while (left := [process for process in left if _alive(*process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    why = f"{len(left)} of the processes that your function started are still running"
    judge.demand("gone", why if left else "")


def _alive(pid: int, since: float) -> bool:
    """Whether a process still runs: not another one that has got its number, and not what is left of it until
    somebody asks how it ended.
    """
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - since) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _messages(job: Job) -> str:
    messages = {op for found in job.results for op in found["messages"]}
    why = (
        "each rank can work out its share from its rank and the world size alone, and yours sent messages"
        f" ({', '.join(sorted(messages))})"
    )
    return why if messages else ""


@exercise(
    shares="every sample is on one rank, and no rank has more than one sample more than another",
    messages=Demand("no message was needed", _messages),
)
def my_share(judge: Judge, answer) -> None:
    """`answer(batch)` returns this rank's samples of a batch that every rank has."""
    # 4 ranks leave 2 over and 3 ranks 1: neither rounding up nor a rest for the last one is fair
    another = 22 + 12 * (judge.seed % 5)
    # so that a sample is not its own position
    sizes, first = (*SIZES, another), 100 + judge.seed % 1_000

    def share():
        import random

        # ranks share no random numbers, unless the answer sees to it
        torch.manual_seed(on_rank.private_seed())
        random.seed()
        shares, messages = [], []
        for size in sizes:
            batch = torch.arange(first, first + size)
            with on_rank.Calls() as calls:
                mine = answer(batch.clone())
            messages += [call["op"] for call in calls.rows]
            if not isinstance(mine, torch.Tensor):
                shares.append(f"a value of type {type(mine).__name__}")
            elif mine.dim() != 1 or mine.dtype != batch.dtype:
                shares.append(
                    f"a tensor of {str(mine.dtype).removeprefix('torch.')} with the shape {tuple(mine.shape)}"
                )
            else:
                shares.append(mine.tolist())
        return {"shares": shares, "messages": messages}

    for ranks in (4, 3):
        job = judge.run(share, ranks=ranks)
        shares = list(zip(*(found["shares"] for found in job.results)))
        good = []
        for size, its in zip(sizes, shares):
            problem = _shares_problem(range(first, first + size), its)
            judge.case = f"{size} samples on {ranks} ranks"
            # a size that is another one in each try is told of only where it alone is wrong
            if size in SIZES or problem and all(good):
                good.append(
                    judge.demand("shares", problem, on_rank.listed(sorted(map(len, its), reverse=True)))
                )
        judge.case = f"{ranks} ranks"
        quiet = judge.look(job, "messages")
        if not (all(good) and quiet):
            break


def _shares_problem(batch: range, shares: tuple[list[int] | str, ...]) -> str:
    """What is wrong if not every sample is in one share, or the shares are not equal but for one sample. A
    share that is text says what came instead.
    """
    if strange := [share for share in shares if isinstance(share, str)]:
        return f"return a part of the tensor `batch`, not {strange[0]}"
    found, samples = [sample for share in shares for sample in share], set(batch)
    if foreign := set(found) - samples:
        return (
            f"{min(foreign)} is not in the batch, which has {batch[0]} to {batch[-1]}. Return the samples "
            "themselves, unchanged, and not where they stand"
        )
    missing, doubled = samples - set(found), {sample for sample in found if found.count(sample) > 1}
    counts = [len(share) for share in shares]
    what = " and ".join(
        f"{len(group)} {'sample is' if len(group) == 1 else 'samples are'} {how}"
        for group, how in ((missing, "on no rank"), (doubled, "on more than one rank"))
        if group
    )
    if what:
        return f"{what} (the ranks have {on_rank.listed(counts)} samples)"
    if max(counts) - min(counts) > 1:
        return (
            f"the shares are {on_rank.listed(counts)}. No rank may have more than one sample more than"
            " another: all wait for the slowest"
        )
    return ""


def _more_than_one(job: Job) -> str:
    """On rank 0, in any case; told is the one with many gradients, if it is wrong there."""
    few, many = (len(calls) for _, calls in job.results[0])
    why = f"one collective is enough for all gradients together, and you called {many if many != 1 else few}"
    return why if (few, many) != (1, 1) else ""


@exercise(
    average="every rank has the average over all ranks of every gradient",
    calls=Demand("one collective", _more_than_one),
    bytes="it sends no more than 2(n-1)/n times the gradients' bytes",
)
def average(judge: Judge, answer) -> None:
    """`answer(gradients)` returns the mean over all ranks of a list of tensors, with one collective.

    What is right on four ranks is tried on two: there, too, averages are exact.
    """
    ranks, seed = 4, judge.seed
    cases = [((seed % 50 + 1, 3), (seed % 7 + 2,)), SHAPES]

    def gradients(case: int, rank: int) -> list[torch.Tensor]:
        """Whole numbers: their average is exact in float32, in every order, and in no smaller dtype."""
        generator = torch.Generator().manual_seed(seed + 10 * case + rank)
        return [
            torch.randint(-(2**20), 2**20, shape, generator=generator, device="cpu").float()
            for shape in cases[case]
        ]

    def reduce():
        found, rank, last = [], dist.get_rank(), dist.get_world_size() - 1
        for case in range(len(cases)):
            mine = [gradient.to(torch.get_default_device()) for gradient in gradients(case, rank)]
            with on_rank.Calls(on_rank.late(f"case {case}") if rank == last else None) as calls:
                means = answer(mine)
                # at once: who has not waited for them does not have them
                if isinstance(means, (list, tuple)):
                    means = [mean.clone() if isinstance(mean, torch.Tensor) else mean for mean in means]
                on_rank.is_back(f"case {case}")
            found.append((means, calls.rows))
        return found

    def wrong(job) -> str:
        for case in (1, 0):
            means = [
                torch.stack(same).mean(0)
                for same in zip(*(gradients(case, rank) for rank in range(job.ranks)))
            ]
            for rank, result in enumerate(job.results):
                if problem := _difference(result[case][0], means):
                    return f"rank {rank}: {problem}"
        return ""

    job = judge.run(reduce, ranks=ranks)
    problem = wrong(job)
    if not problem and (problem := wrong(judge.run(reduce, ranks=2))):
        problem = f"right on {ranks} ranks, and not on 2. There, on {problem}"
    said = f"all {ranks} ranks have the average of all {len(SHAPES)} gradients"
    judge.demand("average", problem, said)

    payload_bytes = sum(4 * torch.Size(shape).numel() for shape in SHAPES)
    least_bytes = theory.collective_bytes("all_reduce", payload_bytes, ranks)
    if judge.look(job, "calls"):
        (call,) = job.results[0][1][1]
        sent_bytes = call["algorithm_bytes"]
        why = (
            f"your {call['op']} sends {sent_bytes:,.0f} bytes per rank, and an all_reduce of the"
            f" {payload_bytes:,} bytes of gradients sends {least_bytes:,.0f}"
        )
        said = (
            f"it sends no more than 2(n-1)/n times the gradients' {payload_bytes:,} bytes: {least_bytes:,.0f}"
            " per rank"
        )
        judge.demand("bytes", why if sent_bytes > BYTES_LIMIT * least_bytes else "", said)


def _difference(means, wanted: list[torch.Tensor]) -> str:
    """What is wrong with one rank's averages, in words; empty if nothing."""
    if not isinstance(means, (list, tuple)) or not all(isinstance(mean, torch.Tensor) for mean in means):
        return f"return a list of tensors, one per gradient, not {on_rank.short(means)}"
    shapes, wanted_shapes = [tuple(mean.shape) for mean in means], [tuple(want.shape) for want in wanted]
    if shapes != wanted_shapes:
        return f"the averages must have the shapes {wanted_shapes}, and yours have {shapes}"
    for number, (mean, want) in enumerate(zip(means, wanted)):
        mean, want = mean.detach().cpu().double(), want.double()
        if not on_rank.apart(mean, want) < RELATIVE_ERROR:
            hint = ""
            if not torch.isfinite(mean).all() or on_rank.apart(mean, want) < 0.02:
                hint = " It is near it, or overflows: send and add in the gradients' own dtype."
            elif factor := on_rank.times(mean.flatten(), want.flatten(), 1e-3):
                hint = f" It is {factor:.3g} times the average: by what do you divide?"
            return f"gradient {number} is not the average over all ranks.{hint}"
    return ""


def _numbers(values) -> list[float] | None:
    """A list of numbers, or of lists with one number, as numbers; None if it is something else."""
    try:
        return [float(value[0] if isinstance(value, list) and len(value) == 1 else value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        return None
