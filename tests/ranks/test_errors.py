"""How a failed job looks."""

import re
import traceback

import pytest
from themes import LEGIBLE, THEMES, colour, contrast, seen

from course_lib.jobs import run
from course_lib.ranks import errors, where, worker
from course_lib.ranks.errors import RankError, RankReport
from course_lib.ranks.launch import RankState

RED, BOLD_RED = "#e75c58", "#b22b31"  # JupyterLab's own, in every theme


def a_failed_job():
    reports = [
        RankReport(0, "stopped because rank 1 failed", "Cell In[1], line 3, in train", "dist.barrier()"),
        RankReport(1, "raised ValueError: boom", "Cell In[1], line 2, in train", "raise ValueError", True),
    ]
    return RankError("train failed on rank 1.", reports, "train")


def pieces(text):
    """(text, foreground, background, bold) of a text with ANSI codes; None for the theme's own colour."""
    fore = back = None
    bold = False
    for codes, piece in re.findall(r"(?:\x1b\[([\d;]*)m)?([^\x1b]*)", text):
        numbers = [int(number) for number in codes.split(";") if number]
        while numbers:
            code, *numbers = numbers
            if code == 0:
                fore, back, bold = None, None, False
            elif code == 1:
                bold = True
            elif code == 31:
                fore = BOLD_RED if bold else RED
            elif code in (38, 48):
                five, number, *numbers = numbers
                assert five == 5 and 16 <= number < 232
                number -= 16
                steps = [number // 36, number // 6 % 6, number % 6]
                rgb = "#" + bytes(55 + 40 * step if step else 0 for step in steps).hex()
                fore, back = (rgb, back) if code == 38 else (fore, rgb)
            else:
                raise AssertionError(f"no colour is known for {code}")
        yield piece, fore, back, bold


def worst(text, theme):
    """The least contrast of any letter in JupyterLab's panel of errors."""
    page = seen(colour(theme, "--jp-layout-color0"))
    panel = seen(colour(theme, "--jp-rendermime-error-background"), page)
    found = []
    for piece, fore, back, _ in pieces(text):
        ground = seen(back) if back else panel
        ink = fore or colour(theme, "--jp-content-font-color1")
        found += [contrast(seen(ink, ground), ground)] * bool(piece.strip())
    return min(found)


@pytest.mark.parametrize("theme", THEMES)
def test_an_error_can_be_read_in_every_theme(theme):
    assert worst("\n".join(a_failed_job()._render_traceback_()), theme) >= LEGIBLE
    with pytest.raises(ValueError) as caught:
        run(len, ranks=0)
    assert worst("\n".join(caught.value._render_traceback_()), theme) >= LEGIBLE


def test_red_letters_could_not_be_read_in_any_theme():
    """What this would find: why the panel has no red letters."""
    assert all(worst("\x1b[31mrank 1", theme) < LEGIBLE for theme in THEMES)
    assert worst("\x1b[1;31mrank 1", "light") >= LEGIBLE > worst("\x1b[1;31mrank 1", "dark")


def test_the_cause_is_what_one_sees_first():
    loud = [
        piece.strip(" :\n")
        for piece, fore, back, bold in pieces("\n".join(a_failed_job()._render_traceback_()))
        if bold and piece.strip()
    ]
    assert loud == ["RankError", "train failed on rank 1.", "rank 1", "raised ValueError: boom"]


def test_a_frame_without_a_line_is_told_without_one(monkeypatch):
    """Python has none for a frame that has just begun."""
    monkeypatch.setattr(traceback, "walk_stack", lambda frame: [(frame, None)])
    frames, *_ = where._look()
    assert [line for _, line, _ in frames] == [0] and errors._stack_in_words(frames)


def test_the_hint_after_a_cancelled_job_names_a_rank_that_was_still_at_work():
    at_work = {"frames": [(__file__, 1, "train")]}
    states = [
        RankState(0, phase="finished", where=at_work, stack='File "x.py", line 1 in train'),
        RankState(1, phase="running", where={"frames": [(worker.__file__, 1, "main")]}),  # not the learner's
        RankState(2, phase="running", where=at_work),
        RankState(3, phase="running", where=at_work),
    ]
    error = errors.explain(states, [""] * 4, "train", 60, interrupted=True).cancelled()
    assert error.reports[0].state == "had finished" and error.reports[0].traceback == ""
    assert error.reports[1].place == "" and error.reports[1].traceback
    assert error._render_traceback_()[-1].endswith("print(last_error().reports[2].traceback)")
