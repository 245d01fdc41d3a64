"""What is said of one answer to an exercise, and what the exercise asks for: records that print as text.

Where a person looks, a verdict is a panel: each demand with a sign and a colour, the first that is missed in
front, and below what the answer printed. As text, which is stored and compared, it is what it is everywhere.
"""

import html
from dataclasses import dataclass

from course_lib.check.rubric import Demand
from course_lib.frontend import is_seen
from course_lib.record import printed

__all__ = ["Note", "Printed", "Verdict", "Demands"]

TRIALS = 4  # of so many (or one more), what was printed is shown
# legible in JupyterLab's light and dark theme; elsewhere a colour between
GOOD, BAD = "var(--jp-success-color0, #2e8b3d)", "var(--jp-error-color1, #d84343)"


@dataclass(frozen=True)
class Note:
    """What is said of one demand in one case.

    Attributes:
        key: of the demand; with the name of the exercise it says which one for good, whatever its words.
        met: whether it is met.
        text: one line; empty where nothing is said.
    """

    key: str
    met: bool
    text: str


@dataclass(frozen=True)
class Printed:
    """The first lines that an answer printed on the ranks of one trial.

    Attributes:
        case: words for the trial; may be empty.
        rows: rank and line, in rank order.
    """

    case: str
    rows: tuple[tuple[int, str], ...]

    def fold(self, opened: bool) -> str:
        """As HTML, with one line to look at while it is closed."""
        title = "printed on the ranks" + f", {self.case}" * bool(self.case)
        return (
            f'<details{" open" * opened}><summary style="cursor: pointer">{html.escape(title)}</summary>'
            f"{printed.rows_html(self.rows)}</details>"
        )


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        exercise: the name of its check.
        passed: whether every demand was met.
        untouched: whether the stub was still there.
        notes: what was found, demand by demand and case by case; nothing, of a stub.
        lines: the same as text; of a stub the one calm line, and what is asked for.
        printed: what the answer printed, trial by trial, where it printed anything.
    """

    exercise: str
    passed: bool
    untouched: bool
    notes: tuple[Note, ...]
    lines: tuple[str, ...]
    printed: tuple[Printed, ...] = ()

    @classmethod
    def of_stub(cls, exercise: str, asked: dict[str, Demand]) -> "Verdict":
        """One calm line, and what is asked for."""
        calm = "not attempted yet. Replace the line `raise NotImplementedError` with your answer."
        lines = (f"{_in_words(exercise)}: {calm}", *Demands(exercise, asked).lines)
        return cls(exercise, False, True, (), lines)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        if self.untouched:
            return "\n  ".join(self.lines)
        return "\n  ".join((self._head, *self.lines))

    @property
    def _head(self) -> str:
        return f"{_in_words(self.exercise)}: {'solved' if self.passed else 'not yet'}"

    def _repr_html_(self) -> str | None:
        if not is_seen() or self.untouched:
            return None
        told = [note for note in self.notes if note.text]
        missed = next((note for note in told if not note.met), None)
        rest = "".join(f"<div>{_marked(note)}</div>" for note in told if note is not missed)
        first = ""
        if missed:
            style = f"border-left: 3px solid {BAD}; padding: 2px 0 2px 8px; margin: 4px 0; font-weight: bold"
            first = f'<div style="{style}">{_marked(missed)}</div>'
        head = f"<div><b>{_sign(self.passed)} {html.escape(self._head)}</b></div>"
        return f'<div style="{printed.CODE}">{head}{first}{rest}{self._printed_html()}</div>'

    def _printed_html(self) -> str:
        """A fold for each trial; open is the one of what is missed first, or that ended the check."""
        if not self.printed:
            return ""
        missed = next((note.text for note in self.notes if note.text and not note.met), "")
        of_missed = [trial for trial in self.printed if trial.case and missed.startswith(f"{trial.case}: ")]
        opened = None if self.passed else (of_missed or self.printed)[-1]
        shown = [trial for trial in self.printed[:TRIALS] if trial is not opened]
        folds = "".join(trial.fold(opened=False) for trial in shown)
        if opened:
            folds = opened.fold(opened=True) + folds
        left_out = len(self.printed) - len(shown) - bool(opened)
        return folds + f"<div>... and in {left_out} more trials</div>" * bool(left_out)


class Demands(list):
    """What an exercise asks for, one sentence per demand; it prints as a list."""

    def __init__(self, exercise: str, asked: dict[str, Demand]):
        self.exercise = exercise
        super().__init__(demand.words.format(n="n") for demand in asked.values())

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"-  {sentence}" for sentence in self)

    def __repr__(self) -> str:
        return "\n  ".join((f"{_in_words(self.exercise)} asks for:", *self.lines))


def _marked(note: Note) -> str:
    """A note with its sign; further lines of it (a place in the code) stay in their place."""
    return (
        f'<div style="display: flex; gap: 0.6em"><span>{_sign(note.met)}</span>'
        f'<span style="white-space: pre-wrap">{html.escape(note.text)}</span></div>'
    )


def _sign(good: bool) -> str:
    colour, sign, word = (GOOD, "✓", "yes") if good else (BAD, "✗", "no")
    return f'<span role="img" aria-label="{word}" style="color: {colour}; font-weight: bold">{sign}</span>'


def _in_words(exercise: str) -> str:
    return exercise.replace("_", " ")
