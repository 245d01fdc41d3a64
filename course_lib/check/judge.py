"""The one way in which all checks run and judge."""

import functools
import inspect
import secrets
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from course_lib.check import on_rank
from course_lib.jobs import run_quietly
from course_lib.ranks import places
from course_lib.ranks.diagnose import ranks_in_words
from course_lib.ranks.errors import RankError
from course_lib.record import Job

__all__ = ["Judge", "Verdict", "exercise"]

TIMEOUT_S = 60.0  # of a job; long, for how busy the machine is says nothing of an answer
CALL_S = 40.0  # all calls of `Judge.call` together; long, because the machine may be busy
SHOWN_OUTPUT = 2_000  # characters of what an answer printed


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        exercise: its name.
        passed: whether every demand was met.
        untouched: whether the stub was still there.
        lines: one line per demand, or the one calm line.
    """

    exercise: str
    passed: bool
    untouched: bool
    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        if self.untouched:
            return self.lines[0]
        head = "solved" if self.passed else "not yet"
        return "\n".join((f"{self.exercise}: {head}", *(f"  {line}" for line in self.lines)))


class Judge:
    """Collects what one answer is asked for.

    Attributes:
        exercise: its name.
        seed: drawn anew in every try. Cases are made from it, so that no answer can know them; what is said
            of an answer that passes does not depend on it.
    """

    def __init__(self, exercise: str):
        self.exercise, self.seed, self._lines, self._passed = exercise, secrets.randbelow(2**31), [], True

    def demand(self, met: bool, demand: str, otherwise: str) -> bool:
        """Note one demand: `demand` says what was asked and met; `otherwise` says what was found instead, and
        helps.
        """
        self._lines.append(f"yes  {demand}" if met else f"no   {otherwise}")
        self._passed &= bool(met)
        return bool(met)

    def run(self, fn: Callable, *args, **options) -> Job:
        """Run a job as `course_lib.run` does, without its line. If it fails, the answer is refused with the
        reason.
        """
        try:
            return run_quietly(fn, *args, **{"timeout": TIMEOUT_S} | options)
        except RankError as error:
            raise _without_the_check(error) from None
        # it cannot be sent, or the machine cannot hold it: the words say it all
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            raise _Told(str(error)) from None

    def call(self, fn: Callable, cases: Sequence[tuple], timeout: float = CALL_S) -> list:
        """What `fn(*case)` returns, case by case, for answers that need no ranks.

        They run in a process of their own: one that never ends, or that calls sys.exit, is told and leaves
        the check in peace. Each call gets copies.
        """

        def each(fn, cases):
            return [fn(*case) for case in cases]

        each.__name__ = "your function"
        try:
            job = self.run(each, fn, list(cases), ranks=1, timeout=timeout)
        except RankError as error:
            (report,) = error.reports
            if report.state == "raised NotImplementedError":
                raise NotImplementedError from None
            late = "timeout=" in error.headline
            raise _Told(
                (
                    f"your function had not finished after {timeout:g} s"
                    if late
                    else f"your function {report.state}"
                ),
                report.place,
                report.line,
            ) from None
        print(job.output[0][-SHOWN_OUTPUT:], end="")
        return job.results[0]

    def verdict(self) -> Verdict:
        return Verdict(self.exercise, self._passed and bool(self._lines), False, tuple(self._lines))


def _without_the_check(error: RankError) -> RankError:
    """Ranks that are done with the answer may wait in a call of the check's own. That is no mistake of
    theirs: told is who is done, and who still waits.
    """
    waiting = [report for report in error.reports if report.state.startswith("waits in")]
    inside, done = (
        {report.rank for report in waiting if bool(report.place) is within} for within in (True, False)
    )
    if not inside or not done:
        return error
    headline = (
        f"{error.label} cannot go on, and was stopped. On {ranks_in_words(done)} it is done, and"
        f" {ranks_in_words(inside)} still wait{'s' * (len(inside) == 1)} in it. A recv needs a send, and a"
        " collective needs every rank of its group."
    )
    return RankError(
        headline,
        [replace(report, state="was done") if report.rank in done else report for report in error.reports],
        error.label,
    )


class _Told(Exception):
    """Why an answer failed, in words, with the learner's own line below."""

    def __init__(self, text: str, place: str = "", line: str = ""):
        super().__init__(
            text + (f"\n      {place}" if place else "") + (f":  {line}" if place and line else "")
        )


def _where(error: BaseException) -> _Told:
    """An error in this process, told with the line of the answer that raised it; or as the check's own, if no
    answer was at work.
    """
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frame = places.learners_frame(
        [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    )
    if frame:
        return _Told(f"your code raised {what}", places.place_in_words(frame), places.line_of(frame))
    return _Told(f"the check cannot judge what your function returned, or was given ({what})")


def exercise(check: Callable) -> Callable[..., Verdict]:
    """Make a check of a function `check(judge, answer, ...)`: what it demands of the judge becomes the
    verdict.
    """
    name = check.__name__.replace("_", " ")
    wanted = len(inspect.signature(check).parameters) - 1

    @functools.wraps(check)
    def checked(*answers) -> Verdict:
        judge = Judge(name)
        if len(answers) != wanted or not all(map(callable, answers)):
            functions = "your function" if wanted == 1 else f"your {wanted} functions"
            judge.demand(
                False,
                "",
                f"check.{check.__name__} takes {functions} by name, without brackets, and was given"
                f" {_shown(answers)}",
            )
            return judge.verdict()
        try:
            check(judge, *answers)
        except RankError as error:
            if any(report.state == "raised NotImplementedError" for report in error.reports):
                return _untouched(name)
            judge.demand(False, "", str(error))
        except _Told as told:
            judge.demand(False, "", str(told))
        # in this process: of an answer that is called here, or of the check, over a value that it did not
        # expect
        except (Exception, SystemExit) as error:
            # torch's own have a message: a module without forward, say
            if isinstance(error, NotImplementedError) and not error.args:
                return _untouched(name)
            judge.demand(False, "", str(_where(error)))
        return judge.verdict()

    return checked


def _untouched(name: str) -> Verdict:
    return Verdict(
        name,
        False,
        True,
        (f"{name}: not attempted yet. Replace the line `raise NotImplementedError` with your answer.",),
    )


def _shown(answers: tuple) -> str:
    return (
        ", ".join(
            getattr(one, "__name__", "a function") if callable(one) else on_rank.short(repr(one))
            for one in answers
        )
        or "nothing"
    )
