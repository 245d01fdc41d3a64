"""Draw what each rank did, and when."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib.plots.styles import COLORS, FAINT, INK, PAPER, SMALL, legend, panel
from course_lib.plots.traced import require_trace
from course_lib.record import Job, overlap
from course_lib.roles import rank_name

__all__ = ["timeline"]

# Tol's muted colours, for spans with names of their own
_SPAN_COLORS = ("#44AA99", "#AA4499", "#999933", "#332288", "#DDCC77", "#882255")
_COMPUTING = ("forward", "backward", "optimizer")
_LANES = {False: (-0.14, 0.5), True: (0.28, 0.22)}  # communication? -> offset from the rank's number, height


def timeline(job: Job, ax: Axes | None = None) -> Axes:
    """Draw what each rank did and when in the traced step: computing and spans in a wide lane, communication
    in a thin one beneath.

    Empty lane is idle time; the share of the step in which a rank computed stands beside its lane. A span
    named like a micro-batch of a pipeline ("F0", "forward 3", "B1", or "B1@5" on stage 5) has the colour of
    its kind. Communication includes waiting for the other ranks.
    """
    require_trace(job)
    rows = _pieces(job)
    length_s = (rows["start_s"] + rows["seconds"]).max()
    where = job.where
    if "collective times" in job.absent:
        where += f"; communication is not drawn: {job.absent['collective times']}"
    xlabel = "ms since the first rank began the traced step"
    size = (7, max(2.4, 1.5 + 0.5 * job.ranks))
    ax = panel(f"{job.label}: one step", where, ax, size=size, xlabel=xlabel, grid="x")
    ax.set_xlim(0, length_s * 1e3)
    for offset, height in _LANES.values():
        ax.barh(np.arange(job.ranks) + offset, length_s * 1e3, height, color=FAINT, zorder=0)
    span_colors = iter(_SPAN_COLORS * len(rows))
    for what in _in_order(rows):
        _draw(ax, what, rows[rows["what"] == what], COLORS.get(what) or next(span_colors))
    busy = overlap(job)["compute_s"] / length_s
    ticks = {}
    for rank, share in busy.items():
        name = rank_name(rank, job.roles) + ":" * bool(job.roles)
        ticks[rank + _LANES[False][0]] = f"{name} computes, {share:.0%}"
        ticks[rank + _LANES[True][0]] = "communicates"
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.tick_params(axis="y", length=0, labelsize=SMALL)
    ax.set_ylim(job.ranks - 0.5, -0.5)
    legend(ax)
    return ax


def _pieces(job: Job) -> pd.DataFrame:
    """The job's timeline, and in the column `what` what each piece is called in the legend."""
    rows = job.timeline
    if rows.empty and "timeline" in job.absent:
        raise ValueError(f"{job.label} has no timeline: {job.absent['timeline']}.")
    if rows.empty:
        raise ValueError(
            f"{job.label} has an empty timeline: put the work of a step inside `with measure.step(model,"
            " optimizer):`."
        )
    return rows.assign(what=[_what(kind, name) for kind, name in zip(rows["kind"], rows["name"])])


def _what(kind: str, name: str) -> str:
    """An op, a kind of computing, or a span's name without its number."""
    if kind != "span":
        return name if kind == "communication" else kind
    if match := re.fullmatch(r"(f|fwd|forward|b|bwd|backward)[\s_]*\d*(@\d+)?", name, re.IGNORECASE):
        return "forward" if match[1][0] in "fF" else "backward"
    return re.sub(r"[\s_]*\d+$", "", name) or name


def _in_order(rows: pd.DataFrame) -> list[str]:
    """Computing first, in the order of a step, then spans, then communication."""
    communication = set(rows.loc[rows["kind"] == "communication", "what"])

    def place(what: str) -> tuple[bool, int]:
        return what in communication, _COMPUTING.index(what) if what in _COMPUTING else len(_COMPUTING)

    return sorted(rows["what"].unique(), key=place)


def _draw(ax: Axes, what: str, rows: pd.DataFrame, color: str) -> None:
    """All pieces of one kind."""
    offset, height = _LANES[bool((rows["kind"] == "communication").any())]
    look = {"color": color, "edgecolor": PAPER, "linewidth": 0.5, "zorder": 2, "label": what}
    ax.barh(rows["rank"] + offset, rows["seconds"] * 1e3, height, left=rows["start_s"] * 1e3, **look)
    for row in rows[rows["kind"] == "span"].itertuples():
        _write_inside(ax, row.start_s * 1e3, row.seconds * 1e3, row.rank + offset, row.name, color)


def _write_inside(ax: Axes, left: float, width: float, y: float, text: str, color: str) -> None:
    """Write into a bar if there is room."""
    # in inches; a tenth of the figure's width is the legend's
    width_in = width / ax.get_xlim()[1] * ax.get_position().width * ax.figure.get_figwidth() * 0.9
    if width_in > 0.07 * len(text) + 0.03:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        look = {"fontsize": 7.5, "color": PAPER if dark else INK, "zorder": 3, "clip_on": True}
        ax.text(left + width / 2, y, text, ha="center", va="center", **look)
