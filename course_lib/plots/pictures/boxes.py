"""What the pictures are made of: numbers in boxes, and arrows between them."""

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from course_lib.arguments import number
from course_lib.plots.styles import INK, NORMAL, PAPER, SMALL, SOFT

__all__ = ["sources", "rank_color", "box", "heads", "arrow", "frame"]

WIDTH, HEIGHT = 1.0, 0.62  # of a box
# told apart also by who sees no red or no green (tests/plots/test_colors.py)
_RANK_COLORS = ("#5AB7FB", "#CDA24D", "#83CFA7", "#F9BEE8", "#F39C7A", "#D9D269", "#BAA7DC", "#B0B6BA")


def sources(value: float) -> list[int]:
    """Return the ranks whose pieces are in a number: the places of its digits that are not 0."""
    number("value", value)
    return [rank for rank, digit in enumerate(reversed(str(round(value)))) if digit not in "0-"]


def rank_color(rank: int) -> str:
    """The colour of a rank, light enough to write on."""
    return _RANK_COLORS[rank % len(_RANK_COLORS)]


def box(ax: Axes, x: float, y: float, value: float, changed: bool = False) -> None:
    """Draw one piece: its number over the colours of the ranks that are in it, with a strong frame if it has
    just changed.
    """
    ranks = sources(value)
    bottom = y - HEIGHT / 2
    for place, rank in enumerate(ranks):
        width = WIDTH / len(ranks)
        color = rank_color(rank)
        ax.add_patch(Rectangle((x + place * width, bottom), width, HEIGHT, facecolor=color, linewidth=0))
    if ranks:
        size = SMALL if len(ranks) < 5 else SMALL - 2
        ax.text(x + WIDTH / 2, y, f"{value:.0f}", ha="center", va="center", fontsize=size, color=INK)
    look = {"edgecolor": PAPER if ranks else "#C4C9CF", "linewidth": 1.0, "zorder": 2}
    if changed:
        look = {"edgecolor": INK, "linewidth": 2.0, "zorder": 3}
    ax.add_patch(Rectangle((x, bottom), WIDTH, HEIGHT, fill=False, **look))


def heads(ax: Axes, left: float, y: float, word: str, count: int) -> None:
    """Write the name of each column above it: "piece 0", "piece 1", ..."""
    for column in range(count):
        look = {"ha": "center", "va": "center", "fontsize": SMALL - 1, "color": SOFT}
        ax.text(left + (column + 0.5) * WIDTH, y, f"{word} {column}", **look)


def arrow(ax: Axes, x: float, y: float, length: float) -> None:
    """Draw an arrow downwards."""
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "color": INK, "linewidth": 1.3}
    ax.add_patch(FancyArrowPatch((x, y), (x, y + length), shrinkA=1, shrinkB=1, zorder=4, **look))


def frame(ax: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """Leave nothing but the boxes: no axis, no grid; rank 0 on top."""
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.tick_params(labelsize=NORMAL)
    ax.set_axis_off()
