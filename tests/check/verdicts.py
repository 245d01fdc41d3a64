"""The tests of a check. A test module says `from verdicts import *`, and lists cases; each begins with a
check and the answer, or the list of answers, that it gets:

    RIGHT      (check, answers)
        accepted, all demands met, in the same words for all answers of a check (an only one is judged twice)
    UNTOUCHED  (check, answers)
        a stub: one calm line, and what is asked for
    WRONG      (check, answers, reasons, met)
        refused, with each of `reasons` (one or a list), by demands of the exercise; `met`: words of one that
        is met all the same, or nothing
    PATIENCE   {name: seconds}
        how long the check waits for what a wrong answer never does, where the reason does not depend on it
    HANGING    answers
        whose ranks wait for each other for ever; the check gets little patience
"""

import functools
import sys
from collections.abc import Callable, Sequence

from course_lib.check import judge
from course_lib.check.judge import RUNS

__all__ = [
    "pytest_generate_tests",
    "test_right_answers_are_accepted",
    "test_the_stub_gets_one_calm_line",
    "test_wrong_answers_are_refused_with_the_reason",
]

# of a whole job: its ranks must have started for the reason to be seen, on a busy machine too
LITTLE_PATIENCE_S = 12.0


def test_right_answers_are_accepted(check, answers, like):
    verdict = check(*answers) if like else judged(check, answers)
    assert verdict, repr(verdict)
    assert not verdict.untouched and all(line.startswith("yes ") for line in verdict.lines)
    assert {note.key for note in verdict.notes if note.met} == set(check.demands)
    assert not like or repr(verdict) == repr(judged(check, like)), (
        "a verdict that changes from run to run cannot be compared with a stored one"
    )


def test_the_stub_gets_one_calm_line(check, stubs):
    verdict = check(*stubs)
    assert verdict.untouched and not verdict and not verdict.notes
    calm, *asked = verdict.lines
    assert "not attempted yet" in calm and "\n" not in calm
    assert asked == [f"-  {sentence}" for sentence in judge.demands(check)] and 2 <= len(asked) <= 8
    assert repr(verdict) == "\n  ".join(verdict.lines)


def test_wrong_answers_are_refused_with_the_reason(check, answers, reasons, met, hangs, monkeypatch, request):
    for name, seconds in getattr(request.module, "PATIENCE", {}).items():
        monkeypatch.setattr(sys.modules[check.__module__], name, seconds)
    if hangs:
        monkeypatch.setattr(judge, "TIMEOUT_S", LITTLE_PATIENCE_S)
    verdict = judged(check, answers)
    assert not verdict and not verdict.untouched
    assert {note.key for note in verdict.notes} <= {RUNS, *check.demands}
    assert not all(note.met for note in verdict.notes)
    for reason in reasons:
        assert any(line.startswith("no ") and reason in line for line in verdict.lines), repr(verdict)
    assert not met or any(line.startswith("yes ") and met in line for line in verdict.lines), repr(verdict)


@functools.cache
def judged(check: Callable, answers: tuple):
    """One answer may stand in several cases, and is judged once."""
    return check(*answers)


def pytest_generate_tests(metafunc):
    """Make one test of each case in the module's lists."""
    module, names = metafunc.module, metafunc.fixturenames
    if "like" in names:
        right = [(check, _several(answers)) for check, answers in module.RIGHT]
        of = {check: [answers for its, answers in right if its is check] for check, _ in right}
        _make(
            metafunc,
            "check, answers, like",
            [
                (check, answers, of[check][0] if answers is not of[check][0] or len(of[check]) == 1 else None)
                for check, answers in right
            ],
        )
    elif "stubs" in names:
        _make(metafunc, "check, stubs", [(check, _several(answers)) for check, answers in module.UNTOUCHED])
    elif "met" in names:
        hanging = getattr(module, "HANGING", ())
        _make(
            metafunc,
            "check, answers, reasons, met, hangs",
            [
                (check, _several(answers), _several(reasons), *(met or ("",)), answers in hanging)
                for check, answers, reasons, *met in module.WRONG
            ],
        )


def _make(metafunc, names: str, cases: list[tuple]) -> None:
    metafunc.parametrize(
        names,
        cases,
        ids=[
            "-".join(getattr(part, "__name__", "answer") for part in (check, *answers))
            for check, answers, *_ in cases
        ],
    )


def _several(value) -> tuple:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
