"""Draw what each rank sent in a step, in three layers."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib.plots.styles import COLORS, INK, NORMAL, PAPER, SMALL, SOFT, legend, panel
from course_lib.plots.traced import mark_ranks, require_trace, times_theory
from course_lib.plots.units import Unit
from course_lib.record import Job, calls, sent

__all__ = ["communication"]

_MEANINGS = {"payload": "asked for", "algorithm": "textbook", "wire": "counted"}
_SEEN = 0.005  # of the highest bar: less than a line is wide
_REMARK = {"ha": "center", "color": SOFT, "style": "italic"}


def communication(job: Job, theory: float | Sequence[float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the bytes of one step per rank in three layers: payload, algorithm, wire.

    Payload is what was handed to the collectives, algorithm what a textbook algorithm sends for it (both of
    the traced step, stacked by collective), wire what the operating system counted (median over the traced
    and timed steps).

    Args:
        theory: bytes that a rank should send in a step: one number, or one per rank. Drawn over algorithm and
            wire.
    """
    require_trace(job)
    predicted = None if theory is None else _one_per_rank(theory, job.ranks)
    layers = {
        "payload": _by_op(job, "payload"),
        "algorithm": _by_op(job, "algorithm"),
        "wire": _wire(job),
    }
    heights = [layer.sum(axis=1).max() for layer in layers.values() if layer is not None]
    top = max(1.0, *heights, *([] if predicted is None else predicted))
    unit = Unit.of(top)
    ylabel = f"{unit.name} per step"
    ax = panel(f"{job.label}: bytes per step and rank", job.where, ax, ylabel=ylabel, xlabel="rank")
    ticks, width = [], job.ranks + max(1.0, 0.35 * job.ranks)
    for group, (layer, table) in enumerate(layers.items()):
        x = group * width + np.arange(job.ranks)
        expected = None if layer == "payload" else predicted
        ratio = "" if table is None else times_theory(table.to_numpy().sum(), expected)
        _heading(ax, x.mean(), layer, _MEANINGS[layer], ratio)
        if table is None:
            reason = "not measured: " + job.absent.get("wire bytes", "this job holds no counts")
            ax.text(x.mean(), top / 2, textwrap.fill(reason, 24), va="center", fontsize=SMALL, **_REMARK)
        else:
            ticks += list(x[:: 1 if job.ranks <= 8 else -(-job.ranks // 5)])
            little = {op for op in table if table[op].max() < _SEEN * top}
            labels = {op: _calls(job, op) + "\n(too little to see)" * (op in little) for op in table}
            _bars(ax, x, table, expected, unit, labels)
    ax.set_xlim(-0.5 - 0.15 * width, 2 * width + job.ranks - 0.5 + 0.15 * width)
    ax.set_ylim(0, top * 1.5)
    mark_ranks(ax, ticks, [round(tick % width) for tick in ticks], job.roles)
    if job.comm.empty:
        why = "this step asked for no collective"
        if "collectives" in job.absent:
            why = f"not measured: {job.absent['collectives']}"
        ax.text(0.5, 0.45, textwrap.fill(why, 60), transform=ax.transAxes, fontsize=NORMAL, **_REMARK)
    unit.ticks(ax.yaxis)
    legend(ax, last="theory")
    return ax


def _one_per_rank(theory, ranks: int) -> np.ndarray:
    values = np.full(ranks, float(theory)) if np.ndim(theory) == 0 else np.asarray(theory, dtype=float)
    if values.shape != (ranks,):
        raise ValueError(
            f"theory has {len(values)} values: it must be one number, or one for each of the {ranks} ranks."
        )
    return values


def _by_op(job: Job, layer: str) -> pd.DataFrame:
    """Bytes of the traced step: one row per rank, one column per collective."""
    called = set(calls(job, barriers=True))
    table = {op: sent(job, layer=layer, ops=[op]) for op in COLORS if op in called}
    return pd.DataFrame(table, index=range(job.ranks))


def _wire(job: Job) -> pd.DataFrame | None:
    """Bytes that the operating system counted, if it did: one row per rank."""
    if "wire bytes" in job.absent or job.steps["wire_bytes"].isna().all():
        return None
    return sent(job).to_frame("wire")


def _calls(job: Job, op: str) -> str:
    """Legend entry of a collective, with how often each rank called it."""
    if op == "wire":
        return "wire, all together"
    times = calls(job, barriers=True)[op]
    low, high = times.min(), times.max()
    return f"{op}, {low if low == high else f'{low} to {high}'} call{'' if high == 1 else 's'}"


def _heading(ax: Axes, x: float, *lines: str) -> None:
    """Name of a layer, what it means, and how it compares with theory."""
    looks = ((0.99, NORMAL, "bold", INK), (0.93, SMALL, "normal", SOFT), (0.87, SMALL, "normal", INK))
    for line, (y, size, weight, color) in zip(lines, looks):
        place = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top"}
        behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # no line of the grid runs through it
        ax.text(x, y, line, fontsize=size, fontweight=weight, color=color, bbox=behind, **place)


def _bars(
    ax: Axes,
    x: np.ndarray,
    table: pd.DataFrame,
    predicted: np.ndarray | None,
    unit: Unit,
    labels: dict[str, str],
) -> None:
    """The bars of one layer, one for each rank, stacked by collective; theory is a dashed line over each."""
    total = np.zeros(len(x))
    for op in table:
        color = COLORS.get(op, COLORS["other"])
        look = {"color": color, "edgecolor": PAPER, "linewidth": 0.6, "label": labels[op]}
        ax.bar(x, table[op], 0.8, bottom=total, **look)
        total = total + table[op].to_numpy()
    if predicted is None:
        _label_bars(ax, x, total, total, unit)
        return
    look = {"color": INK, "linestyle": (0, (3, 1.2)), "linewidth": 1.8}
    ax.hlines(predicted, x - 0.48, x + 0.48, label=f"theory: {unit.text(*predicted)}", **look)
    _label_bars(ax, x, total, np.maximum(total, predicted), unit)


def _label_bars(ax: Axes, x: np.ndarray, values: np.ndarray, heights: np.ndarray, unit: Unit) -> None:
    """One label where the ranks agree to 2%, else one for each bar."""
    style = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom", "color": INK}
    if values.max() - values.min() <= 0.02 * values.max() or len(x) > 8:
        ax.annotate(unit.text(*values), (x.mean(), heights.max()), fontsize=SMALL, **style)
        return
    rotation = 90 if len(x) > 4 else 0
    for place, value, height in zip(x, values, heights):
        ax.annotate(unit.number(value), (place, height), fontsize=7.5, rotation=rotation, **style)
