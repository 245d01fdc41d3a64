"""What is known of one wrong program, and how it is looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_lib.check import on_rank

__all__ = ["Case", "Finding", "WAITS", "DIFFERS", "COUNTED"]

# three questions; the first one that has an odd answer leads to the cause
WAITS, DIFFERS, COUNTED = "Who waits?", "What differs between ranks?", "What was counted?"


@dataclass(frozen=True)
class Finding:
    """What came of one program.

    Attributes:
        stopped: the job's own words, if it did not end; "" if it did.
        error: how far its result is from the right one, relative; nan if there is none.
    """

    stopped: str
    error: float

    @property
    def right(self) -> bool:
        return not self.stopped and self.error < 1e-9

    def __str__(self) -> str:
        return self.stopped or ("right" if self.right else f"ends, and is wrong by {self.error:.2g}")


@dataclass(frozen=True)
class Case:
    """A family of wrong programs, with one that is written anew and small.

    Attributes:
        name: a short one, in words.
        program: what people write.
        symptom: what one sees.
        cause: what really happens.
        remedy: what to write.
        question: which of the three finds it.
        tool: what shows it.
        chapter: where the book has more of it, by name.
        wrong: programs with this fault; each runs on every rank, and returns what it is for.
        stops: of each of them, words of the error with which it stops; "" of one that ends, and is wrong.
        mended: the same without the fault.
        right: what rank r of the program must return, by one process: right(r).
        ranks: on how many it is run.
        within: how near a measured result must come, relative.
        seen: where, in public.
    """

    name: str
    program: str
    symptom: str
    cause: str
    remedy: str
    question: str
    tool: str
    chapter: str
    wrong: tuple[Callable, ...]
    stops: tuple[str, ...]
    mended: Callable
    right: Callable[[int], Any]
    ranks: int = 2
    within: float = 1e-9
    seen: str = "published tutorials"

    def look_at(self, program: Callable) -> Finding:
        """Run one of its programs on real ranks, and compare what every rank returns with what is right."""
        # here: a rank that runs a program imports this file, and needs none of it
        from course_lib.jobs import run_quietly
        from course_lib.ranks.errors import RankError
        from course_lib.record import parity

        try:
            job = run_quietly(_on_cpu, program, ranks=self.ranks, label=program.__name__)
        except RankError as error:
            causes = [report.state for report in error.reports if report.cause]
            return Finding(" ".join([error.headline, *causes]), float("nan"))
        error = parity(job, [self.right(rank) for rank in range(self.ranks)])
        return Finding("", 0.0 if error < self.within else error)


def _on_cpu(program: Callable) -> Any:
    on_rank.use_cpu()
    return program()
