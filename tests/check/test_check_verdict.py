"""What a verdict looks like where a person looks, and what an answer printed."""

import re
import sys

import pytest
import torch.distributed as dist
from themes import LEGIBLE, THEMES, colour, contrast, seen

from course_lib import frontend
from course_lib.check import exercise, verdict
from course_lib.check.rubric import Demand
from course_lib.check.verdict import Note, Printed, Verdict

NOTES = (
    Note("a", True, "2 ranks: right <values>"),
    Note("b", False, "2 ranks: 4 messages\n      cell, line 3, in mine:  dist.send(x)"),
    Note("c", True, ""),
    Note("d", False, "3 ranks: wrong"),
)
LINES = ("yes  2 ranks: right <values>", f"no   {NOTES[1].text}", "no   3 ranks: wrong")


@pytest.fixture
def person(monkeypatch):
    monkeypatch.setattr(verdict, "is_seen", lambda: True)


def test_each_demand_has_a_sign_and_the_first_that_is_missed_stands_in_front(person):
    panel = Verdict("ping_pong", False, False, NOTES, LINES)._repr_html_()
    text = re.sub(r"<[^>]*>", "", panel.replace("</div>", "\n"))
    assert [line for line in text.splitlines() if line] == [
        "✗ ping pong: not yet",
        "✗2 ranks: 4 messages",
        "      cell, line 3, in mine:  dist.send(x)",
        "✓2 ranks: right &lt;values&gt;",
        "✗3 ranks: wrong",
    ]
    assert panel.count('aria-label="no"') == 3 and panel.count('aria-label="yes"') == 1
    assert panel.count("border-left") == 1
    solved = Verdict("ping_pong", True, False, NOTES[:1], LINES[:1])._repr_html_()
    assert "border-left" not in solved and "✗" not in solved and solved.count("✓") == 2


def test_as_text_it_is_the_same_everywhere_and_without_a_person_it_is_only_text(person, monkeypatch):
    whole = Verdict("ping_pong", False, False, NOTES, LINES, (Printed("2 ranks", ((0, "hello"),)),))
    assert repr(whole) == "\n  ".join(("ping pong: not yet", *LINES))
    monkeypatch.setattr(verdict, "is_seen", frontend.is_seen)
    assert whole._repr_html_() is None


def test_a_stub_stays_a_calm_line_of_text(person):
    stub = Verdict.of_stub("ping_pong", {"a": Demand("it is right")})
    assert stub._repr_html_() is None and "not attempted yet" in repr(stub)


@pytest.mark.parametrize("theme", THEMES)
def test_the_signs_can_be_read_in_every_theme(theme):
    page = seen(colour(theme, "--jp-layout-color0"))
    for value in (verdict.GOOD, verdict.BAD, verdict.printed.SOFT.split(": ", 1)[1]):
        name = re.match(r"var\((--[\w-]+)", value).group(1)
        assert contrast(seen(colour(theme, name), page), page) >= LEGIBLE, value


@exercise(right="right", alone="asked alone")
def loud(judge, answer):
    def trial(answer):
        return answer()

    for ranks in (1, 2):
        judge.case = f"{ranks} ranks"
        job = judge.run(trial, answer, ranks=ranks)
        judge.demand("right", "" if job.results == [*range(ranks)] else "wrong")
    judge.demand("alone", "" if judge.call(answer_alone, [(1,)]) == [1] else "wrong")


def answer_alone(number):
    return number


def speaks():
    print("I am", dist.get_rank())
    return dist.get_rank()


def speaks_and_fails():
    speaks()
    if dist.get_world_size() == 2:
        raise ValueError("boom")
    return 0


def silent():
    return dist.get_rank()


SAID = (
    Printed("1 ranks", ((0, "I am 0"),)),
    Printed("2 ranks", ((0, "I am 0"), (1, "I am 1"))),
)


def test_what_an_answer_prints_stands_in_the_verdict_also_when_it_raises(person):
    right, wrong, quiet = loud(speaks), loud(speaks_and_fails), loud(silent)
    assert right and right.printed == SAID and "printed" not in repr(right)
    assert not wrong and wrong.printed == SAID and "raised ValueError: boom" in repr(wrong)
    assert quiet and quiet.printed == () and "<details" not in quiet._repr_html_()
    folds = re.findall("<details( open)?><summary[^>]*>(.*?)</summary>", wrong._repr_html_())
    assert folds == [(" open", "printed on the ranks, 2 ranks"), ("", "printed on the ranks, 1 ranks")]
    assert right._repr_html_().count("<details>") == 2 and "<details open>" not in right._repr_html_()
    assert wrong._repr_html_().count("I am 0") == 2


def test_of_many_trials_the_first_few_are_shown(person):
    trials = tuple(Printed(f"case {number}", ((0, "x"),)) for number in range(9))
    panel = Verdict("ping_pong", True, False, (), (), trials)._repr_html_()
    assert "case 3" in panel and "case 4" not in panel and "... and in 5 more trials" in panel
    notes = (Note("a", False, "case 7: wrong"),)
    panel = Verdict("ping_pong", False, False, notes, (), trials)._repr_html_()
    assert panel.count("<details open>") == 1 and "... and in 4 more trials" in panel
    assert panel.index("ranks, case 7") < panel.index("ranks, case 0")


def raises_alone(number):
    print("before")
    raise ValueError(number)


@exercise(alone="asked alone")
def alone(judge, answer):
    judge.call(answer, [(7,)])


def test_an_answer_that_is_called_alone_has_printed_too_when_it_raises(capsys):
    refused = alone(raises_alone)
    assert not refused and "raised ValueError: 7" in repr(refused) and refused.printed == ()
    assert capsys.readouterr().out == "before\n"


def test_in_a_terminal_it_is_shown_as_the_trial_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert loud(speaks)
    assert "rank 0 | I am 0\nrank 0 | I am 0\nrank 1 | I am 1\n" in capsys.readouterr().err
