"""Draw which ranks belong together."""

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from course_lib.arguments import instance, listed
from course_lib.plots.pictures.boxes import WIDTH, frame
from course_lib.plots.styles import INK, NORMAL, PAPER, SMALL, SOFT, panel

__all__ = ["mesh"]

# other axes of a mesh take what is left
_AXIS_COLORS = {"dp": "#0072B2", "tp": "#D55E00", "pp": "#009E73", "cp": "#CC79A7"}


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
            runs to the right, the one before it down, and the first of three from block to block. With three,
            a box shows the numbers alone: name the axes in the subtitle.
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
    three = len(axes) > 2
    blocks, rows, columns = (1 + max(spot) for spot in zip(*(_spot(place) for place in places)))
    # between two blocks there is a gap of a third of a column
    centers = [(1.6 * (x + block * (columns + 0.35)), 1.5 * y) for block, y, x in map(_spot, places)]
    ax = panel(title, subtitle, ax, size=(1.4 + 1.1 * (columns + 0.35) * blocks, 1.3 + 0.85 * rows))
    spare = itertools.cycle(color for axis, color in _AXIS_COLORS.items() if axis not in groups)
    for axis, members in groups.items():
        look = {"color": _AXIS_COLORS.get(axis) or next(spare), "alpha": 0.55}
        for one, next_ in (pair for group in members for pair in zip(group, group[1:])):
            _band(ax, centers[one], centers[next_], bent=three and axis == axes[0], **look)
        ax.plot([], [], linewidth=5, label=f"{axis} groups", **look)
    for rank, ((x, y), place) in enumerate(zip(centers, places)):
        look = {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1.0, "zorder": 2}
        ax.add_patch(Rectangle((x - WIDTH / 2, y - 0.38), WIDTH, 0.76, **look))
        middle = {"ha": "center", "va": "center", "zorder": 3}
        ax.text(x, y - 0.12, f"rank {rank}", fontsize=NORMAL, color=INK, **middle)
        words = ", ".join(str(at) if three else f"{axis} {at}" for axis, at in place.items())
        ax.text(x, y + 0.18, words, fontsize=SMALL - 1, color=SOFT, **middle)
    right, bottom = (max(side) for side in zip(*centers))
    frame(ax, -0.8, right + 0.8, -0.95 if blocks > 1 else -0.55, bottom + 0.55)
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK, **place)
    return ax


def _spot(place: Mapping[str, int]) -> tuple[int, int, int]:
    """Block, row and column of a rank, by its last three axes."""
    return (0, 0, *place.values())[-3:]


def _band(ax: Axes, start: tuple[float, float], end: tuple[float, float], bent: bool, **look) -> None:
    """A broad line between two ranks; from block to block a thin one, bent over the ranks between."""
    shape = f"arc3,rad={-0.3 if bent else 0.0}"
    line = {"arrowstyle": "-", "connectionstyle": shape, "capstyle": "round", "linewidth": 3 if bent else 9}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, zorder=1, **line, **look))
