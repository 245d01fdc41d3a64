"""A small class, simulated at one real kernel, and what its teacher reads of it."""

import importlib
import runpy
from pathlib import Path

import pytest
from class_simulation import Play, damage, simulate

from course_lib.classroom.reading import read_class
from course_lib.classroom.tables import guesses, tries
from course_lib.learner.book import chapters

PLAYS = runpy.run_path(str(Path(__file__).resolve().parents[1] / "bench" / "bench_class.py"))["PLAYS"]
NAMES = ["ada", "ben", "cleo", "dora", "emil"]
PLAY = Play("start_here", {"numbers-in-the-list": ("3", "4", "5")})


def test_what_kernels_keep_in_desks_comes_to_the_teacher(tmp_path):
    folder = simulate(tmp_path, NAMES, (PLAY,), kernels=1, seed=3)
    table = guesses(read_class(folder)).set_index("learner")
    assert list(table.index) == NAMES and set(table["guess"]) > {"3"}
    assert set(table["measured"]) == {"3"}, "the chapter's own cell has measured it"
    assert [bool(right) for right in table["right"]] == [guess == "3" for guess in table["guess"]]
    for name in NAMES:  # the desk has the same, and nothing of the others
        own = (tmp_path / name / "desk" / "record.jsonl").read_text()
        assert (folder / f"{name}.jsonl").read_text().partition("\n")[2] == own
    damage(folder, *NAMES[2:])
    room = read_class(folder)
    assert list(room.learners) == NAMES[:3]
    assert (room.files_passed_over, room.lines_passed_over) == (2, 1) and tries(room).empty


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.chapter)
def test_the_class_of_the_bench_plays_what_the_book_has(play):
    (chapter,) = [one for one in chapters() if one.name == play.chapter]
    assert set(play.guesses) <= set(chapter.predictions) and set(play.answers) <= set(chapter.exercises)
    answers = importlib.import_module(f"answers_{play.chapter}")
    for exercise, wrong in play.answers.items():
        assert all(callable(getattr(answers, name)) for name in (exercise, *wrong))
