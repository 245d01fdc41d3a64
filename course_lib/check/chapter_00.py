"""Checks of chapter 00: ping-pong, a fair share of a batch, one average for many gradients."""
import os

import psutil
import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.job import Job

__all__ = ["ping_pong", "my_share", "average"]

# What runs on the ranks is defined inside each check. So it travels to the ranks as it is, and they need not import this package.

TIMEOUT_S = 15.0                # an answer in which both ranks wait for each other ends here
GAMES = ((0, 3), (40, 5))       # start, rounds: the second one is traced
SIZES = (12, 10, 3)             # samples in a batch; the second one is traced
FIRST_SAMPLE = 100              # so that a sample is not its own position
SHAPES = ((64, 32), (32,), (3, 4, 5), (1,))     # of the gradients


@exercise
def ping_pong(judge: Judge, answer) -> None:
    """`answer(start, rounds)` returns what this rank received; only rank 0 is given `start`, rank 1 gets None."""
    def play():
        received = []
        for start, rounds in GAMES:
            with measure.step():
                received.append(answer(start if dist.get_rank() == 0 else None, rounds))
        children = [child.pid for child in psutil.Process().children(recursive=True)]
        return received, os.getpid(), children

    job = _run(judge, play, ranks=2)
    for game, (start, rounds) in enumerate(GAMES):
        got = [result[0][game] for result in job.results]
        wanted = [list(range(start + 2 - rank, start + 2 - rank + 2 * rounds, 2)) for rank in (0, 1)]
        wrong = [rank for rank in (1, 0) if _numbers(got[rank]) != wanted[rank]]
        case = f"start {start}, {rounds} rounds"
        judge.demand(not wrong, f"{case}: rank 1 received {_listed(wanted[1])}, and rank 0 received {_listed(wanted[0])}",
                     "; ".join(f"{case}: rank {rank} must return {wanted[rank]}, and returned {_short(got[rank])}" for rank in wrong))
        if wrong:
            break

    ops = [list(job.comm.loc[job.comm["rank"] == rank, "op"]) for rank in (0, 1)]
    rounds, others = GAMES[1][1], sorted({op for op in (*ops[0], *ops[1]) if op not in ("send", "recv")})
    sends = [ops[rank].count("send") for rank in (0, 1)]
    if any(ops):
        judge.demand(not others, "only send and recv were used", f"only send and recv are needed here, and you also used {', '.join(others)}")
    judge.demand(sends == [rounds, rounds], f"{rounds} rounds: each rank sent {rounds} times",
                 f"{rounds} rounds: each rank must send {rounds} times, and rank 0 sent {sends[0]} and rank 1 sent {sends[1]} times")
    if sends == [rounds, rounds]:
        judge.demand(ops[0][0] == "send" and ops[1][0] == "recv", "rank 0 sent first",
                     "rank 0 must send first, and rank 1 must receive before it sends")
        largest = int(job.comm.loc[job.comm["op"] == "send", "payload_bytes"].max())
        judge.demand(largest <= 8, "each message is one number", f"one number needs at most 8 bytes, and your largest message has {largest} bytes")

    pids = {pid for _, pid, _ in job.results}
    judge.demand(len(pids | {os.getpid()}) == 3, "two processes played, and the notebook was neither of them", "the two ranks were not two processes")
    left = [pid for _, own, children in job.results for pid in (own, *children) if psutil.pid_exists(pid)]
    judge.demand(not left, "nothing is left running", f"{len(left)} of the processes that your function started are still running")


@exercise
def my_share(judge: Judge, answer) -> None:
    """`answer(batch)` returns this rank's samples of a batch that every rank has."""
    def share():
        shares = []
        for size in SIZES:
            batch = torch.arange(FIRST_SAMPLE, FIRST_SAMPLE + size)
            with measure.step():
                mine = answer(batch)
            if not isinstance(mine, torch.Tensor):
                shares.append(f"a value of type {type(mine).__name__}")
            elif mine.dim() != 1 or mine.dtype != batch.dtype:
                shares.append(f"a tensor of {str(mine.dtype).removeprefix('torch.')} with the shape {tuple(mine.shape)}")
            else:
                shares.append(mine.tolist())
        return shares

    for ranks in (4, 3):
        job = _run(judge, share, ranks=ranks)
        good = [_judge_shares(judge, f"{size} samples on {ranks} ranks", size, shares) for size, shares in zip(SIZES, zip(*job.results))]
        quiet = judge.demand(job.comm.empty, f"{ranks} ranks: no message was needed",
                             f"{ranks} ranks: each rank can work out its share from its rank and the world size alone, and yours sent messages "
                             f"({', '.join(sorted(set(job.comm['op'])))})")
        if not (all(good) and quiet):
            break


def _run(judge: Judge, fn, ranks: int) -> Job:
    """Run `fn` under a name that reads well in an error: "your function failed on rank 1."."""
    fn.__name__ = "your function"
    return judge.run(fn, ranks=ranks, timeout=TIMEOUT_S)


def _judge_shares(judge: Judge, case: str, size: int, shares: tuple[list[int] | str, ...]) -> bool:
    """Demand that every sample is in one share, and that the shares are equal but for one sample. A share that is text says what came instead."""
    if strange := [share for share in shares if isinstance(share, str)]:
        return judge.demand(False, "", f"{case}: return a part of the tensor `batch`, not {strange[0]}")
    found, samples = [sample for share in shares for sample in share], set(range(FIRST_SAMPLE, FIRST_SAMPLE + size))
    if foreign := set(found) - samples:
        return judge.demand(False, "", f"{case}: {min(foreign)} is not in the batch, which has {FIRST_SAMPLE} to {max(samples)}. Return the samples "
                            "themselves, unchanged, and not where they stand")
    missing, doubled = samples - set(found), {sample for sample in found if found.count(sample) > 1}
    counts = [len(share) for share in shares]
    what = " and ".join(f"{len(group)} {'sample is' if len(group) == 1 else 'samples are'} {how}"
                        for group, how in ((missing, "on no rank"), (doubled, "on more than one rank")) if group)
    if what:
        return judge.demand(False, "", f"{case}: {what} (the ranks have {_listed(counts)} samples)")
    return judge.demand(max(counts) - min(counts) <= 1, f"{case}: {_listed(counts)}",
                        f"{case}: the shares are {_listed(counts)}. No rank may have more than one sample more than another: all wait for the slowest")


@exercise
def average(judge: Judge, answer) -> None:
    """`answer(gradients)` returns the mean over all ranks of a list of tensors, with one collective."""
    ranks = 4

    def gradients(rank: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(rank)
        return [torch.randn(shape, generator=generator, device="cpu") for shape in SHAPES]

    def reduce():
        for _ in range(2):
            mine = [gradient.to(torch.get_default_device()) for gradient in gradients(dist.get_rank())]
            with measure.step():
                means = answer(mine)
        return means

    job = _run(judge, reduce, ranks=ranks)
    wanted = [torch.stack(same).mean(0) for same in zip(*map(gradients, range(ranks)))]
    for rank, means in enumerate(job.results):
        problem = _difference(means, wanted)
        if problem:
            judge.demand(False, "", f"rank {rank}: {problem}")
            break
    else:
        judge.demand(True, f"all {ranks} ranks have the average of all {len(SHAPES)} gradients", "")

    payload_bytes = sum(tensor.nbytes for tensor in wanted)
    least_bytes = theory.collective_bytes("all_reduce", payload_bytes, ranks)
    mine = job.comm[job.comm["rank"] == 0]
    sent_bytes = mine["algorithm_bytes"].sum()
    if judge.demand(len(mine) == 1, "one collective", f"one collective is enough for all gradients together, and you called {len(mine)}"):
        judge.demand(sent_bytes <= 1.02 * least_bytes, f"it sends no more than 2(n-1)/n times the gradients' {payload_bytes:,} bytes: {least_bytes:,.0f} per rank",
                     f"your {mine['op'].iloc[0]} sends {sent_bytes:,.0f} bytes per rank, and an all_reduce of the {payload_bytes:,} bytes of "
                     f"gradients sends {least_bytes:,.0f}")


def _difference(means, wanted: list[torch.Tensor]) -> str:
    """What is wrong with one rank's averages, in words; empty if nothing."""
    if not isinstance(means, (list, tuple)) or not all(isinstance(mean, torch.Tensor) for mean in means):
        return f"return a list of tensors, one per gradient, not {_short(means)}"
    shapes, wanted_shapes = [tuple(mean.shape) for mean in means], [tuple(want.shape) for want in wanted]
    if shapes != wanted_shapes:
        return f"the averages must have the shapes {wanted_shapes}, and yours have {shapes}"
    for number, (mean, want) in enumerate(zip(means, wanted)):
        if not torch.allclose(mean.detach().to(want.dtype), want, rtol=1e-4, atol=1e-5):
            factor = (mean.detach() * want).sum() / (want * want).sum()
            close = torch.allclose(mean.detach().to(want.dtype), factor * want, rtol=1e-4, atol=1e-4)
            hint = f" It is {factor:.3g} times the average: by what do you divide?" if close else ""
            return f"gradient {number} is not the average over all ranks.{hint}"
    return ""


def _numbers(values) -> list[float] | None:
    """A list of numbers or of tensors with one element as numbers; None if it is something else."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        return None


def _listed(values) -> str:
    return ", ".join(map(str, values))


def _short(value, limit: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
