"""Checks of the chapter "Collectives and the ring": a ring reduce_scatter in chunks, a broadcast along a
chain in pieces, an all_reduce in few messages and few bytes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.folder import trial_folder
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import BYTES_LIMIT, Demand
from course_lib.collectives import of_kind
from course_lib.ranks.errors import RankError
from course_lib.record import Job, sent

__all__ = ["ring_reduce_scatter", "chain_broadcast", "halving_doubling_all_reduce"]

LARGE = 1_000_003  # elements; no number of ranks divides it
LARGE_BYTES = 4 * LARGE
PIECES = 8  # the least number of pieces of a broadcast
AHEAD = 2  # of these pieces, how many a rank may have received and not yet passed on
# how long a piece is held back for a rank that should pass on those before it; if it does not, it is asked
# once more
GATE_S = 7.0
A_WHILE_S = 2.0  # in which messages that nobody has waited for come all the same
# whole numbers: the sum of 8 is exact in every order, and in no smaller dtype
LIMITS = {"float32": 2**20, "float64": 2**49, "int64": 2**59, "bfloat16": 10}

Case = tuple[tuple[int, ...], str]  # shape and dtype of one tensor


def _sends_and_receives(job: Job) -> str:
    """Sends and receives alone were used, whatever the size, and they were seen."""
    used = [_ops([found["calls"] for found in case]) for case in zip(*job.results)]
    messages = of_kind("send", "receive")
    others = sorted(set().union(*used) - messages)
    some = " for tensors of some sizes" if others and not all(ops - messages for ops in used) else ""
    if others:
        return (
            f"you called {', '.join(others)}{some}. Build the collective yourself, from dist.isend and"
            " dist.irecv"
        )
    if "send" not in set().union(*used):
        return "no rank called a send: use dist.isend and dist.irecv of torch.distributed"
    return ""


ONLY_MESSAGES = Demand("only sends and receives were used", _sends_and_receives)


def _ops(calls: list[list[dict]]) -> set[str]:
    """What the ranks called."""
    return {call["op"] for its in calls for call in its}


def _too_much(job: Job, limit_bytes: float, formula: str, advice: Callable[[list[float]], str]) -> str:
    """Who has sent more than 2% above the limit for the large tensor: by the sends, or of collectives by the
    system's count.
    """
    number = next(number for number, case in enumerate(job.results[0]) if case["large"])
    wire = sent(job, [number + 2])
    calls = [results[number]["calls"] for results in job.results]
    by_calls = wire.isna().any() or _ops(calls) <= of_kind("send", "receive")
    by_rank = [sum(call["algorithm_bytes"] for call in its) for its in calls] if by_calls else wire.tolist()
    most = max(by_rank)
    if most <= BYTES_LIMIT * limit_bytes:
        return ""
    return f"rank {by_rank.index(most)} sends {most / limit_bytes:.2f} times {formula}. {advice(by_rank)}"


def _ring_advice(by_rank: list[float]) -> str:
    if min(by_rank) < 0.9 * max(by_rank):
        return "The others send less, and wait for this rank"
    return "All ranks send this much: does a whole tensor travel where a chunk would do, or a larger dtype?"


@exercise(
    values="chunks[rank] is the sum over all ranks, whatever the sizes and the dtype of the chunks",
    messages=ONLY_MESSAGES,
    bytes=f"no rank sends more than {BYTES_LIMIT} times (n-1)/n S",
)
def ring_reduce_scatter(judge: Judge, answer: Callable) -> None:
    """`answer(chunks)` leaves the sum of chunk number `rank` on each rank, in place: any sizes, only sends
    and receives, at most r S bytes from any rank.
    """
    for ranks in (4, 3, 2):
        cases = [((10, 7), "float32"), ((LARGE,), "float32"), ((3,), "int64"), ((2, 5), "bfloat16")]
        job = _trial(judge, answer, [*cases, _any_size(judge)], ranks, own_chunk=True)
        right = _judge_values(judge, job, cases, "its own chunk of the sum")
        judge.look(job)
        limit = theory.collective_bytes("reduce_scatter", LARGE_BYTES, ranks)
        formula = f"(n-1)/n S = {limit / LARGE_BYTES:.2f} S"
        said = f"no rank sends more than {BYTES_LIMIT} times {formula}"
        judge.demand("bytes", _too_much(job, limit, formula, _ring_advice), said)
        if not right:
            return


def _sends(results: list[dict]) -> list[dict]:
    """What one rank sent, in cases of its own."""
    return [call for case in results for call in case["calls"] if call["op"] == "send"]


def _more_than_once(job: Job) -> str:
    advice = "A rank of a chain sends each piece once, to its right neighbour, in the tensor's own dtype"
    return _too_much(job, LARGE_BYTES, "S", lambda by_rank: advice)


def _small_pieces(job: Job) -> str:
    large = [call for results in job.results for call in _sends([case for case in results if case["large"]])]
    largest = max((call["payload_bytes"] for call in large), default=0)
    if largest <= BYTES_LIMIT * LARGE_BYTES / PIECES:
        return ""
    return (
        f"your largest message is {largest / LARGE_BYTES:.2f} S, and the next rank waits until all of it has"
        f" come. With pieces of S/{PIECES} or less, a rank passes on one piece while the next one is on"
        " its way"
    )


@exercise(
    values="every rank has the root's tensor, whatever its size and dtype",
    messages=ONLY_MESSAGES,
    bytes=Demand(f"no rank sends more than {BYTES_LIMIT} times S", _more_than_once),
    pieces=Demand(f"no message is larger than S/{PIECES}", _small_pieces),
    passed_on="pieces are passed on while others are on their way",
)
def chain_broadcast(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, root)` gives every rank the root's tensor, in pieces that are passed on: at most S
    bytes from any rank, no message above S / 8.
    """
    for ranks, root in ((4, 0), (3, 1)):
        cases = [((10, 7), "float32"), ((LARGE,), "float32"), ((3,), "int64")]
        job, hoards = _trial_of_a_chain(judge, answer, [*cases, _any_size(judge)], ranks, root)
        right = _judge_values(judge, job, cases, f"the tensor of rank {root}, the root")
        judge.look(job, "messages", "bytes")
        if judge.look(job, "pieces"):
            why = (
                f"rank {hoards} keeps what it has received, and waits for more before it passes on the first"
                " pieces. So the pieces save no time. Pass on each piece before you wait for the next one"
            )
            judge.demand("passed_on", "" if hoards is None else why)
        if not right or hoards is not None:
            return


@exercise(
    values="every rank has the sum over all ranks",
    messages=ONLY_MESSAGES,
    steps="no rank sends more than 2 log2(n) messages",
    bytes=f"no rank sends more than {BYTES_LIMIT} times 2(n-1)/n S",
)
def halving_doubling_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor)` sums a tensor of n elements or more over n = 2, 4 or 8 ranks in place, with at most
    2 log2(n) messages and 2 r S bytes from every rank.
    """
    for ranks in (2, 4, 8):
        cases = [((10, 7), "float32"), ((LARGE,), "float32"), ((8,), "int64")]
        job = _trial(judge, answer, [*cases, ((33,), "bfloat16"), _any_size(judge)], ranks)
        right = _judge_values(judge, job, cases, "the sum over all ranks")
        if not right or not judge.look(job, "messages"):
            return
        steps = 2 * (ranks.bit_length() - 1)
        why = next((why for case in zip(*job.results) if (why := _too_many(case, steps))), "")
        judge.demand("steps", why, f"no rank sends more than 2 log2(n) = {steps} messages")
        limit = theory.collective_bytes("all_reduce", LARGE_BYTES, ranks)
        formula = f"2(n-1)/n S = {limit / LARGE_BYTES:.2f} S"
        said = f"no rank sends more than {BYTES_LIMIT} times {formula}"
        judge.demand("bytes", _too_much(job, limit, formula, _halving_advice), said)


def _too_many(case: Sequence[dict], steps: int) -> str:
    """`case`: what each rank tells of it."""
    ranks, counts = len(case), [len(_sends([results])) for results in case]
    if (most := max(counts)) <= steps:
        return ""
    return (
        f"rank {counts.index(most)} sends {_messages(most)}, and 2 log2({ranks}) = {steps} are enough: an"
        " exchange with one partner at each distance, on the way down and on the way back"
    )


def _halving_advice(by_rank: list[float]) -> str:
    if min(by_rank) < 0.9 * max(by_rank):
        return "The others send less, and wait for this rank"
    return (
        "After an exchange two partners need only half of the chunks each: the next message is half as long"
    )


def _any_size(judge: Judge) -> Case:
    """A case with another size in every try."""
    return (11 + judge.seed % 53,), "float64"


def _trial_of_a_chain(
    judge: Judge, answer: Callable, cases: Sequence[Case], ranks: int, root: int
) -> tuple[Job, int | None]:
    """A trial in which pieces are held back until those before them are passed on. If that takes for ever,
    twice, the rank that they are held back for is returned, with a job without gates.
    """
    for _ in range(2):
        with trial_folder() as signs:
            try:
                return _trial(judge, answer, cases, ranks, root, str(signs)), None
            except RankError:
                held = sorted(int(file.name.split("-")[1]) for file in signs.glob("held-*"))
                if not held:
                    raise
    job = _trial(judge, answer, cases, ranks, root)
    sends = {
        rank
        for rank, results in enumerate(job.results)
        if _sends([case for case in results if case["large"]])
    }
    # a star has no rank that passes on: the bytes tell what that costs
    return job, next((rank for rank in held if rank in sends), None)


def _trial(
    judge: Judge,
    answer: Callable,
    cases: Sequence[Case],
    ranks: int,
    root: int | None = None,
    signs: str = "",
    own_chunk: bool = False,
) -> Job:
    """Run the answer on every case, as one job. Each rank returns, case by case, what is wrong with its
    tensor ("" if nothing), and its calls.

    Every rank should get the sum over all ranks; with `root`, the root's tensor; with `own_chunk`, the answer
    is given the tensor's chunks, and the sum of chunk number `rank` is looked at. In the case of the smallest
    tensors rank 1 is late. With `signs`, a folder, a rank of a chain sends pieces of the large tensor only as
    long as its right neighbour passes on those that it has.
    """
    seed = judge.seed
    smallest = min(
        range(len(cases)),
        key=lambda number: (cases[number][1] != "int64", torch.Size(cases[number][0]).numel()),
    )

    def trial():
        import os
        import time

        on_rank.use_cpu()
        rank, size = dist.get_rank(), dist.get_world_size()

        def start(rank, number, shape, dtype):
            generator, limit = torch.Generator().manual_seed(seed + 100 * number + rank), LIMITS[dtype]
            numbers = torch.randint(-limit, limit, shape, generator=generator, dtype=torch.int64)
            return numbers.to(getattr(torch, dtype))

        def chunks_of(tensor):
            return [*tensor.view(-1).tensor_split(size)]

        def judged(tensor):
            return chunks_of(tensor)[rank] if own_chunk else tensor

        def problem(found, wanted, mine):
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                return "has another shape or dtype than before"
            if torch.equal(found, wanted):
                return ""
            if torch.equal(found, mine):
                return (
                    "is unchanged: write the result into the tensor itself, and `wait` for what comes before"
                    " you use it"
                )
            chunks = zip(found.flatten().tensor_split(size), wanted.flatten().tensor_split(size))
            right = [
                number for number, (has, want) in enumerate(chunks) if len(want) and torch.equal(has, want)
            ]
            found, wanted = found.double(), wanted.double()
            # first: a number that is rounded may be right by chance
            if not torch.isfinite(found).all() or torch.allclose(found, wanted, rtol=0.02, atol=0.0):
                return (
                    f"is {'only near it' if torch.isfinite(found).all() else 'inf or nan in places'}: send"
                    " and add in the tensor's own dtype, a smaller one rounds"
                )
            if right and not own_chunk:
                return f"is right in {len(right)} of {size} chunks only"
            return (
                "is the mean: do not divide" if torch.allclose(found * size, wanted) else "is something else"
            )

        class Gate:
            """Holds this rank's next piece back until the right neighbour has begun to pass on all but the
            last few of those that it was sent.
            """

            begun_bytes, neighbour = 0, (rank + 1) % size

            def __call__(self, call):
                if call["op"] != "send":
                    return
                before = self.begun_bytes * PIECES // LARGE_BYTES
                self.begun_bytes += call["payload_bytes"]
                for piece in range(before + 1, self.begun_bytes * PIECES // LARGE_BYTES + 1):
                    open(os.path.join(signs, f"passed-{rank}-{piece}"), "w").close()
                needed = os.path.join(signs, f"passed-{self.neighbour}-{before - AHEAD}")
                held = os.path.join(signs, f"held-{self.neighbour}")
                if before > AHEAD and (self.neighbour + 1) % size != root and not os.path.exists(needed):
                    open(held, "w").close()
                    if not on_rank.wait_until(lambda: os.path.exists(needed), GATE_S):
                        raise TimeoutError("the right neighbour passes nothing on")  # ends this trial
                    os.remove(held)

        # the ledger's warm-up and traced step: all cases count as timed ones, whose bytes it knows
        for _ in range(2):
            with measure.step():
                pass
        found = []
        for number, (shape, dtype) in enumerate(cases):
            everyone = [start(other, number, shape, dtype) for other in range(size)]
            wanted = sum(everyone) if root is None else everyone[root]
            tensor, large = everyone[rank].clone(), shape == (LARGE,)
            before = None
            if signs and large:
                before = Gate()
            elif number == smallest and rank == 1:
                before = on_rank.late("smallest")
            dist.barrier()
            with on_rank.Calls(before) as calls, measure.step():
                if own_chunk:
                    answer(chunks_of(tensor))
                else:
                    answer(tensor) if root is None else answer(tensor, root)
                seen = judged(tensor).clone()  # at once: who has not waited for it does not have it
            if number == smallest:
                on_rank.is_back("smallest")
            told = problem(seen, judged(wanted), judged(everyone[rank]))
            if told and not any(case["problem"] for case in found):
                deadline = time.monotonic() + A_WHILE_S
                while time.monotonic() < deadline and not torch.equal(judged(tensor), judged(wanted)):
                    time.sleep(0.01)
                pairs = enumerate(zip(chunks_of(tensor), chunks_of(wanted)))
                whole = [number for number, (has, want) in pairs if len(want) and torch.equal(has, want)]
                if torch.equal(judged(tensor), judged(wanted)):
                    told = (
                        "is that only a while after your function has returned: `wait` for what irecv returns"
                    )
                elif own_chunk and whole:
                    told = (
                        f"is not: chunk {whole[0]} is complete there. Let each chunk set out from another"
                        " rank"
                    )
            found.append(
                {
                    "problem": told,
                    "shape": shape,
                    "dtype": dtype,
                    "calls": calls.rows,
                    "large": large,
                    "bytes": wanted.nbytes,
                }
            )
        return found

    try:
        return judge.run(trial, ranks=ranks)
    except RankError as error:
        if "timeout=" not in error.headline or not any(
            "waits in" in report.state for report in error.reports
        ):
            raise
        raise RankError(
            f"{error.headline} Do you `wait` for each isend and irecv? A message that nobody waits for can be"
            " lost.",
            error.reports,
            error.label,
        ) from None


def _judge_values(judge: Judge, job: Job, cases: Sequence[Case], wanted: str) -> bool:
    """Demand that nothing is wrong on any rank in any case; one line, which names the first problem, or the
    sizes of `cases`.
    """
    ranks, why = f"{job.ranks} ranks", ""
    *smaller, largest = sorted({torch.Size(shape).numel() for shape, _ in cases})
    judge.case = f"{ranks}, tensors of {', '.join(map(str, smaller))} and {largest} elements"
    for case in zip(*job.results):
        wrong = [(rank, found["problem"]) for rank, found in enumerate(case) if found["problem"]]
        if wrong:
            judge.case = f"{ranks}, a tensor of shape {case[0]['shape']} and dtype {case[0]['dtype']}"
            why = "on rank {} it must be {wanted}, and it {}".format(*wrong[0], wanted=wanted)
            break
    met = judge.demand("values", why, f"every rank has {wanted}")
    judge.case = ranks
    return met


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
