"""Figures in words: what is said of them, and that IPython keeps it with the picture."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure

from course_lib import plots
from course_lib.mini.pipeline import on_paper
from course_lib.plots import described, pictures
from course_lib.plots.units import Unit


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_figure_is_told_by_title_axes_and_the_extent_of_each_series():
    ax = plots.panel("Bytes sent,\nby rank", "2 ranks", xlabel="rank", ylabel="MB")
    ax.bar([0, 1], [1.5, 3.0], label="all_reduce")
    ax.plot([0, 1], [2.0, 2.0], label="theory")
    ax.plot([0, 1], [9.0, 9.0])  # nameless: a help line, say
    assert described.in_words(ax.figure) == (
        "Bytes sent, by rank. Across: rank. Upward: MB. theory: 2. all_reduce: 1.5 to 3."
    )


def test_a_title_that_asks_has_no_point_after_it():
    ax = plots.panel("Which is longer?", "", xlabel="ranks")
    assert described.in_words(ax.figure) == "Which is longer? Across: ranks."
    assert described.in_words(plots.panel("Which is longer?", "").figure) == "Which is longer?"


def test_bars_that_lie_are_told_by_their_length_and_an_empty_series_too():
    figure, (left, right) = plt.subplots(1, 2)
    left.barh([0, 1], [4.0, float("nan")], label="held")
    right.plot([], [], label="later")
    assert described.in_words(figure) == "A panel. held: 4. A panel. later: nothing."


def test_blocks_that_lie_are_told_by_their_length():
    ax = plots.panel("A step", "", xlabel="ms")
    ax.broken_barh([(0, 2), (5, 3.5)], (0, 1), label="forward")
    ax.broken_barh([(0, 9)], (0, 1), facecolor="none")
    ax.plot([4, 6], [0, 1], label="measured")
    assert described.in_words(ax.figure) == "A step. Across: ms. measured: 4 to 6. forward: 2 to 3.5."


def test_numbers_are_told_in_the_unit_of_their_axis():
    ax = plots.panel("Memory", "", ylabel="KB")
    ax.bar([0, 1], [76_800, 153_600], label="params")
    ax.plot([0, 1], [1_234_000, 1_234_000], label="theory")
    Unit.of(154e3).ticks(ax.yaxis)
    assert described.in_words(ax.figure) == "Memory. Upward: KB. theory: 1,234. params: 76.8 to 154."


def test_points_beside_bars_that_lie_are_told_across_and_upright_lines_by_their_place():
    ax = plots.panel("Steps", "", xlabel="ms")
    ax.barh([0, 1], [16.4, 19.0], label="modelled")
    ax.plot([17.5, 20.5], [0, 1], label="measured")
    ax.axvline(18, label="the aim")
    assert described.in_words(ax.figure) == (
        "Steps. Across: ms. measured: 17.5 to 20.5. modelled: 16.4 to 19. the aim: at 18."
    )


def test_an_upright_line_among_words_is_told_by_them():
    ax = plots.panel("What was said", "")
    ax.bar([0, 1], [3, 5], label="guessed")
    ax.set_xticks([0, 1], ["half of\neach", "all"])
    ax.axvline(0, label="measured")
    ax.axvline(0.5, label="between")
    ax.axvline(1)
    assert described.in_words(ax.figure) == (
        "What was said. guessed: 3 to 5. measured: at half of each. between."
    )


def test_a_curve_alone_needs_no_label():
    ax = plots.panel("Loss", "", xlabel="step", ylabel="loss")
    ax.plot([0, 1, 2], [2.5, 1.5, 0.5])
    assert described.in_words(ax.figure) == "Loss. Across: step. Upward: loss. drawn: 0.5 to 2.5."
    ax.plot([0, 1], [7, 8], label="another")
    assert described.in_words(ax.figure) == "Loss. Across: step. Upward: loss. another: 7 to 8."


def test_a_panel_without_values_says_what_it_shows():
    places = [{"dp": rank // 2, "tp": rank % 2} for rank in range(4)]
    ax = pictures.mesh("A mesh", "", places, {"dp": [[0, 2], [1, 3]], "tp": [[0, 1], [2, 3]]})
    words = "A mesh. 2 groups along dp, the first: ranks 0, 2. 2 groups along tp, the first: ranks 0, 1."
    assert described.in_words(ax.figure) == words
    ax = plots.schedule(on_paper.blocks("1f1b", 2, 3), title="Two ranks")
    assert described.in_words(ax.figure).startswith(
        "Two ranks. 2 lanes of ranks with 6 of forward and 6 of backward."
    )


def test_many_series_are_not_told_one_by_one():
    ax = plots.panel("Ranks", "")
    for rank in range(described.MOST_SERIES + 3):
        ax.plot([0, 1], [rank, rank], label=f"rank {rank}")
    words = described.in_words(ax.figure)
    assert words.endswith("rank 11: 11. and 3 more.")


@pytest.mark.parametrize("drawn", ["PNG", ("PNG", {"width": 700})])
def test_a_notebook_keeps_the_words_with_the_picture(monkeypatch, drawn):
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    shell.display_formatter.formatters["image/png"].for_type(Figure, lambda figure: drawn)
    monkeypatch.setattr(described, "ipython_shell", lambda: shell)
    for _ in range(2):  # also where it was told before
        ax = plots.panel("Title", "where")
    data, metadata = shell.display_formatter.format(ax.figure)
    assert data["image/png"] == "PNG"
    assert metadata["image/png"] == {**(drawn[1] if isinstance(drawn, tuple) else {}), "alt": "Title."}


def test_where_no_notebook_is_nothing_happens(monkeypatch):
    for shell in (None, SimpleNamespace(display_formatter=DisplayFormatter())):  # no inline figures there
        monkeypatch.setattr(described, "ipython_shell", lambda shell=shell: shell)
        described.tell_in_words()
