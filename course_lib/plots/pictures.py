"""Draw who holds what: a collective before and after, a ring step by step, and a mesh of ranks, from values
that real ranks returned.

The trick is in the numbers. Rank r starts with the pieces 1, 2, 3, 4, ... times 10**r, so a number tells
where it comes from: its digits are the pieces, and the place of a digit is the rank. 300 is piece 3 of rank
2; 3333 is piece 3 of four ranks, added up; 0 is nothing. Each rank has a colour, and a box has the colours of
all ranks that are in its number.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from course_lib.arguments import instance, listed, number, whole
from course_lib.plots.styles import INK, NORMAL, PAPER, SMALL, SOFT, panel

__all__ = ["collective", "RingStep", "ring_steps", "ring", "mesh", "slider", "sources"]

# by rank, light enough to write on
_RANK_COLORS = ("#8EC5EA", "#F3C36B", "#7FD1B5", "#E3A7C8", "#F19C79", "#D9D36A", "#B9A6E0", "#B7BDC4")
# other axes of a mesh take what is left
_AXIS_COLORS = {"dp": "#0072B2", "tp": "#D55E00", "pp": "#009E73", "cp": "#CC79A7"}
_WIDTH, _HEIGHT = 1.0, 0.62  # of a box
_WIDGET = "application/vnd.jupyter.widget-view+json"


def sources(value: float) -> list[int]:
    """The ranks whose pieces are in a number: the places of its digits that are not 0."""
    number("value", value)
    return [rank for rank, digit in enumerate(reversed(str(round(value)))) if digit not in "0-"]


def collective(
    title: str,
    subtitle: str,
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    ax: Axes | None = None,
) -> Axes:
    """Draw what each rank holds before and after a collective: one row per rank, one box per piece; an empty
    box is a 0.

    Args:
        title: the collective. subtitle: what it does, in words.
        before, after: [rank][piece], as the ranks returned them.
    """
    for name, pieces in (("before", before), ("after", after)):
        listed(name, pieces, "a list of ranks, each a list of numbers", _are_numbers)
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} ranks and after {len(after)}: it must be the same number."
        )
    ax = panel(title, subtitle, ax, size=(4.9, 0.9 + 0.4 * len(before)))
    columns = max(map(len, before))
    right = columns * _WIDTH + 1.1
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        ax.text(-0.15, rank, f"rank {rank}", ha="right", va="center", fontsize=SMALL, color=SOFT)
        for left, values in ((0, old), (right, new)):
            for piece, value in enumerate(values):
                _box(ax, left + piece * _WIDTH, rank, value)
    middle = (len(before) - 1) / 2
    ax.add_patch(
        FancyArrowPatch(
            (columns * _WIDTH + 0.15, middle),
            (right - 0.15, middle),
            arrowstyle="-|>",
            mutation_scale=14,
            color=INK,
        )
    )
    _frame(ax, -0.95, right + max(map(len, after)) * _WIDTH + 0.1, -0.6, len(before) - 0.4)
    return ax


@dataclass(frozen=True)
class RingStep:
    """All ranks after one step of a ring.

    Attributes:
        name: of the step.
        held: [rank][chunk], the values after the step.
        sent: the chunk that each rank has sent to the next rank in this step; None at the start.
    """

    name: str
    held: list[list[float]]
    sent: list[int] | None


def ring_steps(notes: Sequence[Sequence[tuple]]) -> list[RingStep]:
    """Put together what the ranks have noted: for each rank a list of (name of the step, chunk sent or None,
    values held after it).
    """
    listed(
        "notes",
        notes,
        "a list of ranks, each a list of (name, chunk, values)",
        lambda rank: (
            isinstance(rank, list)
            and len(rank) == len(notes[0])
            and all(isinstance(note, tuple) and len(note) == 3 for note in rank)
        ),
    )
    steps = []
    for notes_of_step in zip(*notes, strict=True):
        names, sent, held = zip(*notes_of_step)
        steps.append(
            RingStep(names[0], [list(values) for values in held], None if sent[0] is None else list(sent))
        )
    return steps


def ring(step: RingStep, subtitle: str = "", ax: Axes | None = None) -> Axes:
    """Draw one step of a ring: a row per rank, an arrow from each chunk that was sent to the box that it
    changed.

    The last rank's right neighbour is rank 0: its arrow leaves at the bottom and comes in at the top.
    """
    ranks = len(instance("step", step, RingStep).held)
    ax = panel(step.name, subtitle, ax, size=(4.2, 1.1 + 0.75 * ranks))
    for rank, values in enumerate(step.held):
        ax.text(-0.15, 1.5 * rank, f"rank {rank}", ha="right", va="center", fontsize=SMALL, color=SOFT)
        for chunk, value in enumerate(values):
            changed = step.sent is not None and step.sent[rank - 1] == chunk
            _box(ax, chunk * _WIDTH, 1.5 * rank, value, changed)
    for rank, chunk in enumerate(step.sent or []):
        x, top = (chunk + 0.5) * _WIDTH, 1.5 * rank + _HEIGHT / 2
        _arrow(ax, x, top, 1.5 - _HEIGHT if rank < ranks - 1 else 0.5)
        if rank == ranks - 1:
            _arrow(ax, x, -_HEIGHT / 2 - 0.5, 0.5)
            ax.text(x + 0.12, top + 0.3, "to rank 0", fontsize=SMALL - 1, color=SOFT, va="center")
    _frame(ax, -0.95, len(step.held[0]) * _WIDTH + 0.1, -1.0, 1.5 * (ranks - 1) + 1.0)
    return ax


def mesh(
    title: str,
    subtitle: str,
    places: Sequence[Mapping[str, int]],
    groups: Mapping[str, Sequence[Sequence[int]]],
    ax: Axes | None = None,
) -> Axes:
    """Draw a mesh of ranks: a box per rank where its coordinates say, and a coloured band through the ranks
    of each group.

    Args:
        places: by rank, its coordinates as a dict of axis -> coordinate, one to three axes. The last axis
            runs to the right, the one before it
            down, and the first of three from block to block. With three, a box shows the numbers alone: name
            the axes in the subtitle.
        groups: axis -> its groups, each a list of ranks.
    """
    listed(
        "places",
        places,
        "a list of dicts of axis -> coordinate, one for each rank",
        lambda place: isinstance(place, dict) and place.keys() == places[0].keys() != set(),
    )
    instance("groups", groups, dict)
    axes = list(places[0])
    columns, rows = (
        1 + max(place[axis] for place in places) if axis else 1
        for axis in (axes[-1], axes[-2] if len(axes) > 1 else None)
    )
    blocks = 1 + max(place[axes[0]] for place in places) if len(axes) > 2 else 1
    centers = []
    for place in places:
        block = place[axes[0]] if len(axes) > 2 else 0
        centers.append(
            (
                1.6 * (place[axes[-1]] + block * (columns + 0.35)),
                1.5 * (place[axes[-2]] if len(axes) > 1 else 0),
            )
        )
    ax = panel(title, subtitle, ax, size=(1.4 + 1.1 * (columns + 0.35) * blocks, 1.3 + 0.85 * rows))
    spare = itertools.cycle(color for axis, color in _AXIS_COLORS.items() if axis not in groups)
    for axis, members in groups.items():
        color = _AXIS_COLORS.get(axis) or next(spare)
        for group in members:
            for one, next_ in zip(group, group[1:]):
                # from block to block, over the ranks between
                bend = 0.3 if len(axes) > 2 and axis == axes[0] else 0.0
                ax.add_patch(
                    FancyArrowPatch(
                        centers[one],
                        centers[next_],
                        arrowstyle="-",
                        connectionstyle=f"arc3,rad={-bend}",
                        linewidth=3 if bend else 9,
                        color=color,
                        alpha=0.55,
                        capstyle="round",
                        shrinkA=0,
                        shrinkB=0,
                        zorder=1,
                    )
                )
        ax.plot([], [], color=color, linewidth=5, alpha=0.55, label=f"{axis} groups")
    for rank, ((x, y), place) in enumerate(zip(centers, places)):
        ax.add_patch(
            Rectangle(
                (x - _WIDTH / 2, y - 0.38),
                _WIDTH,
                0.76,
                facecolor=PAPER,
                edgecolor=INK,
                linewidth=1.0,
                zorder=2,
            )
        )
        ax.text(x, y - 0.12, f"rank {rank}", ha="center", va="center", fontsize=NORMAL, color=INK, zorder=3)
        ax.text(
            x,
            y + 0.18,
            ", ".join(
                f"{axis} {coordinate}" if len(axes) < 3 else str(coordinate)
                for axis, coordinate in place.items()
            ),
            ha="center",
            va="center",
            fontsize=SMALL - 1,
            color=SOFT,
            zorder=3,
        )
    _frame(
        ax,
        -0.8,
        max(x for x, _ in centers) + 0.8,
        -0.95 if blocks > 1 else -0.55,
        max(y for _, y in centers) + 0.55,
    )
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderaxespad=0,
    )
    return ax


def slider(draw: Callable[[int], Axes], count: int) -> None:
    """Show picture number 0 to count - 1 under a slider with a play button (in JupyterLab; a notebook that is
    only read shows a line of text).

    Args:
        draw: draws picture number i and returns its Axes; called once per picture, when it is first looked
            at.
    """
    instance("draw", draw, Callable, "that takes a number and returns Axes")
    whole("count", count, most=1000)
    from IPython.display import display
    from ipywidgets import HBox, Image, IntSlider, Play, VBox, jslink

    pictures: dict[int, bytes] = {}

    def picture(number: int) -> bytes:
        if number not in pictures:
            pictures[number] = _png(draw(number))
        return pictures[number]

    play = Play(min=0, max=count - 1, interval=1200)
    step = IntSlider(min=0, max=count - 1, description="step")
    image = Image(value=picture(0), format="png", width=420)
    jslink((play, "value"), (step, "value"))
    step.observe(lambda change: setattr(image, "value", picture(change["new"])), "value")
    box = VBox([HBox([play, step]), image])
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display(
        {
            _WIDGET: view,
            "text/plain": f"(run this cell in JupyterLab: a slider steps through {count} pictures)",
        },
        raw=True,
    )


def _are_numbers(pieces) -> bool:
    return (
        isinstance(pieces, (list, tuple))
        and len(pieces) > 0
        and all(isinstance(piece, (int, float)) and piece >= 0 for piece in pieces)
    )


def _png(ax: Axes) -> bytes:
    """A figure as a PNG file. It is closed, so that it is not shown a second time under the cell."""
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=120)
    plt.close(ax.figure)
    return file.getvalue()


def _box(ax: Axes, x: float, y: float, value: float, changed: bool = False) -> None:
    """One piece: its number over the colours of the ranks that are in it, with a strong frame if it has just
    changed.
    """
    ranks = sources(value)
    bottom = y - _HEIGHT / 2
    for place, rank in enumerate(ranks):
        width = _WIDTH / len(ranks)
        ax.add_patch(
            Rectangle(
                (x + place * width, bottom),
                width,
                _HEIGHT,
                facecolor=_RANK_COLORS[rank % len(_RANK_COLORS)],
                linewidth=0,
            )
        )
    if ranks:
        ax.text(
            x + _WIDTH / 2,
            y,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=SMALL if len(ranks) < 5 else SMALL - 2,
            color=INK,
        )
    ax.add_patch(
        Rectangle(
            (x, bottom),
            _WIDTH,
            _HEIGHT,
            fill=False,
            edgecolor=INK if changed else "#C4C9CF" if not ranks else PAPER,
            linewidth=2.0 if changed else 1.0,
            zorder=3 if changed else 2,
        )
    )


def _arrow(ax: Axes, x: float, y: float, length: float) -> None:
    ax.add_patch(
        FancyArrowPatch(
            (x, y),
            (x, y + length),
            arrowstyle="-|>",
            mutation_scale=11,
            color=INK,
            shrinkA=1,
            shrinkB=1,
            linewidth=1.3,
            zorder=4,
        )
    )


def _frame(ax: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """Nothing but the boxes: no axis, no grid; rank 0 on top."""
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.tick_params(labelsize=NORMAL)
    ax.set_axis_off()
