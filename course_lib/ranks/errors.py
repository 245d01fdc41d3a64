"""RankError: a failed job, told rank by rank."""
import linecache
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from course_lib.ranks.launch import RankState

_CONNECTION = re.compile(r"connection (closed|reset|refused)|broken pipe|socket (closed|timeout)|timed out", re.IGNORECASE)
_LIBRARY = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class RankReport:
    """How one rank stood when its job failed."""
    rank: int
    state: str                  # one clause: "raised ValueError: ...", "stopped because rank 1 failed"
    where: str = ""             # the learner's own line: 'cell 5, line 3, in train: loss.backward()'
    cause: bool = False         # whether this rank is why the job failed
    error_type: str = ""        # the name of the exception's type, if it raised
    traceback: str = ""         # the whole traceback, library frames included
    output: str = ""            # what the rank had printed


class RankError(RuntimeError):
    """A job that failed. `reports` has one RankReport per rank; `str(error)` tells the same as text.

    Attributes:
        reports: list of RankReport, in rank order.
        label: name of the job.
    """

    def __init__(self, headline: str, reports: list[RankReport], label: str):
        self.headline, self.reports, self.label = headline, reports, label
        super().__init__(self._text())

    def __reduce__(self):
        return RankError, (self.headline, self.reports, self.label)

    def _text(self) -> str:
        lines = [self.headline]
        for report in sorted(self.reports, key=lambda r: (not r.cause, r.rank)):
            lines.append(f"  rank {report.rank}: {report.state}")
            if report.where:
                lines.append(f"          {report.where}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a stack of this library."""
        lines = [f"RankError in {self.label}: {self._text()}"]
        for report in self.reports:
            if report.cause and report.output.strip():
                tail = report.output.strip().splitlines()[-10:]
                lines += [f"Last output of rank {report.rank}:", *(f"  {line}" for line in tail)]
        if any(report.cause and report.traceback for report in self.reports):
            lines.append("The whole traceback: import sys; print(sys.last_value.reports[r].traceback)")
        return lines


def explain(states: list[RankState], outputs: list[str], label: str, timeout: float | None) -> RankError:
    """Turn what is known of a failed job's ranks into a RankError. `timeout`: seconds, if the deadline is why it was stopped."""
    causes = _causes(states)
    if timeout is not None:
        headline = f"{label} was stopped: it had not finished after timeout={timeout:g} s."
    else:
        headline = f"{label} failed on {_ranks_in_words(causes)}."
    because = f"stopped because {_ranks_in_words(causes)} failed"
    reports = []
    for state, output in zip(states, outputs):
        cause = state.rank in causes
        where = trace = ""
        if state.error:
            where, trace = describe_place(state.error["frames"]), state.error["text"]
        elif state.stack:
            where, trace = describe_place(_frames_of_dump(state.stack)), state.stack
        if cause and state.error:
            told = f"raised {state.error['type']}: {state.error['message']}"
        elif cause:
            told = _ended_in_words(state)
        elif state.phase == "finished":
            told = "had finished"
        else:
            told = because if causes else "was still running"
        reports.append(RankReport(state.rank, told, where, cause, state.error["type"] if state.error else "", trace, output))
    return RankError(headline, reports, label)


def _causes(states: list[RankState]) -> set[int]:
    """Ranks that failed by themselves. Errors of a broken connection count only where no other rank explains them."""
    died = {s.rank for s in states if s.phase not in ("failed", "finished") and s.status is not None}
    raised = {s.rank for s in states if s.error}
    own = {s.rank for s in states if s.error and not _CONNECTION.search(s.error["message"])}
    return died | own or raised


def _ended_in_words(state: RankState) -> str:
    if state.status is not None and state.status < 0:
        name = signal.Signals(-state.status).name
        often = ", often because the machine is out of memory" if name == "SIGKILL" else ""
        return f"was killed ({name}{often}); its peak memory was {state.peak_bytes / 2**20:.0f} MiB"
    return f"ended by itself with exit code {state.status}, before the function had returned"


def _ranks_in_words(ranks: set[int]) -> str:
    names = [str(rank) for rank in sorted(ranks)]
    if len(names) < 2:
        return f"rank {''.join(names)}"
    return f"ranks {', '.join(names[:-1])} and {names[-1]}"


def describe_place(frames: list[tuple[str, int, str]]) -> str:
    """The innermost line that the learner wrote: 'Cell In[5], line 3, in train: loss.backward()'; frames outermost first."""
    own = [frame for frame in frames if _is_learners(frame[0])]
    if not own:
        return ""
    filename, number, function = own[-1]
    line = linecache.getline(filename, number).strip()
    return f"{_file_in_words(filename)}, line {number}, in {function}" + (f": {line}" if line else "")


def _is_learners(filename: str) -> bool:
    """Whether a file is neither this library, nor an installed one, nor Python's own."""
    if filename.startswith(("<frozen", "<string>")) or filename.startswith(_LIBRARY):
        return False
    return "site-packages" not in filename and not filename.startswith(str(Path(linecache.__file__).parent))


def _file_in_words(filename: str) -> str:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and (name := shell.compile.format_code_name(filename)):
        return " ".join(name)
    return Path(filename).name


def _frames_of_dump(stack: str) -> list[tuple[str, int, str]]:
    """The frames of the main thread in a faulthandler dump, outermost first."""
    main = stack.split("Current thread")[-1] if "Current thread" in stack else stack
    found = re.findall(r'File "(.*?)", line (\d+) in (\S+)', main.split("\n\n")[0])
    return [(filename, int(number), function) for filename, number, function in reversed(found)]
