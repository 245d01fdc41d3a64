"""The one way in which all checks run and judge."""

import functools
import importlib
import inspect
import secrets
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from course_lib.arguments import one_of
from course_lib.check import on_rank
from course_lib.check.rubric import Demand
from course_lib.check.verdict import Demands, Note, Printed, Verdict
from course_lib.jobs import run_quietly
from course_lib.learner import record
from course_lib.ranks import places
from course_lib.ranks.errors import RankError, RankReport
from course_lib.ranks.progress import say
from course_lib.record import Job, printed
from course_lib.roles import ranks_in_words

__all__ = ["Judge", "exercise", "demands"]

RUNS = "runs"  # the key of what every exercise asks for: the answer runs, and returns what can be judged

TIMEOUT_S = 60.0  # of a job; long, for how busy the machine is says nothing of an answer
CALL_S = 40.0  # all calls of `Judge.call` together; long, because the machine may be busy
SHOWN_OUTPUT = 2_000  # characters of what an answer printed


def demands(exercise: str | Callable) -> Demands:
    """What an exercise asks for, to be read before the first try: a list of sentences.

    Args:
        exercise: the check, as in `check.demands(check.own_ddp)`, or its name, "own_ddp".
    """
    if isinstance(exercise, str):
        home = importlib.import_module("course_lib.check")
        one_of("exercise", exercise, home.EXERCISES)
        exercise = getattr(home, exercise)
    if not hasattr(exercise, "demands"):
        raise TypeError(
            f"demands of {_shown((exercise,))}: give it a check, such as check.average, or its name."
        )
    return Demands(exercise.__name__, exercise.demands)


class Judge:
    """Runs one answer, case by case, and notes which demands it meets.

    Attributes:
        exercise: the name of the check.
        demands: what is asked for, by key.
        seed: drawn anew in every try. Cases are made from it, so that no answer can know them; what is said
            of an answer that passes does not depend on it.
        case: words for the case that is being judged; they stand before all that is said of it.
        met: whether nothing is missed so far.
    """

    def __init__(self, exercise: str, demands: dict[str, Demand] | None = None):
        self.exercise, self.demands, self.case = exercise, demands or {}, ""
        self.seed = secrets.randbelow(2**31)
        self._notes: list[Note] = []
        self._printed: list[Printed] = []
        self._met_now: dict[str, bool] = {}  # by key, since the last job

    @property
    def met(self) -> bool:
        return all(note.met for note in self._notes)

    def demand(self, key: str, missed: str, said: str = "") -> bool:
        """Note one demand in the case at hand, and return whether it is met.

        Args:
            missed: what was found instead, and helps; "" if it is met.
            said: what a verdict says of it where it is met, if not the words of the demand.
        """
        demand, self._met_now[key] = self.demands[key], not missed
        text = missed or ("" if demand.quiet else said or demand.words)
        self._notes.append(Note(key, not missed, f"{self.case}: {text}" if self.case and text else text))
        return not missed

    def refuse(self, why: str) -> NoReturn:
        """End the check: an answer that cannot be judged any further."""
        raise Refused(f"{self.case}: {why}" if self.case else why)

    def tried(self, case: str, trial: Callable, *args, **options) -> bool:
        """Run a trial as one case, and make all demands that its job can tell of. Are they met?"""
        self.case = case
        return self.look(self.run(trial, *args, **options))

    def look(self, job: Job, *keys: str) -> bool:
        """Make of a finished trial the demands with these keys, or all that it can tell of. Are they met?"""
        met = True
        for key in keys or self.demands:
            demand = self.demands[key]
            told = demand.missed and all(self._met_now.get(other) for other in demand.after)
            missed = demand.missed(job) if told else None
            if missed is not None:
                met &= self.demand(key, missed, demand.words.format(n=job.ranks))
        return met

    def run(self, fn: Callable, *args, label: str = "your function", **options) -> Job:
        """Run a job as `course_lib.run` does, without its line.

        If it fails, the answer is refused with the reason, which names the function by its `label`. The same
        if a rank returns a dict with a "problem": there is nothing then that could be judged.
        """
        self._met_now = {}
        try:
            job = self._carry_out(fn, args, {"label": label} | options)
        except RankError as error:
            self._keep([report.output for report in error.reports])
            raise _without_the_check(error) from None
        self._keep(job.output)
        for found in job.results:
            if isinstance(found, dict) and found.get("problem"):
                self.refuse(f"{found['problem']}.")
        return job

    def call(self, fn: Callable, cases: Sequence[tuple], timeout: float = CALL_S) -> list:
        """What `fn(*case)` returns, case by case, for answers that need no ranks.

        They run in a process of their own: one that never ends, or that calls sys.exit, is told and leaves
        the check in peace. Each call gets copies.
        """

        def each(fn, cases):
            return [fn(*case) for case in cases]

        options = {"ranks": 1, "timeout": timeout, "label": "your function"}
        try:
            job = self._carry_out(each, (fn, list(cases)), options)
        except RankError as error:
            (report,) = error.reports
            if _of_a_stub(report):
                raise NotImplementedError from None
            print(report.output[-SHOWN_OUTPUT:], end="")
            late = "timeout=" in error.headline
            state = f"had not finished after {timeout:g} s" if late else report.state
            raise Refused(f"your function {state}", report.place, report.line) from None
        print(job.output[0][-SHOWN_OUTPUT:], end="")
        return job.results[0]

    def _carry_out(self, fn: Callable, args: tuple, options: dict) -> Job:
        try:
            return run_quietly(fn, *args, **{"timeout": TIMEOUT_S} | options)
        except RankError:
            raise
        except (TypeError, ValueError, OSError) as error:
            # it cannot be sent, or the machine cannot hold it: the words say it all
            raise Refused(str(error)) from None
        except RuntimeError as error:
            why = str(error).rstrip(".")
            raise NotTried(f"{why}. This says nothing of your answer: run the cell again.") from None

    def _keep(self, outputs: Sequence[str]) -> None:
        """For the verdict: what an answer printed in the case at hand. A terminal shows it at once."""
        if rows := printed.rows(outputs):
            self._printed.append(Printed(self.case, tuple(rows)))
            say(outputs)

    def verdict(self, refused: str = "") -> Verdict:
        """The judgement so far; `refused`: why it ends here, if the answer could not be judged further."""
        notes = [*self._notes, Note(RUNS, False, refused)] if refused else self._notes
        lines = [f"{'yes ' if note.met else 'no  '} {note.text}" for note in notes if note.text]
        passed = bool(notes) and all(note.met for note in notes)
        return Verdict(self.exercise, passed, False, tuple(notes), tuple(lines), tuple(self._printed))

    def untouched(self) -> Verdict:
        """The calm line that a stub gets, and what is asked for."""
        return Verdict.of_stub(self.exercise, self.demands)


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


def _of_a_stub(report: RankReport) -> bool:
    """Whether it raised NotImplementedError, and said nothing."""
    return report.cause and report.error_type == "NotImplementedError" and not report.error_message


class Refused(Exception):
    """Why an answer failed, in words, with the learner's own line below."""

    def __init__(self, text: str, place: str = "", line: str = ""):
        super().__init__(
            text + (f"\n      {place}" if place else "") + (f":  {line}" if place and line else "")
        )


class NotTried(RuntimeError):
    """Why an answer could not be tried: what starts its ranks has failed."""


def _where(error: BaseException) -> Refused:
    """An error in this process, told with the line of the answer that raised it; or as the check's own, if no
    answer was at work.
    """
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frame = places.learners_frame(
        [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    )
    if frame:
        return Refused(f"your code raised {what}", places.place_in_words(frame), places.line_of(frame))
    return Refused(f"the check cannot judge what your function returned, or was given ({what})")


def exercise(**asked: Demand | str) -> Callable[[Callable], Callable[..., Verdict]]:
    """Make a check of a function `check(judge, answer, ...)`, which runs the answer and makes these demands.

    Args:
        asked: the demands, by keys that stay; words alone for one that the check judges itself.
    """
    asked = {key: Demand(one) if isinstance(one, str) else one for key, one in asked.items()}

    def make(check: Callable) -> Callable[..., Verdict]:
        wanted = len(inspect.signature(check).parameters) - 1

        @functools.wraps(check)
        def checked(*answers) -> Verdict:
            verdict = judged(*answers)
            if not verdict.untouched:
                missed = list(dict.fromkeys(note.key for note in verdict.notes if not note.met))
                record.keep("verdict", exercise=check.__name__, passed=verdict.passed, missed=missed)
            return verdict

        def judged(*answers) -> Verdict:
            judge = Judge(check.__name__, asked)
            if len(answers) != wanted or not all(map(callable, answers)):
                functions = "your function" if wanted == 1 else f"your {wanted} functions"
                return judge.verdict(
                    f"check.{check.__name__} takes {functions} by name, without brackets, and was given"
                    f" {_shown(answers)}"
                )
            try:
                check(judge, *answers)
            except RankError as error:
                if any(map(_of_a_stub, error.reports)):
                    return judge.untouched()
                return judge.verdict(str(error))
            except Refused as refused:
                return judge.verdict(str(refused))
            except NotTried:
                raise  # there is no verdict
            except (Exception, SystemExit) as error:
                # In this process: of an answer that is called here, or of the check, over a value that it did
                # not expect. (torch's own NotImplementedError has a message: a module without forward, say.)
                if isinstance(error, NotImplementedError) and not error.args:
                    return judge.untouched()
                return judge.verdict(str(_where(error)))
            return judge.verdict()

        checked.demands = asked
        return checked

    return make


def _shown(answers: tuple) -> str:
    return (
        ", ".join(
            getattr(one, "__name__", "a function") if callable(one) else on_rank.short(repr(one))
            for one in answers
        )
        or "nothing"
    )
