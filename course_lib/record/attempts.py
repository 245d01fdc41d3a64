"""The attempts of a job that may start again, and what was lost in those that failed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

__all__ = ["Attempt", "steps_done_again", "lost_in_words", "read_attempts"]


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job.

    Attributes:
        number: 1 for the first. (TORCHELASTIC_RESTART_COUNT, which counts restarts, was one less.)
        ranks: on how many ranks it ran.
        reason: why it failed, in one line; "" if it did not.
        seconds: from its start to its end, wall clock.
        steps: how many steps of `measure.step` all its ranks have finished.
        begun_at: which step of the whole training its first one was, as `measure.step` was told (`number`);
            None if it was not.
        output: what each rank printed, in rank order.
        records: what its ranks had measured until then, in tables as the job's own (`Job.records`): a row of
            "steps" for each step that a rank has ended; the others once it has ended the traced one.
    """

    number: int
    ranks: int
    reason: str
    seconds: float
    steps: int
    begun_at: int | None
    output: list[str]
    records: dict[str, list[dict]] = field(default_factory=dict)

    def __str__(self) -> str:
        """In one line, without what differs from run to run."""
        done = f", {self.steps} step{'s' * (self.steps != 1)}" if self.steps else ""
        ranks = f"{self.ranks} rank{'s' * (self.ranks != 1)}"
        return f"attempt {self.number} ({ranks}{done}): {self.reason or 'all went well'}"


def steps_done_again(attempts: Sequence[Attempt]) -> int | None:
    """How many steps were done that had been done before; None if nobody has told which steps they were."""
    worked = [attempt for attempt in attempts if attempt.steps]
    if len(worked) < 2:
        return 0
    seen: set[int] = set()
    for attempt in worked:
        if attempt.begun_at is None:
            return None
        seen |= set(range(attempt.begun_at, attempt.begun_at + attempt.steps))
    return sum(attempt.steps for attempt in worked) - len(seen)


def lost_in_words(attempts: Sequence[Attempt]) -> str:
    """What failures have cost, such as "2 attempts, 3 of 23 steps were done again"; "" if nothing failed."""
    if len(attempts) < 2:
        return ""
    told, again = f"{len(attempts)} attempts", steps_done_again(attempts)
    if again is None:
        failed = sum(attempt.steps for attempt in attempts if attempt.reason)
        return f"{told}, {failed} step{'s' * (failed != 1)} in those that failed"
    if all_steps := sum(attempt.steps for attempt in attempts):
        told += f", {again or 'none'} of {all_steps} steps {'was' if again == 1 else 'were'} done again"
    return told


def read_attempts(rows: object) -> list[Attempt]:
    """Attempts from what JSON holds of them. Errors: TypeError or ValueError if it holds something else."""
    if not isinstance(rows, list):
        raise TypeError("they are no list")
    for row in rows:
        names = {its.name for its in fields(Attempt)}
        if not isinstance(row, dict) or set(row) | {"records"} != names:  # older files have none
            raise ValueError("one has other fields")
        counts = [row[name] for name in ("number", "ranks", "steps")] + [row["begun_at"] or 0, row["seconds"]]
        texts = [row["reason"], *row["output"]]
        if not all(isinstance(count, (int, float)) for count in counts):
            raise TypeError("one has something that is no number")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("one has something that is no text")
        if not isinstance(row.get("records", {}), dict):
            raise TypeError("one has records that are none")
    return [Attempt(**row) for row in rows]
