"""What is said of one answer to an exercise, and what the exercise asks for: records that print as text."""

from dataclasses import dataclass

from course_lib.check.rubric import Demand

__all__ = ["Note", "Verdict", "Demands"]


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
class Verdict:
    """The judgement of one answer.

    Attributes:
        exercise: the name of its check.
        passed: whether every demand was met.
        untouched: whether the stub was still there.
        notes: what was found, demand by demand and case by case; nothing, of a stub.
        lines: the same as text; of a stub the one calm line, and what is asked for.
    """

    exercise: str
    passed: bool
    untouched: bool
    notes: tuple[Note, ...]
    lines: tuple[str, ...]

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
        head = f"{_in_words(self.exercise)}: {'solved' if self.passed else 'not yet'}"
        return "\n  ".join((head, *self.lines))


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


def _in_words(exercise: str) -> str:
    return exercise.replace("_", " ")
