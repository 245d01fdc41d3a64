"""What an exercise asks for, as data: demands, and the kinds of them that many exercises share.

    @exercise(
        output=values("the output is right", "the output is not right (relative error {error:.2g})."),
        calls=collectives("one collective", lambda ops: ops.total() == 1, "you used {used}. One is enough"),
        bytes=sends("2(n-1)/n S", lambda job: ..., "rank {rank} sends {times:.2f} times 2(n-1)/n S."),
        memory=holds("P / n", "params", lambda job: ..., "rank {rank} holds {times:.2f} times P / n."),
        waits=fact("it waits for all", "waited", "rank {rank} did not wait."),
        order="rank 0 sends first",             # words alone: the check judges it itself
    )
    def my_exercise(judge, answer): ...

Each demand has a key, by which a class can count it, and words, which a learner can read before the first
try.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from course_lib.check import on_rank
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.record import Job, calls, held, sent

__all__ = [
    "Demand",
    "values",
    "it_is",
    "fact",
    "largest",
    "at_most",
    "holds",
    "collectives",
    "used",
    "sends",
]

ERROR_LIMIT = 1e-9  # relative, in float64: rounding stays a thousand times below it, and no mistake does
BYTES_LIMIT = 1.02  # times what the textbook algorithm sends
LEAST = 0.5  # times what must travel; a right answer sends all of it, one that uses files nothing


@dataclass(frozen=True)
class Demand:
    """One thing that an exercise asks for.

    Attributes:
        words: it, in words: of the list that is shown before the first try, and of a verdict that finds it
            met. "{n}" stands for the number of ranks.
        missed: what a finished trial says of it: "" if it is met, what was found instead and helps if not,
            None if this trial cannot tell. Without it, the check says so itself, by `Judge.demand`.
        after: keys of demands; this one is looked at only where these are met.
        quiet: whether a verdict that finds it met says nothing of it.
    """

    words: str
    missed: Callable[[Job], str | None] | None = None
    after: tuple[str, ...] = ()
    quiet: bool = False


def values(
    words: str,
    instead: str,
    error: str = "error",
    within: float = ERROR_LIMIT,
    advice: str | Callable[[Job, float], str] | None = None,
    after: tuple[str, ...] = (),
) -> Demand:
    """Every rank has the right numbers.

    Args:
        instead: what is said otherwise; {error} is the largest relative error.
        error: under which key each rank of the trial returns it.
        within: the error must be smaller.
        advice: what to look at, after that: words, or a function of the job and the error; if None, what the
            wrong numbers look like (`it_is`).
    """

    def missed(job: Job) -> str:
        worst = largest(job, error)
        if worst < within:
            return ""
        if callable(advice):
            hint = advice(job, worst)
        elif advice:
            hint = f" {advice}{on_rank.rounding(worst)}"
        else:
            hint = it_is(job) or on_rank.rounding(worst)
        return instead.format(error=worst) + hint

    return Demand(words, missed, after)


def it_is(job: Job, begin: str = "It is") -> str:
    """What the first rank with a guess says that its wrong numbers are, under "looks"."""
    return next((f" {begin} {found['looks']}." for found in job.results if found["looks"]), "")


def fact(
    words: str, name: str, instead: str = "{wrong}", after: tuple[str, ...] = (), quiet: bool = False
) -> Demand:
    """On every rank it is so.

    Args:
        name: under which each rank of the trial returns whether it is so, or what is wrong ("" if nothing).
        instead: what is said otherwise; {rank} is the first rank on which it is not so, {wrong} what it says
            is wrong.
    """

    def missed(job: Job) -> str:
        for rank, result in enumerate(job.results):
            found = result[name]
            if found if isinstance(found, str) else not found:
                return instead.format(rank=rank, wrong=found)
        return ""

    return Demand(words, missed, after, quiet)


def largest(job: Job, name: str):
    """The largest of what the ranks of a trial return under a name."""
    return max(found[name] for found in job.results)


def at_most(words: str, name: str, limit: float, instead: str, after: tuple[str, ...] = ()) -> Demand:
    """No rank returns more than `limit` under a name; else `instead` is said, where {most} is the most."""

    def missed(job: Job) -> str:
        most = largest(job, name)
        return "" if most <= limit else instead.format(most=most)

    return Demand(words, missed, after)


def holds(
    words: str,
    what: str,
    limit: Callable[[Job], float],
    instead: str,
    times: float = 1.0,
    advice: Callable[[Job], str] | None = None,
    after: tuple[str, ...] = (),
    quiet: bool = False,
) -> Demand:
    """No rank holds more bytes than so many times a limit.

    Args:
        what: under which name each rank of the trial returns its bytes; or, where none does, a category of
            `record.held`.
        limit: in bytes.
        instead: what is said otherwise: {rank} holds most, {held} bytes, {times} times the {limit} bytes; {n}
            stands for the number of ranks.
        times: so many times the limit are allowed.
        advice: what to look at, after that.
    """

    def missed(job: Job) -> str:
        by_rank = (
            [found[what] for found in job.results] if what in job.results[0] else held(job)[what].tolist()
        )
        most, enough = max(by_rank), limit(job)
        if most <= times * enough:
            return ""
        text = instead.format(
            rank=by_rank.index(most), held=most, times=most / enough, limit=enough, n=job.ranks
        )
        return text + (advice(job) if advice else "")

    return Demand(words, missed, after, quiet)


def collectives(
    words: str,
    right: Callable[[Counter], bool],
    instead: str,
    none: str = "",
    advice: dict[str, str] | None = None,
) -> Demand:
    """Every rank calls the right collectives in the traced step.

    Args:
        right: whether the calls of one rank are right, from how often it calls each op.
        instead: what is said otherwise; {count} and {used} are the calls of the first rank that is wrong,
            {ops} how often it calls each op.
        none: what is said if no rank calls any, if not that.
        advice: for an op that was used, what to look at.
    """

    def missed(job: Job) -> str:
        if none and job.comm.empty:
            return none
        called = calls(job, barriers=True)
        for rank in range(job.ranks):
            ops = +Counter(dict(called.loc[rank]))  # without those that it does not call
            if not right(ops):
                hints = [f" {hint}" for op, hint in (advice or {}).items() if op in called]
                return instead.format(count=ops.total(), used=used(ops), ops=ops) + "".join(hints)
        return ""

    return Demand(words, missed)


def used(ops: Counter | pd.Series) -> str:
    """How often each op was called, in words: "2 all_reduce, 1 broadcast"."""
    called = +Counter(dict(ops))  # without those that were not
    return ", ".join(f"{count} {op}" for op, count in called.most_common()) or "no collective"


def sends(
    formula: str,
    limit: Callable[[Job], float],
    instead: str,
    advice: Callable[[Job], str] | None = None,
    right: Callable[[Job], bool] | None = None,
) -> Demand:
    """No rank sends more in a step than a textbook algorithm, headers of messages apart.

    Args:
        formula: of what the algorithm sends, in words.
        limit: the same in bytes.
        instead: what is said otherwise: {rank} sends most, {sent} bytes, {times} times the {limit} bytes.
        advice: what to look at, after that.
        right: of an exercise where nobody can send less: whether the values are right. If they are, and the
            ranks have sent much less, the numbers came by another way.
    """

    def missed(job: Job) -> str:
        most, each = limit(job), sent_bytes(job)
        least = job.ranks * most
        if right and right(job) and (together := _together(job)) < LEAST * least:
            return (
                f"all ranks together send {together:,.0f} bytes, and {least:,.0f} must travel. What a rank"
                " needs from the others comes in messages of torch.distributed, not in files or memory that"
                " ranks share."
            )
        if (each - header_bytes(job)).max() <= BYTES_LIMIT * most:
            return ""
        rank, its = int(each.idxmax()), each.max()
        text = instead.format(rank=rank, sent=its, times=its / most, limit=most)
        return text + (advice(job) if advice else "")

    return Demand(f"no rank sends more than {BYTES_LIMIT} times {formula}", missed)


def _together(job: Job) -> float:
    """Bytes that all ranks send in a step: on the wire, or of what they call, whichever tells of more."""
    return max(sent_bytes(job).sum(), sent(job, layer="algorithm").sum())
