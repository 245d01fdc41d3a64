"""An equation of matrices that are cut over two ranks, each in its colour."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from course_lib.arguments import one_of
from course_lib.plots.pictures.boxes import rank_color
from course_lib.plots.styles import INK, PAPER, panel

__all__ = ["equation"]

WHOLE = "#DDE1E6"  # what both ranks have
SHIFT = 0.3  # of the second of two addends, so that the first is seen behind it


def equation(
    title: str, subtitle: str, *parts: str | tuple[str, float, float, str], ax: Axes | None = None
) -> Axes:
    """Draw an equation of matrices, cut for two ranks.

    Args:
        parts: a text, such as "=", or a matrix as (name, rows, columns, cut). `cut`: "whole", on both ranks;
            "columns" or "rows", a half on each; "sum", of which each rank has an addend. A part of A on rank
            1 is called A with a small 1.

    Errors: ValueError for another cut.
    """
    width = sum(1 if isinstance(part, str) else part[2] for part in parts)
    half = max((part[1] / 2 for part in parts if not isinstance(part, str)), default=1.0)
    ax = panel(title, subtitle, ax, size=(max(5.0, 0.42 * width), 0.9 + 0.84 * half))
    ax.set_axis_off()
    left = 0.0
    for part in parts:
        if isinstance(part, str):
            _write(ax, left + 0.5, 0, part)
            left += 1
        else:
            left += _matrix(ax, left, *part)
    ax.set(xlim=(-0.2, left + 0.2), ylim=(-half - 0.1, half + 0.1), aspect="equal")
    return ax


def _matrix(ax: Axes, left: float, name: str, rows: float, columns: float, cut: str) -> float:
    """Draw one matrix; return how wide it is."""
    places = {  # of each rank's part: x, y, width, height
        "whole": [(0, 0, columns, rows)],
        "columns": [(0, 0, columns / 2, rows), (columns / 2, 0, columns / 2, rows)],
        "rows": [(0, rows / 2, columns, rows / 2), (0, 0, columns, rows / 2)],
        "sum": [(0, 0, columns, rows), (SHIFT, SHIFT, columns, rows)],
    }
    parts = one_of("cut", cut, places)
    for rank, (x, y, width, height) in enumerate(parts):
        x, y = left + x, y - rows / 2
        color = WHOLE if cut == "whole" else rank_color(rank)
        ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=PAPER, linewidth=2))
        if cut != "sum":
            _write(ax, x + width / 2, y + height / 2, name if cut == "whole" else f"${name}_{rank}$")
    if cut == "sum":
        _write(ax, left + (columns + SHIFT) / 2, SHIFT / 2, f"${name}_0 + {name}_1$")
    return columns + SHIFT * (cut == "sum")


def _write(ax: Axes, x: float, y: float, text: str) -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=13, color=INK)
