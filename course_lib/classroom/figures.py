"""A class as figures. What people guessed never looks like what was measured: hatched and grey beside solid
and blue.
"""

import textwrap
from collections import Counter

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from course_lib.arguments import one_of, takes
from course_lib.classroom.reading import Classroom
from course_lib.classroom.tables import guesses, progress, tries
from course_lib.learner.predictions import RIGHT
from course_lib.plots.styles import COLORS, FAINT, INK, MEASURED, MODELLED, PAPER, SMALL, legend, panel

__all__ = ["draw_guesses", "draw_tries", "draw_progress"]

GUESSED = {"color": FAINT, "edgecolor": "#656D76", "hatch": "////", "linewidth": 0.8}
SOLVED, OPEN = COLORS["params"], COLORS["grads"]
CELL = 0.8  # the width of a whole chapter
MOST_BARS = 12  # of guesses that differ; nearer ones share a bar


@takes(room=Classroom)
def draw_guesses(room: Classroom, prediction: str, ax: Axes | None = None) -> Axes:
    """Draw how many guessed what, and where the measurement is among it. Numbers stand in order and not to
    scale, so that a guess a thousand times too large does not hide the others.

    Args:
        prediction: its name, such as "bytes-of-four-ranks".

    Errors: ValueError if no chapter has it.
    """
    one_of("prediction", prediction, [name for chapter in room.chapters for name in chapter.predictions])
    chapter = room.chapter_of(prediction)
    table = guesses(room)
    its = table[table["prediction"] == prediction]
    if its.empty:
        return _nothing(chapter.predictions[prediction] or prediction, "Nobody has guessed yet.", ax)
    measured = [value for value in its["measured"] if value is not None]
    unit = its["unit"].iloc[0]
    ax = panel(
        chapter.predictions[prediction] or prediction,
        f"{chapter.title}; {prediction}; {len(its)} learner{'s' * (len(its) > 1)}",
        ax,
        ylabel="learners",
    )
    how = next((how for how in its["how"] if how), "measured")
    if isinstance(its["guess"].iloc[0], str):
        _draw_choices(ax, Counter(its["guess"]), Counter(measured), how)
    else:
        _draw_numbers(ax, sorted(its["guess"]), measured, unit, how)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(False, axis="x")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.08)
    legend(ax)
    return ax


@takes(room=Classroom)
def draw_tries(room: Classroom, ax: Axes | None = None) -> Axes:
    """Draw for each exercise that somebody tried how many solved it, in how many tries (the median), and how
    many have not yet.
    """
    table = tries(room)
    if table.empty:
        return _nothing("Exercises: solved, and tried so far", "Nobody has tried an exercise yet.", ax)
    tried = set(table["exercise"])
    order = [name for chapter in room.chapters for name in chapter.exercises if name in tried]
    by = table.groupby("exercise")
    solved, of = by["solved"].sum().reindex(order), by.size().reindex(order)
    count = len(room.learners)
    ax = panel(
        "Exercises: solved, and tried so far",
        f"{count} learner{'s' * (count > 1)}; beside each bar: tries until it was solved, the median",
        ax,
        size=(7, 1.6 + 0.36 * len(order)),
        xlabel="learners",
        grid="x",
    )
    y = np.arange(len(order))
    ax.barh(y, solved, 0.6, color=SOLVED, edgecolor=PAPER, label="solved")
    ax.barh(y, of - solved, 0.6, left=solved, color=PAPER, edgecolor=OPEN, hatch="....", label="not yet")
    median = table[table["solved"]].groupby("exercise")["tries"].median().reindex(order)
    for at, total, middle in zip(y, of, median):
        if not pd.isna(middle):
            words = f"{middle:g} {'try' if middle == 1 else 'tries'}"
            ax.annotate(
                words,
                (total, at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                color=INK,
            )
    ax.set_yticks(y, [name.replace("_", " ") for name in order])
    ax.invert_yaxis()
    ax.set_xlim(0, of.max() * 1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax


@takes(room=Classroom)
def draw_progress(room: Classroom, ax: Axes | None = None) -> Axes:
    """Draw which part of each chapter each learner has done, as a bar that fills: a row a learner, who has
    done most first, a column a chapter up to the last that anybody has begun.
    """
    table = progress(room)
    if table.empty:
        return _nothing("How far the class is", "Nobody has joined this class yet.", ax)
    begun = [at for at, file in enumerate(table.columns) if table[file].any()]
    table = table.iloc[:, : max(begun, default=0) + 1]
    most = table.sum(axis=1).sort_values(ascending=False, kind="stable").index
    table = table.loc[most]
    rows, columns = table.shape
    ax = panel(
        "How far the class is",
        "part of each chapter's predictions and exercises that is done",
        ax,
        size=(max(5, 2.8 + 0.3 * columns), 1.8 + 0.22 * rows),
    )
    y, x = (index.ravel() for index in np.indices((rows, columns)))
    ax.barh(y, CELL * table.to_numpy().ravel(), 0.6, left=x - CELL / 2, color=SOLVED, label="done")
    ax.barh(y, CELL, 0.6, left=x - CELL / 2, fill=False, edgecolor="#C4C9CF", linewidth=0.8)
    ax.set_xticks(range(columns), [file[:2] for file in table.columns])
    ax.set_xlabel("chapter", color=INK)
    ax.set_yticks(range(rows), table.index, fontsize=SMALL)
    ax.set_xlim(-0.6, columns - 0.4)
    ax.set_ylim(rows - 0.4, -0.6)
    ax.grid(False)
    return ax


def _nothing(title: str, why: str, ax: Axes | None) -> Axes:
    """In the place of a figure of what is not there yet: a class that has just begun is no error. All stands
    in the title, which is also what is heard of it.
    """
    ax = panel(f"{title}{'' if title.endswith('?') else '.'}\n{why}", "", ax, size=(7, 1.2))
    ax.set_axis_off()
    return ax


def _draw_choices(ax: Axes, said: Counter, measured: Counter, how: str) -> None:
    words = sorted({*said, *measured}, key=lambda word: (-said[word], word))
    x = np.arange(len(words))
    ax.bar(x, [said[word] for word in words], 0.6, **GUESSED, label="guessed")
    if measured:
        at = words.index(measured.most_common(1)[0][0])
        look = MEASURED if how == "measured" else MODELLED
        ax.axvline(at, **look | {"marker": ""}, label=how)
    ax.set_xticks(x, [textwrap.fill(textwrap.shorten(word, 60), 22) for word in words])
    _plainly(ax)
    ax.set_xlim(-0.7, len(words) - 0.3)


def _draw_numbers(ax: Axes, said: list[float], measured: list[float], unit: str, how: str) -> None:
    bars = _bars(said)
    x = np.arange(len(bars))
    ax.bar(x, [len(bar) for bar in bars], 0.6, **GUESSED, label="guessed")
    if measured:
        middle = float(np.median(measured))
        look = MEASURED if how == "measured" else MODELLED
        label = f"{how}: {_number(middle)} {unit}".rstrip()
        low, high = (_number(end) for end in (min(measured), max(measured)))
        label += f"\n({low} to {high})" if low != high else ""
        ax.axvline(_place(middle, bars), **look | {"marker": ""}, label=label)
    ends = [dict.fromkeys((_number(bar[0]), _number(bar[-1]))) for bar in bars]
    ax.set_xticks(x, [" to\n".join(end) for end in ends])
    _plainly(ax)
    ax.set_xlim(-0.9, len(bars) - 0.1)
    ax.set_xlabel(f"guess{f' ({unit})' if unit else ''}, in order, not to scale", color=INK)


def _bars(said: list[float]) -> list[list[float]]:
    """Sorted guesses in bars: equal ones in one, and where there would be too many bars, the nearest too."""
    bars = [[value] * count for value, count in Counter(said).items()]
    while len(bars) > MOST_BARS:
        gaps = [_apart(left[-1], right[0]) for left, right in zip(bars, bars[1:])]
        at = gaps.index(min(gaps))
        bars[at : at + 2] = [bars[at] + bars[at + 1]]
    return bars


def _apart(low: float, high: float) -> float:
    """As part of the larger one: 90 and 100 are as near to each other as 9 and 10."""
    return (high - low) / max(abs(low), abs(high))


def _place(value: float, bars: list[list[float]]) -> float:
    """Where a number stands among bars in order: on the nearest that counts as right, or between two."""
    away = [max(bar[0] - value, value - bar[-1], 0) for bar in bars]
    if min(away) <= RIGHT * abs(value):
        return away.index(min(away))
    return sum(bar[-1] < value for bar in bars) - 0.5


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _plainly(ax: Axes) -> None:
    """What learners wrote is no formula, whatever signs are in it."""
    for label in ax.get_xticklabels():
        label.set_parse_math(False)
        label.set_fontsize(SMALL)
