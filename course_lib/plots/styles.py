"""The common look of all figures: colours, the four styles of line, and a light panel that says where a
number was measured.
"""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from course_lib.arguments import instance, number, one_of
from course_lib.collectives import COLLECTIVES
from course_lib.plots.described import tell_in_words

__all__ = ["panel", "MEASURED", "SLEEPS", "MODELLED", "PUBLISHED", "COLORS"]

INK, SOFT, FAINT, PAPER = "#1F2328", "#656D76", "#EEF0F3", "#FFFFFF"
MEASURED = {"color": "#0072B2", "linestyle": "-", "linewidth": 2, "marker": "o", "markersize": 5}
SLEEPS = {**MEASURED, "linestyle": "-.", "linewidth": 1.4, "markersize": 6, "markerfacecolor": PAPER}
MODELLED = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4, "marker": ""}
PUBLISHED = {
    "color": "#8A8F96",
    "linestyle": ":",
    "linewidth": 1.5,
    "marker": "s",
    "markersize": 6,
    "markerfacecolor": "none",
}
COLORS = {
    **{op: row.color for op, row in COLLECTIVES.items()},
    "wire": "#6E7781",
    "params": "#0072B2",
    "grads": "#D55E00",
    "optimizer_states": "#009E73",
    "activations": "#CC79A7",
    "buffers": "#F0E442",
    "other": "#B1B7BE",
    "slow link": "#8C5A2B",
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "optimizer": "#009E73",
    # the axes of a mesh
    "dp": "#882255",
    "tp": "#E69F00",
    "pp": "#44AA99",
    "cp": "#999933",
    "ep": "#332288",
}
# MODELLED, for the one point of a curve that was chosen
CHOSEN = {**MODELLED, "linestyle": "", "marker": "D", "markersize": 7}
# MODELLED, for bars
OUTLINE = {"fill": False, "edgecolor": INK, "linestyle": (0, (4, 2)), "linewidth": 1.4}
SMALL, NORMAL = 8, 9


def panel(
    title: str,
    subtitle: str,
    ax: Axes | None = None,
    size: tuple[float, float] = (7, 4),
    xlabel: str = "",
    ylabel: str = "",
    grid: str = "y",
) -> Axes:
    """Prepare `ax` (a new one of `size` inches if None) as every figure of the course begins: light, title,
    and a line that says where it was measured.
    """
    for name, value in (("title", title), ("subtitle", subtitle), ("xlabel", xlabel), ("ylabel", ylabel)):
        instance(name, value, str)
    one_of("grid", grid, ("x", "y", "both"))
    if ax is not None:
        instance("ax", ax, Axes)
    if ax is None:
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise ValueError(f"size={size!r}: it must be width and height in inches, such as (7, 4).")
        for side in size:
            number("a side of size", side, above=True)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    tell_in_words()  # with its first figure a notebook learns to show figures
    # light also in a dark notebook, and the ink dark, whatever the reader's own settings are
    ax.set_facecolor(PAPER)
    ax.figure.set_facecolor(PAPER)
    subtitle = wrapped(subtitle, ax)
    ax.set_title(
        wrapped(title, ax, per_inch=11, least=16),
        loc="left",
        y=1,  # fixed: or each drawing looks for ticks above the panel, of which there are none
        fontsize=11,
        fontweight="bold",
        color=INK,
        pad=10 + 11 * (subtitle.count("\n") + 1),
    )
    ax.annotate(
        subtitle,
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=SMALL,
        color=SOFT,
        va="bottom",
    )
    ax.set_xlabel(xlabel, fontsize=NORMAL, color=INK)
    ax.set_ylabel(ylabel, fontsize=NORMAL, color=INK)
    ax.tick_params(colors=INK, labelsize=NORMAL)
    ax.grid(False)
    ax.grid(True, axis=grid, color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#C4C9CF")
    return ax


def wrapped(text: str, ax: Axes, per_inch: int = 16, least: int = 20) -> str:
    """`text` in lines as wide as a panel, of so many letters an inch: 16 if they are small."""
    width_in = ax.get_position().width * ax.figure.get_figwidth()
    return textwrap.fill(text, max(least, int(width_in * per_inch)))


def legend(ax: Axes, reverse: bool = False, last: str = "") -> None:
    """One entry per label, outside the axes; the label that begins with `last` at the end."""
    entries = dict(zip(*reversed(ax.get_legend_handles_labels())))
    labels = sorted(
        list(entries)[::-1] if reverse else entries, key=lambda label: bool(last) and label.startswith(last)
    )
    if labels:
        box = ax.legend(
            [entries[label] for label in labels],
            labels,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            handlelength=1.6,
            borderaxespad=0,
        )
        dash_from_the_left(box)


def dash_from_the_left(box: Legend) -> None:
    """Lines that are dashed in turn, so that each is seen where they lie on each other, look alike here."""
    for line in box.get_lines():
        if line.get_linestyle() == "--":
            line.set_linestyle(MODELLED["linestyle"])
