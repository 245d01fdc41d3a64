"""Checks of chapter 03: a ring all_reduce in chunks, a broadcast along a chain in pieces, an all_reduce in few messages.

What a rank runs stands inside `_trial`: it travels by value, so that a rank never imports this package (and pandas with it).
"""
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check.judge import Judge, exercise
from course_lib.job import Job
from course_lib.ranks.errors import RankError

__all__ = ["ring_all_reduce", "chain_broadcast", "doubling_all_reduce"]

TIMEOUT_S = 10.0                        # an answer in which all ranks wait for each other ends here
BYTES_LIMIT = 1.02                      # times what the textbook algorithm sends
LARGE = 1_000_003                       # elements; no number of ranks divides it
LARGE_BYTES = 4 * LARGE
PIECES = 8                              # the least number of pieces of a broadcast

Case = tuple[tuple[int, ...], str]      # shape and dtype of one tensor; a job's second case is the traced one


@exercise
def ring_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor)` sums a tensor over all ranks in place: any size, only sends and receives, at most 2 r S bytes from any rank."""
    for ranks in (4, 3, 2):
        cases = [((10, 7), "float32"), ((LARGE,), "float32"), ((1,), "float32"), ((3,), "int64"), ((ranks - 1,), "float64"), ((2, 5), "bfloat16")]
        job = _trial(judge, answer, cases, ranks)
        values = _judge_values(judge, job, cases, "the sum over all ranks")
        _judge_calls(judge, job)
        limit = theory.collective_bytes("all_reduce", LARGE_BYTES, ranks)
        _judge_bytes(judge, job, limit, f"2(n-1)/n S = {limit / LARGE_BYTES:.2f} S")
        if not values:
            return


@exercise
def chain_broadcast(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, root)` gives every rank the root's tensor, in pieces that are passed on: at most S bytes from any rank, no message above S / 8."""
    for ranks, root in ((4, 0), (3, 1)):
        cases = [((10, 7), "float32"), ((LARGE,), "float32"), ((3,), "int64")]
        job = _trial(judge, answer, cases, ranks, root)
        values = _judge_values(judge, job, cases, f"the tensor of rank {root}, the root")
        sends = _judge_calls(judge, job)
        _judge_bytes(judge, job, LARGE_BYTES, "S")
        largest = sends["payload_bytes"].max() if len(sends) else 0
        small = judge.demand(largest <= BYTES_LIMIT * LARGE_BYTES / PIECES, f"{ranks} ranks: no message is larger than S/{PIECES}",
                     f"{ranks} ranks: your largest message is {largest / LARGE_BYTES:.2f} S, and the next rank waits until all of it has come. With "
                     f"pieces of S/{PIECES} or less, a rank passes on one piece while the next one is on its way")
        hoarding = [rank for rank in range(ranks) if not _passes_on(job, rank)]
        if small:
            judge.demand(not hoarding, f"{ranks} ranks: pieces are passed on while others are on their way",
                         f"{ranks} ranks: rank {hoarding[0] if hoarding else 0} passes nothing on until it has received everything, so the pieces save no time. "
                         "Pass on each piece before you wait for the next one")
        if not values:
            return


@exercise
def doubling_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor)` sums a small tensor over 2, 4 or 8 ranks in place, in log2(ranks) steps: so many messages of S bytes from every rank."""
    for ranks in (2, 4, 8):
        shape = (10, 7)
        cases = [(shape, "float32"), (shape, "float32"), ((1,), "int64")]
        job = _trial(judge, answer, cases, ranks)
        values = _judge_values(judge, job, cases, "the sum over all ranks")
        sends = _judge_calls(judge, job)
        if not values or sends.empty:
            return
        counts = sends.groupby("rank").size().reindex(range(ranks), fill_value=0)
        most, fewest, rounds = int(counts.max()), int(counts.min()), ranks.bit_length() - 1
        otherwise = (f"rank {counts.idxmax()} sends {_messages(most)}, and log2({ranks}) = {rounds} is enough: with every exchange "
                     "a rank can double the number of ranks whose sum it holds" if most > rounds else
                     f"rank {counts.idxmin()} sends {_messages(fewest)} only. To be ready after log2({ranks}) = {rounds} steps, every rank must send in each of them. "
                     "Along a tree, half of the steps go up and half come down, and most ranks wait")
        judge.demand(most == fewest == rounds, f"{ranks} ranks: every rank sends {_messages(rounds)}", f"{ranks} ranks: {otherwise}")
        largest, S = sends["payload_bytes"].max(), 4 * torch.Size(shape).numel()
        judge.demand(largest <= S, f"{ranks} ranks: no message is larger than S",
                     f"{ranks} ranks: your largest message is {largest / S:.1f} S. Add what comes to your tensor, and send the sum: it is never larger than S")


def _trial(judge: Judge, answer: Callable, cases: Sequence[Case], ranks: int, root: int | None = None) -> Job:
    """Run the answer on every case, as one job; each rank returns, case by case, what is wrong with its tensor ("" if nothing).

    Every rank should get the sum over all ranks; with `root`, the root's tensor.
    """
    def trial():
        torch.set_default_device("cpu")           # gloo sends from one CPU memory to the other
        rank, size = dist.get_rank(), dist.get_world_size()

        def start(rank, shape, dtype):            # small whole numbers: their sum is exact in every order and dtype
            generator = torch.Generator().manual_seed(100 + rank)
            return torch.randint(-9, 10, shape, generator=generator).to(getattr(torch, dtype))

        def problem(found, shape, dtype):
            everyone = [start(other, shape, dtype) for other in range(size)]
            wanted = sum(everyone) if root is None else everyone[root]
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                return "has another shape or dtype than before"
            if torch.equal(found, wanted):
                return ""
            if torch.equal(found, everyone[rank]):
                return "is unchanged: write the result into the tensor itself"
            chunks = zip(found.flatten().tensor_split(size), wanted.flatten().tensor_split(size))
            right = [number for number, (mine, want) in enumerate(chunks) if len(want) and torch.equal(mine, want)]
            if right:
                return f"is right in {len(right)} of {size} chunks only"
            return "is the mean: do not divide" if torch.allclose(found * size, wanted) else "is something else"

        problems = []
        for shape, dtype in cases:
            tensor = start(rank, shape, dtype)
            dist.barrier()
            with measure.step():
                answer(tensor) if root is None else answer(tensor, root)
            problems.append(problem(tensor, shape, dtype))
        return problems

    trial.__name__ = "your function"
    try:
        return judge.run(trial, ranks=ranks, timeout=TIMEOUT_S)
    except RankError as error:
        if "timeout=" not in error.headline:
            raise
        raise RankError(f"{error.headline} Do you `wait` for each isend and irecv? A message that nobody waits for can be lost.",
                        error.reports, error.label) from None


def _judge_values(judge: Judge, job: Job, cases: Sequence[Case], wanted: str) -> bool:
    """Demand that nothing is wrong on any rank in any case; one line, which names the first problem."""
    for number, (shape, dtype) in enumerate(cases):
        for rank, problems in enumerate(job.results):
            if problems[number]:
                return judge.demand(False, "", f"{job.ranks} ranks, a tensor of shape {shape} and dtype {dtype}: on rank {rank} it must be {wanted}, and it "
                                    f"{problems[number]}")
    *smaller, largest = sorted({torch.Size(shape).numel() for shape, _ in cases})
    sizes = f"{', '.join(map(str, smaller))} and {largest}"
    return judge.demand(True, f"{job.ranks} ranks, tensors of {sizes} elements: every rank has {wanted}", "")


def _judge_calls(judge: Judge, job: Job):
    """Demand that the traced case used sends and receives alone; returns the rows of the sends."""
    others = sorted(set(job.comm["op"]) - {"send", "recv"})
    judge.demand(not others, f"{job.ranks} ranks: only sends and receives were used",
                 f"{job.ranks} ranks: you called {', '.join(others)}. Build the collective yourself, from dist.isend and dist.irecv")
    return job.comm[job.comm["op"] == "send"]


def _passes_on(job: Job, rank: int) -> bool:
    """Whether a rank that receives and sends began to send before its last receive was over: in torch's trace, when `wait` returns."""
    mine = job.comm[job.comm["rank"] == rank]
    sends, receives = mine[mine["op"] == "send"], mine[mine["op"] == "recv"]
    if sends.empty or receives.empty or receives["seconds"].isna().any():
        return True
    return bool(sends["start_s"].min() < (receives["start_s"] + receives["seconds"]).max())


def _judge_bytes(judge: Judge, job: Job, limit_bytes: float, formula: str) -> None:
    """Demand that no rank has sent more than 2% above the limit for the large tensor: by the system's count, or where it has none, by the calls."""
    wire = job.steps[job.steps["phase"] == "traced"].set_index("rank")["wire_bytes"]
    sent = wire if wire.notna().all() else job.comm.groupby("rank")["algorithm_bytes"].sum().reindex(range(job.ranks), fill_value=0)
    most = float(sent.max())
    judge.demand(most <= BYTES_LIMIT * limit_bytes, f"{job.ranks} ranks: no rank sends more than {BYTES_LIMIT} times {formula}",
                 f"{job.ranks} ranks: rank {int(sent.astype(float).idxmax())} sends {most / limit_bytes:.2f} times {formula}. {_advice(sent.astype(float), most)}")


def _advice(sent, most: float) -> str:
    if sent.min() < 0.7 * most:
        return "The others send less, and wait for this rank"
    return "All ranks send this much: does a whole tensor travel where a chunk would do?"


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
