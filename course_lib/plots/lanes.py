"""Draw what each rank did, and when."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from course_lib.arguments import number
from course_lib.plots.mesh_axes import called_by_axis
from course_lib.plots.microbatches import block_of, messages
from course_lib.plots.styles import COLORS, FAINT, INK, PAPER, SMALL, SOFT, legend, panel
from course_lib.plots.traced import require_trace
from course_lib.record import Job, overlap
from course_lib.roles import rank_name

__all__ = ["timeline"]

# Tol's muted colours, for spans with names of their own
_SPAN_COLORS = ("#44AA99", "#AA4499", "#999933", "#332288", "#DDCC77", "#882255")
_COMPUTING = ("forward", "backward", "optimizer")
_LANES = {False: (-0.14, 0.5), True: (0.28, 0.22)}  # communication? -> offset from the rank's number, height
_PALER = 0.6  # the last of a rank's stages is so much nearer to the paper than the first one
_SEEN = 0.001  # of the axis: what is shorter cannot be seen, and the legend does not name it
_SIZES = (7.5, 6.0)  # of letters in a block


def timeline(
    job: Job,
    ax: Axes | None = None,
    until_s: float = 0.0,
    groups: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> Axes:
    """Draw what each rank did and when in the traced step: computing and spans in a wide lane, communication
    in a thin one beneath.

    Empty lane is idle time; the share of the step in which a rank computed stands beside its lane.
    Communication includes waiting for the other ranks.

    A span named like a micro-batch of a pipeline ("F0", "forward 3", "B1", or "B1@5" on stage 5) has the
    colour of its kind, paler for each further stage of its rank. If what the ranks sent is what such blocks
    need of each other, thin arrows stand for the messages, from the block that made one to the block that
    needed it, and not lanes of send and recv: a receive that is asked for early, or a send that is waited for
    late, would be drawn long and say nothing.

    Args:
        until_s: so long is the axis at least, in seconds: the length of another job's step, to compare them.
        groups: of a mesh, axis -> its groups, each a list of ranks. A collective in one of them has the name
            and the colour of its axis, and not those of its kind.
    """
    require_trace(job)
    number("until_s", until_s)
    rows = called_by_axis(job, _pieces(job), groups or {})
    sent = messages(job)
    if sent:
        rows = rows[~((rows["kind"] == "communication") & rows["name"].isin(("send", "recv")))]
    length_s = (rows["start_s"] + rows["seconds"]).max()
    longest_s = rows.groupby("what")["seconds"].transform("max")
    rows = rows[longest_s > _SEEN * max(length_s, until_s)]
    where = job.where
    if "collective times" in job.absent:
        where += f"; communication is not drawn: {job.absent['collective times']}"
    xlabel = "ms since the first rank began the traced step"
    size = (7, max(2.4, 1.5 + 0.5 * job.ranks))
    ax = panel(f"{job.label}: one step", where, ax, size=size, xlabel=xlabel, grid="x")
    ax.set_xlim(0, max(length_s, until_s) * 1e3)
    lanes = {False: _LANES[False]}
    if not sent or (rows["kind"] == "communication").any():
        lanes[True] = _LANES[True]
    for offset, height in lanes.values():
        ax.barh(np.arange(job.ranks) + offset, length_s * 1e3, height, color=FAINT, zorder=0)
    span_colors = iter(_SPAN_COLORS * len(rows))
    in_order, letterings = _in_order(rows), _choose_letterings(ax, rows)
    for what in in_order:
        color = _color(what, in_order) or next(span_colors)
        _draw(ax, what, rows[rows["what"] == what], color, letterings.get(what))
    _draw_messages(ax, sent)
    busy = overlap(job)["compute_s"] / length_s
    ticks = {}
    for rank, share in busy.items():
        name = rank_name(rank, job.roles) + ":" * bool(job.roles)
        ticks[rank + _LANES[False][0]] = f"{name} computes, {share:.0%}"
        if True in lanes:
            ticks[rank + _LANES[True][0]] = "communicates"
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.tick_params(axis="y", length=0, labelsize=SMALL)
    ax.set_ylim(job.ranks - 0.5, -0.5)
    legend(ax, last="message")
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
    stages: dict[int, set[int]] = {}  # those that each rank names
    for row in rows[rows["kind"] == "span"].itertuples():
        if (block := block_of(row.name)) and block.stage is not None:
            stages.setdefault(row.rank, set()).add(block.stage)
    called = [_what(row.kind, row.name, sorted(stages.get(row.rank, ()))) for row in rows.itertuples()]
    return rows.assign(what=called)


def _what(kind: str, name: str, stages: list[int]) -> str:
    """An op, a kind of computing, or a span's name without its number; `stages` are the rank's, in order."""
    if kind != "span":
        return name if kind == "communication" else kind
    if block := block_of(name):
        nth = stages.index(block.stage) if block.stage is not None else 0
        return block.op if nth == 0 else f"{block.op}, stage {nth + 1} of a rank"
    return re.sub(r"[\s_]*\d+$", "", name) or name


def _color(what: str, all_of_them: list[str]) -> str | None:
    """The colour of a kind, paler for a rank's second stage, and paler still for its third."""
    op, _, nth = what.partition(", stage ")
    if not nth or op not in COLORS:
        return COLORS.get(what)
    last = max(int(other.partition(", stage ")[2].split()[0]) for other in all_of_them if f"{op}, " in other)
    share = _PALER * (int(nth.split()[0]) - 1) / (last - 1)
    mixed = [round((1 - share) * part + share * paper) for part, paper in zip(_rgb(COLORS[op]), _rgb(PAPER))]
    return "#" + bytes(mixed).hex().upper()


def _rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def _in_order(rows: pd.DataFrame) -> list[str]:
    """Computing first, in the order of a step, then spans, then communication."""
    communication = set(rows.loc[rows["kind"] == "communication", "what"])

    def place(what: str) -> tuple[bool, int, str]:
        op, _, nth = what.partition(", ")
        among = _COMPUTING.index(op) if op in _COMPUTING else len(_COMPUTING)
        return what in communication, among, nth

    return sorted(rows["what"].unique(), key=place)


def _draw(ax: Axes, what: str, rows: pd.DataFrame, color: str, lettering: int | None) -> None:
    """All pieces of one kind."""
    offset, height = _LANES[bool((rows["kind"] == "communication").any())]
    look = {"color": color, "edgecolor": PAPER, "linewidth": 0.5, "zorder": 2, "label": what}
    ax.barh(rows["rank"] + offset, rows["seconds"] * 1e3, height, left=rows["start_s"] * 1e3, **look)
    if lettering is not None:
        rows = rows[rows["kind"] == "span"]
        red, green, blue = _rgb(color)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        inside = {"color": PAPER if dark else INK, "zorder": 3, "clip_on": True, "ha": "center"}
        texts, points = _letterings(rows)[: lettering + 1][-1]
        for row, text in zip(rows.itertuples(), texts):
            middle_ms = (row.start_s + row.seconds / 2) * 1e3
            ax.text(middle_ms, row.rank + offset, text, fontsize=points, va="center", **inside)


def _letterings(rows: pd.DataFrame) -> list[tuple[pd.Series, float]]:
    """What can stand inside of spans, and how large, the best first: names, or their numbers alone."""
    names, numbers = rows["name"].str.partition("@")[0], rows["name"].str.extract(r"(\d+)")[0]
    return [(texts, points) for texts in (names, numbers) for points in _SIZES if not texts.isna().any()]


def _choose_letterings(ax: Axes, rows: pd.DataFrame) -> dict[str, int]:
    """For each kind of span the best lettering that has room in every one of them; a kind without such is
    left blank. Forwards and backwards are lettered alike.
    """
    # in inches; a tenth of the figure's width is the legend's
    inches = rows["seconds"] * 1e3 / ax.get_xlim()[1]
    inches *= ax.get_position().width * ax.figure.get_figwidth() * 0.9
    chosen = {}
    for what, spans in rows[rows["kind"] == "span"].groupby("what"):
        for nth, (texts, points) in enumerate(_letterings(spans)):
            if (inches[spans.index] > texts.str.len() * 0.0093 * points + 0.03).all():
                chosen[what] = nth
                break
    blocks = [what for what in chosen if what.startswith(_COMPUTING[:2])]
    return chosen | dict.fromkeys(blocks, max((chosen[what] for what in blocks), default=0))


def _draw_messages(ax: Axes, sent: list[tuple[int, float, int, float]]) -> None:
    """An arrow for each (rank, second) -> (rank, second)."""
    if not sent:
        return
    offset, height = _LANES[False]
    lines = []
    for sender, left_s, receiver, needed_s in sent:
        edge = height / 2 if receiver > sender else -height / 2
        lines.append([(left_s * 1e3, sender + offset + edge), (needed_s * 1e3, receiver + offset - edge)])
    ax.add_collection(
        LineCollection(lines, colors=SOFT, linewidths=0.7, zorder=2.5, label="message"), autolim=False
    )
    for marker, down in (("v", True), ("^", False)):
        heads = [end for begin, end in lines if (end[1] > begin[1]) == down]
        if heads:
            ax.scatter(*zip(*heads), s=9, marker=marker, color=SOFT, linewidths=0, zorder=4)
