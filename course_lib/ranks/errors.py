"""RankError: a failed job, told rank by rank."""

import contextlib
import copy
import html
import re
import signal
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from course_lib.ranks import diagnose, places
from course_lib.ranks.launch import RankState
from course_lib.roles import begun, ranks_in_words

if TYPE_CHECKING:  # a rank that imports this file needs no pandas
    from course_lib.record.attempts import Attempt

__all__ = [
    "RankError",
    "RankInterrupt",
    "RankWarning",
    "RankReport",
    "explain",
    "last_error",
    "remember",
    "told_in_one_line",
    "error_in_words",
    "ended_in_words",
    "frames_of_dump",
]

_CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (closed|timeout)|timed out", re.IGNORECASE
)
_CELL = re.compile(r"Cell In\[\d+\]")
MESSAGE_LIMIT = 1000  # of an exception's message, what is shown; the traceback has all of it
# No red can be read on the panels of both a light and a dark theme: bold is in the theme's own ink, and a
# badge (white on dark red, of 256 colours) brings its own ground.
_BOLD, _BADGE, _PLAIN = "\x1b[1m", "\x1b[1;38;5;231;48;5;124m", "\x1b[0m"


@dataclass(frozen=True)
class RankReport:
    """How one rank stood when its job failed.

    Attributes:
        rank: its number.
        state: one clause, such as "raised ValueError: boom".
        place: file or cell, line and function of the learner's own code; empty if it was nowhere in it.
        line: that line of code.
        cause: whether this rank is why the job failed.
        error_type: name of the exception's type, if it raised.
        error_message: what the exception says.
        traceback: everything, library frames included.
        output: what the rank had printed.
        role: the name of its function, where each rank has one of its own.
        host: the number of its host, where several are linked.
    """

    rank: int
    state: str
    place: str = ""
    line: str = ""
    cause: bool = False
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    output: str = ""
    role: str = ""
    host: int | None = None

    @property
    def name(self) -> str:
        """ "rank 0", with a role "rank 0, serve", on linked hosts "rank 0, serve, host 0"."""
        place = "" if self.host is None else f", host {self.host}"
        return f"rank {self.rank}" + f", {self.role}" * bool(self.role) + place


class _Told(BaseException):
    """What RankError and RankInterrupt share: a headline, one report per rank, and a line for each attempt
    that failed, as text, panel and HTML.
    """

    def __init__(
        self, headline: str, reports: list[RankReport], label: str, attempts: "tuple[Attempt, ...]" = ()
    ):
        self.headline, self.reports, self.label, self.attempts = headline, reports, label, attempts
        # without its number: the same text in every run
        super().__init__(_CELL.sub("cell", "\n".join(self._lines())))

    def __reduce__(self):
        return type(self), (self.headline, self.reports, self.label, self.attempts)

    def after(self, words: str, attempts: "tuple[Attempt, ...]"):
        """The same error of a job that may start again: `words` follow the headline."""
        return type(self)(f"{self.headline} {words}", self.reports, self.label, attempts)

    def _ordered(self) -> list[RankReport]:
        return sorted(self.reports, key=lambda report: (not report.cause, report.rank))

    def _lines(self, strong: str = "", badge: str = "", plain: str = "") -> list[str]:
        lines = [f"{strong}{self.headline}{plain}"]
        for report in self._ordered():
            # a message of several lines stays in its place
            state = "\n      ".join(line for line in report.state.splitlines() if line.strip())
            rank = f"{report.name}:"
            if report.cause:
                rank, state = f"{badge}{rank}{plain}", f"{strong}{state}{plain}"
            lines.append(f"  {rank} {state}")
            if report.place:
                lines.append(f"      {report.place}" + (f":  {report.line}" if report.line else ""))
        return lines + [f"  {attempt}" for attempt in self.attempts]

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a stack through this library."""
        lines = self._lines(_BOLD, _BADGE, _PLAIN)
        lines[0] = f"{_BADGE}{type(self).__name__}{_PLAIN}: {lines[0]}"
        for report in self._ordered():
            if report.cause and report.output.strip():
                lines += [
                    f"  last output of {report.name}:",
                    *(f"      {line}" for line in report.output.strip().splitlines()[-8:]),
                ]
        # a cause, or else a rank that was still at work in the learner's own code
        told = [report for report in self._ordered() if report.traceback]
        if told:
            rank = min(told, key=lambda report: (not report.cause, not report.place)).rank
            lines.append(
                "  everything: from course_lib import last_error;"
                f" print(last_error().reports[{rank}].traceback)"
            )
        return lines

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr style='vertical-align: top{'; font-weight: bold' if r.cause else ''}'><td>"
            f"{html.escape(r.name)}</td><td style='text-align: left; white-space:"
            f" pre-wrap'>{html.escape(r.state)}</td><td style='text-align:"
            f" left'>{html.escape(r.place)}<br><code>{html.escape(r.line)}</code></td></tr>"
            for r in self._ordered()
        )
        tried = "".join(f"<div>{html.escape(str(attempt))}</div>" for attempt in self.attempts)
        return (
            f"<b>{html.escape(self.headline)}</b><table><tr><th></th><th>state</th><th>where in your"
            f" code</th></tr>{rows}</table>{tried}"
        )


class RankError(_Told, RuntimeError):
    """A job that failed: what happened in one sentence, then rank by rank.

    Attributes:
        headline: the sentence.
        reports: list of RankReport, in rank order.
        label: name of the job.
        attempts: of a job that may start again (`run(..., restarts=2)`) the attempts that failed, in order;
            `reports` are of the last one.
    """


class RankInterrupt(_Told, KeyboardInterrupt):
    """A job that the learner interrupted or cancelled, with the place where each rank was."""

    def cancelled(self) -> "RankInterrupt":
        """The same of one that was ended by its button."""
        headline = f"{self.label} was cancelled: its ranks were stopped, and nothing of them is left."
        return RankInterrupt(headline, self.reports, self.label, self.attempts)


_last: list[RankError | RankInterrupt] = []  # at most one


def last_error() -> RankError | RankInterrupt | None:
    """The error of the last job that failed or was interrupted, whatever has gone wrong since; None if every
    job went well.
    """
    return _last[0] if _last else None


def remember(error: RankError | RankInterrupt) -> RankError | RankInterrupt:
    """Keep a copy for `last_error`: the error itself will hold on to the frames that it passes through, and
    to all their variables. (A refusal by the machine has no reports, and is not kept.)
    """
    if isinstance(error, _Told):
        _last[:] = [copy.copy(error)]
    return error


@contextlib.contextmanager
def told_in_one_line():
    """IPython shows an error that leaves this block as its sentence, without a stack through the library."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if not isinstance(error, _Told):  # which has a panel of its own
            line = f"{_BADGE}{type(error).__name__}{_PLAIN}: {error}"
            error._render_traceback_ = lambda: [line]
        raise


class RankWarning(UserWarning):
    """Something about a job that no library calls an error, and that a learner should look at."""


def explain(
    states: list[RankState],
    outputs: list[str],
    label: str,
    timeout: float,
    *,
    timed_out: bool = False,
    stuck: str | None = None,
    outside: str | None = None,
    interrupted: bool = False,
) -> RankError | RankInterrupt:
    """Turn what is known of a stopped job's ranks into an error.

    Args:
        timeout: the job's deadline in seconds.
        timed_out: whether that is why it was stopped.
        stuck: a sentence on why it cannot go on, if that is why: of `diagnose.deadlock`, say.
        outside: a sentence on what has ended it from outside: a cluster, say.
        interrupted: whether the learner did it.
    """
    states = [_without_what_is_over(state) for state in states]
    causes = set() if interrupted or timed_out or stuck or outside else _causes(states)
    disagree = diagnose.disagreement(states, pending_only=True)
    if interrupted:
        headline, because = f"{label} was interrupted.", "was stopped"
    elif timed_out:
        why = " ".join(
            filter(None, (diagnose.cut_off(states), diagnose.deadlock(states) or _who_waits(states)))
        )
        headline = f"{label} was stopped: it had not finished after timeout={timeout:g} s. {why}"
        because = "was running"
    elif outside:
        headline, because = f"{label} was stopped from outside. {outside}", "was running"
    elif stuck:
        headline, because = f"{label} cannot go on, and was stopped. {stuck}", "was running"
    else:
        failed = ranks_in_words(causes, states[0].known_as)
        lost = diagnose.hosts_gone(states, causes) or diagnose.cut_off(states, switched_off=True)
        headline = " ".join([f"{label} failed on {failed}.", *filter(None, (lost, disagree))])
        because = f"stopped because {failed} failed"
    reports = [
        _report(state, output, state.rank in causes, because) for state, output in zip(states, outputs)
    ]
    kind = RankInterrupt if interrupted else RankError
    return kind(headline.strip(), reports, label)


def _without_what_is_over(state: RankState) -> RankState:
    """A rank may have told where it was, and go on until it cannot answer any more. Then its threads have
    been dumped; if they are elsewhere by now, what it told is over.
    """
    now = places.learners_frame(frames_of_dump(state.stack))
    told = places.learners_frame(state.where["frames"]) if state.where else None
    return replace(state, where={}, collectives=[]) if told and now and told != now else state


def _report(state: RankState, output: str, cause: bool, because: str) -> RankReport:
    if state.error:
        frames = state.error["frames"]
    elif state.where:
        frames = state.where["frames"]
    else:
        frames = frames_of_dump(state.stack)
    frame = places.learners_frame(frames)
    place, line = (places.place_in_words(frame), places.line_of(frame)) if frame else ("", "")
    waits = diagnose.waits_in_words(state)
    if cause and state.error:
        told = f"raised {error_in_words(state.error)}"
    elif cause:
        told = ended_in_words(state) + (f" in {waits}" if waits and state.status == -signal.SIGABRT else "")
    elif state.phase == "finished":  # whatever it has told of itself is over
        told, place, line, frames, state = "had finished", "", "", [], replace(state, stack="")
    elif state.error and because == "was running":  # what ended the job has reached it first
        told = f"raised {error_in_words(state.error)}"
    elif state.silent:
        told = state.silent
    elif waits:
        told = (
            f"{because}; it was waiting in {waits}" if because.startswith("stopped") else f"waits in {waits}"
        )
    elif state.returned:
        told = f"{because}; its function had returned, and its result was on its way"
    else:
        told = because + "".join(
            f"; {diagnose.call_in_words(call)} was under way" for call in diagnose.under_way(state)[:1]
        )
    if state.step is not None and because == "was stopped":
        steps = state.step + 1 + (state.begun_at or 0)
        told += f", after {steps}" + f" of {state.total}" * bool(state.total) + f" step{'s' * (steps != 1)}"
    if state.thread_error:
        told += f"; one of its threads had raised {error_in_words(state.thread_error)}"
    trace = state.error["text"] if state.error else _stack_in_words(frames) if frames else state.stack
    kind, message = (state.error["type"], state.error["message"]) if state.error else ("", "")
    role = state.roles[state.rank] if state.roles else ""
    return RankReport(state.rank, told, place, line, cause, kind, message, trace, output, role, state.host)


def error_in_words(error: dict) -> str:
    """ "ValueError: boom"; of a very long message only the beginning."""
    message = error["message"].strip()
    if len(message) > MESSAGE_LIMIT:
        message = f"{message[:MESSAGE_LIMIT]}... ({len(message):,} characters)"
    return error["type"] + (f": {message}" if message else "")


def _causes(states: list[RankState]) -> set[int]:
    """Ranks that failed by themselves. Errors of a broken connection count only where no other rank explains
    them.
    """
    died = {s.rank for s in states if s.phase not in ("failed", "finished") and s.status is not None}
    raised = {s.rank for s in states if s.error}
    own = {s.rank for s in states if s.error and not _CONNECTION.search(s.error["message"])}
    return died | own or raised


def _who_waits(states: list[RankState]) -> str:
    """One sentence on who waits in what, and who is elsewhere."""
    waiting = {
        s.rank: diagnose.waits_in_words(s)
        for s in states
        if s.phase != "finished" and diagnose.waits_in_words(s)
    }
    others = [s.rank for s in states if s.rank not in waiting]
    if not waiting or not others:
        return ""
    together = defaultdict(list)
    for rank, call in waiting.items():
        together[call.split(" of ")[0]].append(rank)
    told = [
        f"{ranks_in_words(ranks, states[0].known_as)} wait{'s' if len(ranks) == 1 else ''} in {call}"
        for call, ranks in together.items()
    ]
    told += [f"{ranks_in_words(others, states[0].known_as)} {'is' if len(others) == 1 else 'are'} not there"]
    return f"{begun('; '.join(told))}."


def ended_in_words(state: RankState) -> str:
    """How a rank's process ended, in a clause: "was killed (SIGKILL, ...); its peak memory was ..."."""
    if state.status is not None and state.status < 0:
        name = signal.Signals(-state.status).name
        if name == "SIGABRT":
            return "was ended by a library's abort (SIGABRT)"
        often = ", often because the machine is out of memory" if name == "SIGKILL" else ""
        grown_bytes = max(state.peak_bytes - state.start_bytes, 0)
        grown = f"{grown_bytes / 1e9:.1f} GB" if grown_bytes >= 50e6 else "less than 50 MB"
        return f"was killed ({name}{often}); its peak memory was {grown} above what it began with"
    return f"ended its process with exit code {state.status} before the function had returned"


def _stack_in_words(frames: list[tuple[str, int, str]]) -> str:
    return "\n".join(
        f'  File "{filename}", line {number}, in {name}\n    {places.line_of((filename, number, name))}'
        for filename, number, name in frames
    )


def frames_of_dump(stack: str, all_threads: bool = False) -> list[tuple[str, int, str]]:
    """The frames of the main thread (or of all) in a faulthandler dump, outermost first."""
    main = stack.split("Current thread")[-1] if "Current thread" in stack else stack
    found = re.findall(r'File "(.*?)", line (\d+) in (\S+)', stack if all_threads else main.split("\n\n")[0])
    return [(filename, int(number), function) for filename, number, function in reversed(found)]
