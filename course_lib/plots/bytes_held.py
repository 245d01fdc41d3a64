"""Draw what each rank held in a step, stacked by what it is for."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib.plots.styles import COLORS, INK, NORMAL, OUTLINE, PAPER, SMALL, SOFT, legend, panel, wrapped
from course_lib.plots.traced import mark_ranks, require_trace, times_theory
from course_lib.plots.units import Unit
from course_lib.record import Job, held
from course_lib.record.tables import CATEGORIES

__all__ = ["memory"]


def memory(
    job: Job, theory: dict[str, float] | Sequence[dict[str, float]] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw what each rank held in the traced step, stacked by what it is for; the total stands above each
    bar.

    Args:
        theory: category -> bytes, for all ranks or as one dict per rank; drawn as a dashed outline around the
            categories that it names. Categories: params, grads, optimizer_states, buffers, activations,
            other.
    """
    require_trace(job)
    present = _categories_to_draw(job)
    table = held(job)
    predicted = _theory_table(theory, job.ranks)
    total, x = table[present].sum(axis=1).to_numpy(), np.arange(job.ranks)
    outline = None if predicted is None else predicted.sum(axis=1).to_numpy()
    heights = total if outline is None else np.maximum(total, outline)
    top = heights.max()
    unit = Unit.of(top)
    unknown = [f"; {layer} are not drawn: {reason}" for layer, reason in _not_counted(job).items()]
    where, ylabel = "".join([job.where, *unknown]), f"memory ({unit.name})"
    ax = panel(f"{job.label}: memory per rank", where, ax, ylabel=ylabel)
    bottom = np.zeros(job.ranks)
    for category in present:
        look = {"color": COLORS[category], "edgecolor": PAPER, "linewidth": 0.6, "label": category}
        ax.bar(x, table[category], 0.6, bottom=bottom, **look)
        bottom = bottom + table[category].to_numpy()
    if predicted is not None:
        covered = table.reindex(columns=predicted.columns, fill_value=0).to_numpy().sum()
        label = f"theory\nmeasured: {times_theory(covered, outline)}"
        ax.bar(x, outline, 0.74, **OUTLINE, zorder=3, label=label)
        for level in predicted.cumsum(axis=1).iloc[:, :-1].to_numpy().T:
            ax.hlines(level, x - 0.37, x + 0.37, color=INK, linestyle=(0, (4, 2)), linewidth=1)
    style = {"textcoords": "offset points", "ha": "center", "color": INK}
    write = unit.text if job.ranks <= 6 else unit.number
    for rank, height in enumerate(heights):
        fontsize = SMALL if job.ranks <= 8 else 6.5
        ax.annotate(write(total[rank]), (rank, height), xytext=(0, 4), fontsize=fontsize, **style)
    top, peak_note = _draw_peak(ax, job, table, x, top)
    ax.set_xlabel("rank", fontsize=NORMAL, color=INK)
    if peak_note:
        below = {"xytext": (0, -4), "textcoords": "offset points", "xycoords": ax.xaxis.label}
        note = {"ha": "center", "va": "top", "fontsize": SMALL, "style": "italic", "color": SOFT}
        ax.annotate(wrapped(peak_note, ax), (0.5, 0), **note, **below)
    ax.set_ylim(0, top * 1.12)
    ax.set_xlim(-0.75 - max(0, 3 - job.ranks) * 0.4, job.ranks - 0.25 + max(0, 3 - job.ranks) * 0.4)
    mark_ranks(ax, x, range(job.ranks), job.roles)
    unit.ticks(ax.yaxis)
    legend(ax, reverse=True)
    return ax


def _not_counted(job: Job) -> dict[str, str]:
    return {layer: job.absent[layer] for layer in ("model states", "activations") if layer in job.absent}


def _categories_to_draw(job: Job) -> list[str]:
    counted = set(job.memory.loc[job.memory["bytes"] > 0, "category"])
    if present := [category for category in CATEGORIES if category in counted]:
        return present
    if unknown := _not_counted(job):
        raise ValueError(f"{job.label} could not count its memory: {'; '.join(unknown.values())}.")
    raise ValueError(
        f"{job.label} counted no memory: tell measure.step what to count, as in `with measure.step(model,"
        " optimizer):`."
    )


def _theory_table(theory, ranks: int) -> pd.DataFrame | None:
    """Predicted bytes, one row per rank, one column per category in the order of the stack."""
    if theory is None:
        return None
    rows = [theory] * ranks if isinstance(theory, dict) else list(theory)
    if len(rows) != ranks:
        raise ValueError(
            f"theory has {len(rows)} entries: it must be one dict, or one for each of the {ranks} ranks."
        )
    if unknown := {category for row in rows for category in row} - set(CATEGORIES):
        raise ValueError(
            f"theory names the unknown category {sorted(unknown)[0]!r}: it must be one of"
            f" {', '.join(CATEGORIES)}."
        )
    table = pd.DataFrame(rows).fillna(0).astype(float)
    return table[[category for category in CATEGORIES if category in table]]


def _draw_peak(ax: Axes, job: Job, table: pd.DataFrame, x: np.ndarray, top: float) -> tuple[float, str]:
    """Draw the peak if it is near, else put it into words, so that it does not ruin the scale.

    Returns the top of what is drawn, and the words.
    """
    if "peak" not in table or not table["peak"].any():
        return top, ""
    peak = table["peak"].to_numpy()
    if peak.max() <= 2 * top:
        ax.hlines(peak, x - 0.3, x + 0.3, color=COLORS["wire"], linewidth=2.5, label="peak")
        return max(top, peak.max()), ""
    what = "the allocator's peak" if job.device == "cuda" else "at its peak the whole process had grown by"
    return top, f"not drawn: {what} {Unit.of(peak.max()).text(*peak)}"
