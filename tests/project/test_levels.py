"""tests/levels.py: what is left out of `make test`, and that the rest can stand without it."""

from types import SimpleNamespace

import levels
import nbformat
import pytest
from cells import takers

CELLS = (
    "slow = 1",
    "def later():\n    return slow",
    "other = 2",
    "later()",  # looks `slow` up when it is called
    "def given(slow):\n    return slow\n\n\nother += given(other)",
    "many = []",
    "many.append(1)\n\n\ndef f():\n    other = []\n    other.append(2)\n    return other",
    "print(many, other)",
)


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "cells.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    "number, stand_on_it", [(0, {0, 1, 3}), (1, {1, 3}), (2, {2, 4, 7}), (3, {3}), (6, {6, 7})]
)
def test_what_takes_a_name_from_a_cell_stands_on_it(notebook, number, stand_on_it):
    assert takers(notebook, number) == stand_on_it


class Item:
    """What levels.mark looks at of a test."""

    def __init__(self, name, case=None, **params):
        self.originalname, self.path, self.markers = name, levels.ROOT / "tests" / "test_of_levels.py", set()
        self.nodeid = f"tests/test_of_levels.py::{name}" + (f"[{case}]" if case else "")
        if case:
            self.callspec = SimpleNamespace(params=params)

    def add_marker(self, marker):
        self.markers.add(marker)


def marked(monkeypatch, seconds, *items):
    known = {item.nodeid: of_it for item, of_it in zip(items, seconds)}
    monkeypatch.setattr(levels, "known_seconds", lambda: known)
    levels.mark(list(items))
    return [" ".join(sorted(item.markers)) for item in items]


def test_a_long_test_is_thorough_and_of_its_cases_the_shortest_is_only_slow(monkeypatch):
    alone, new = Item("test_alone"), Item("test_new")
    short, longer, longest = (Item("test_of_cases", case) for case in ("2", "3", "4"))
    items = alone, short, longer, longest, new
    both = "slow thorough weekly"
    assert marked(monkeypatch, (60, 5, 6, 7), *items) == [both, "slow", both, both, ""]
    assert marked(monkeypatch, (60, 50, 60, 70), *items)[1] == both


def test_what_begins_a_kernel_for_the_whole_file_is_slow(monkeypatch):
    item = Item("test_in_a_kernel")
    item.path = levels.ROOT / "tests" / "ranks" / "test_kernel.py"
    assert item.path.exists() and marked(monkeypatch, (0.1,), item) == ["slow"]


@pytest.mark.parametrize("folder, weekly", [("cluster", False), ("browser", False), ("ranks", True)])
def test_what_is_like_nothing_else_is_tried_with_each_push(monkeypatch, folder, weekly):
    item = Item("test_long")
    item.path = levels.ROOT / "tests" / folder / "test_of_levels.py"
    assert marked(monkeypatch, (60,), item) == ["slow thorough" + " weekly" * weekly]


def test_the_longest_file_comes_first_and_each_stays_in_order(monkeypatch):
    items = [Item(f"test_{letter}") for letter in "abcd"]
    for item in items[1::2]:
        item.path = levels.ROOT / "tests" / "test_of_cells.py"
    monkeypatch.setattr(levels, "known_seconds", lambda: {items[3].nodeid: 3.0, items[0].nodeid: 2.0})
    levels.longest_first(items)
    assert [item.originalname for item in items] == ["test_b", "test_d", "test_a", "test_c"]


def test_of_each_exercise_the_plainest_answers_are_tried_and_one_right_one_whatever_it_takes(monkeypatch):
    def answers(name, seconds):
        items = [Item(name, f"{check}-{case}", check=check) for check in (len, max) for case in "abc"]
        return marked(monkeypatch, seconds, *items)

    assert answers(levels.RIGHT, (60, 0, 0, 0, 60, 0)) == [
        *("slow", "thorough weekly", "thorough weekly"),
        *("", "slow thorough weekly", "thorough weekly"),
    ]
    assert answers(levels.WRONG, (60, 0, 0, 0, 60, 0)) == [
        *("slow thorough weekly", "", "thorough weekly"),
        *("", "slow thorough weekly", "thorough weekly"),
    ]
