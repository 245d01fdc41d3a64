"""Draw which ranks belong together."""

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from course_lib.arguments import instance, listed
from course_lib.plots.described import tell
from course_lib.plots.pictures.boxes import WIDTH, frame
from course_lib.plots.styles import COLORS, INK, NORMAL, PAPER, SMALL, SOFT, panel

__all__ = ["mesh"]

# axes of other names take the colours that are left
_AXES = ("dp", "tp", "pp", "cp", "ep")
_BENT = 0.3  # of its length
_AROUND = 0.16  # from a box to the border of its host


def mesh(
    title: str,
    subtitle: str,
    places: Sequence[Mapping[str, int]],
    groups: Mapping[str, Sequence[Sequence[int]]],
    ax: Axes | None = None,
    hosts: Sequence[Sequence[int]] = (),
) -> Axes:
    """Draw a mesh of ranks: a box per rank where its coordinates say, and a coloured band through the ranks
    of each group.

    Args:
        places: by rank, its coordinates as a dict of axis -> coordinate, one to three axes. The last axis
            runs to the right, the one before it down, and the first of three from block to block. With three,
            a box shows the numbers alone: name the axes in the subtitle.
        groups: axis -> its groups, each a list of ranks.
        hosts: the ranks of each host, if it is to be drawn around them; they stand side by side, or one under
            the other.
    """
    listed(
        "places",
        places,
        "a list of dicts of axis -> coordinate, one for each rank",
        lambda place: isinstance(place, dict) and place.keys() == places[0].keys() != set(),
    )
    instance("groups", groups, dict)
    axes = list(places[0])
    three = len(axes) > 2
    blocks, rows, columns = (1 + max(spot) for spot in zip(*(_spot(place) for place in places)))
    # between two blocks there is a gap of a third of a column
    centers = [(1.6 * (x + block * (columns + 0.35)), 1.5 * y) for block, y, x in map(_spot, places)]
    ax = panel(title, subtitle, ax, size=(1.4 + 1.1 * (columns + 0.35) * blocks, 1.3 + 0.85 * rows))
    spare = itertools.cycle(COLORS[axis] for axis in _AXES if axis not in groups)
    told = []  # not in the axes: they hold no values, and would be told as empty series
    for axis, members in groups.items():
        look = {"color": COLORS[axis] if axis in _AXES else next(spare), "alpha": 0.55}
        for one, next_ in (pair for group in members for pair in zip(group, group[1:])):
            _band(ax, centers[one], centers[next_], bent=three and axis == axes[0], **look)
        told.append(Line2D([], [], linewidth=5, label=f"{axis} groups", **look))
        if members:
            first = ", ".join(map(str, members[0]))
            tell(ax, f"{len(members)} group{'s' * (len(members) > 1)} along {axis}, the first: ranks {first}")
    for rank, ((x, y), place) in enumerate(zip(centers, places)):
        look = {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1.0, "zorder": 2}
        ax.add_artist(Rectangle((x - WIDTH / 2, y - 0.38), WIDTH, 0.76, **look))
        middle = {"ha": "center", "va": "center", "zorder": 3, "in_layout": False}
        ax.text(x, y - 0.12, f"rank {rank}", fontsize=NORMAL, color=INK, **middle)
        words = ", ".join(str(at) if three else f"{axis} {at}" for axis, at in place.items())
        ax.text(x, y + 0.18, words, fontsize=SMALL - 1, color=SOFT, **middle)
    for number, host in enumerate(hosts):
        _host(ax, f"host {number}", [centers[rank] for rank in host])
    right, bottom = (max(side) for side in zip(*centers))
    top = -0.95 if hosts else -0.55
    if blocks > 1:  # bent bands rise by half of _BENT times their length
        top = min(top, -0.1 - _BENT / 2 * (centers[-1][0] - centers[0][0]) / (blocks - 1))
    frame(ax, -0.85, right + 0.85, top, bottom + 0.6)
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    ax.legend(handles=told, frameon=False, fontsize=SMALL, labelcolor=INK, **place)
    return ax


def _spot(place: Mapping[str, int]) -> tuple[int, int, int]:
    """Block, row and column of a rank, by its last three axes."""
    return (0, 0, *place.values())[-3:]


def _host(ax: Axes, name: str, centers: Sequence[tuple[float, float]]) -> None:
    """A border around the boxes of one host, and its name."""
    (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*centers))
    width, height = WIDTH / 2 + _AROUND, 0.38 + _AROUND
    corner, sides = (left - width, top - height), (right - left + 2 * width, bottom - top + 2 * height)
    ax.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=SOFT, linewidth=1.4, zorder=1.5))
    ax.text(corner[0] + 0.06, corner[1] - 0.04, name, fontsize=SMALL, color=SOFT, va="bottom")


def _band(ax: Axes, start: tuple[float, float], end: tuple[float, float], bent: bool, **look) -> None:
    """A broad line between two ranks; from block to block a thin one, bent over the ranks between."""
    shape = f"arc3,rad={-_BENT if bent else 0.0}"
    line = {"arrowstyle": "-", "connectionstyle": shape, "capstyle": "round", "linewidth": 3 if bent else 9}
    # no add_patch: it takes half of all the time to see how far each reaches, and `frame` says how far all do
    ax.add_artist(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, zorder=1, **line, **look))
