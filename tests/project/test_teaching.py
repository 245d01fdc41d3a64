"""What teachers read names chapters, predictions and exercises that are there, and minutes that add up."""

import re
from pathlib import Path

import nbformat
import pytest

from course_lib.learner.book import chapters

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "teaching"
BOOK = {chapter.name: chapter for chapter in chapters()}


def source(name: str, kind: str) -> str:
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == kind)


def named(name: str) -> dict:
    """What the cells of the plan give a name."""
    found = {}
    exec(source("plan", "code"), found)
    return found[name]


@pytest.mark.parametrize("name", BOOK)
def test_a_chapter_says_its_minutes_and_what_its_predictions_ask(name):
    assert BOOK[name].minutes and all(5 <= minutes <= 120 for minutes in BOOK[name].minutes)
    assert all(BOOK[name].predictions.values())


def test_the_plan_has_each_chapter_once():
    planned = [name for week in named("WEEKS") for name in week] + list(named("CHOICE"))
    assert sorted(planned) == sorted(BOOK) and len(named("WEEKS")) == 10


def test_the_lab_is_ninety_minutes_and_names_what_its_chapter_has():
    lab = named("LAB")
    assert sum(minutes for minutes, _ in lab) == 90
    start = BOOK["start_here"]
    words = " ".join(what for _, what in lab)
    assert {*re.findall(r"\b[a-z]+(?:-[a-z]+)+\b", words)} <= {*start.predictions}
    assert set(start.exercises) == {name for name in start.exercises if name in words}


def test_each_weeks_predictions_and_exercise_are_of_its_chapters():
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| .*\? \|$", source("plan", "markdown"), re.MULTILINE)
    assert [int(week) for week, _, _ in rows] == list(range(1, 11))
    for week, predictions, exercise in rows:
        of_the_week = [BOOK[name] for name in named("WEEKS")[int(week) - 1]]
        asked = {name for chapter in of_the_week for name in chapter.predictions}
        solved = {name for chapter in of_the_week for name in chapter.exercises}
        assert {*re.findall(r"`(.*?)`", predictions)} <= asked, week
        assert {*re.findall(r"`(.*?)`", exercise)} <= solved, week


@pytest.mark.parametrize("name", ["class", "plan"])
def test_links_lead_to_files_that_are_there(name):
    links = re.findall(r"\]\((?!https:)([^)#]+)", source(name, "markdown"))
    assert links and [link for link in links if not (FOLDER / link).exists()] == []
