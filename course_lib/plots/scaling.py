"""Draw whether more ranks made it faster."""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from course_lib.arguments import instance, one_of
from course_lib.plots.styles import FAINT, INK, MEASURED, MODELLED, PAPER, SLEEPS, SMALL, SOFT, legend, panel
from course_lib.record import Job, Sweep

__all__ = ["speedup"]

_DASHES = ((0, (4, 2)), (0, (7, 2, 1, 2)), (0, (2, 1)), (0, (10, 3)))  # of several models


def speedup(
    sweep: Sweep,
    theory: Callable[[int], float] | dict[str, Callable[[int], float]] | None = None,
    scaling: str | None = None,
    ax: Axes | None = None,
    sleeps: bool = False,
) -> Axes:
    """Draw the speed-up of every job of a sweep over the number of ranks, the median, and what an ideal
    machine would give.

    Args:
        sweep: a Sweep.
        theory: a model of the speed-up as a function of the number of ranks, or several as label -> function.
        scaling: "strong" (the same work in all) or "weak" (the same work per rank), for the title; the data
            alone do not tell.
        sleeps: the computing of these jobs was replaced by sleep. The figure says so, and takes the style
            SLEEPS.
    """
    one_of("scaling", scaling, ("strong", "weak", None))
    table = instance("sweep", sweep, Sweep, "as sweep returns it").table
    groups = table.groupby("ranks")
    middle, low, high = groups.median(), groups["speedup"].min(), groups["speedup"].max()
    ranks, base, last = list(middle.index), int(middle.index[0]), int(middle.index[-1])
    style = SLEEPS if sleeps else MEASURED
    ax = panel(
        f"{sweep.label}: {scaling + ' scaling' if scaling else 'speed-up'}",
        _where(sweep, ranks, sleeps),
        ax,
        xlabel="ranks",
        ylabel="speed-up over 1 rank (times)" if base == 1 else f"speed-up ({base} ranks count as {base})",
    )
    _draw_models(ax, np.unique(np.linspace(base, last, 64).astype(int)), theory)
    line_look = {**style, "marker": "", "zorder": 3}
    ax.plot(ranks, middle["speedup"], label="median (efficiency in %)", **line_look)
    dot_look = {**style, "linestyle": "", "alpha": 0.55, "zorder": 3}
    if not sleeps:
        dot_look["markeredgewidth"] = 0
    ax.plot(table["ranks"], table["speedup"], label="one job each", **dot_look)
    top = max(high.max(), *(line.get_ydata().max() for line in ax.lines))
    if last > 8:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylim(min(low.min(), base) * 0.6, top * 1.3)
        left, right = base / 1.25, last * 1.25
    else:
        ax.set_ylim(0, top * 1.12)
        margin = 0.12 * (last - base) + 0.2
        left, right = base - margin, last + margin
    _label_medians(ax, middle, low, high, near_the_axis=0.12 * top if last <= 8 else 0)
    ax.set_xlim(left, right)
    ax.set_xticks(ranks, [str(n) for n in ranks])
    ax.xaxis.set_minor_locator(NullLocator())
    cores = None if sleeps else _cores(_largest(sweep))
    if cores and last > cores:
        label = f"more ranks than cores ({cores}):\ncomputing cannot go faster"
        ax.axvspan(cores, right, color=FAINT, zorder=0, label=label)
    legend(ax)
    return ax


def _largest(sweep: Sweep) -> Job:
    return max(sweep.jobs, key=lambda job: job.ranks)


def _where(sweep: Sweep, ranks: list[int], sleeps: bool) -> str:
    """On what it was measured, for all numbers of ranks together."""
    machine = _largest(sweep).where.split(" ", 1)[1]  # without its number of ranks
    words = f"{', '.join(map(str, ranks))} {machine}; {sweep.repeats} repeat{'s' * (sweep.repeats > 1)}"
    threads = {count for job in sweep.jobs for count in job.records.get("threads", ())}
    if len(threads) == 1 and _largest(sweep).device == "cpu" and not sleeps:
        count = threads.pop()
        words += f"; {count} thread{'s' * (count != 1)} each"
    if all(job.steps.empty for job in sweep.jobs):
        words += "; times of the whole function, without measure.step"
    return words + "; compute sleeps" * sleeps


def _cores(job: Job) -> int | None:
    """Cores of the machine that a job on the CPU ran on, as its hardware says: "2 cores, AMD EPYC"."""
    found = re.match(r"(\d+) cores?,", job.hardware)
    return int(found[1]) if found and job.device == "cpu" else None


def _draw_models(ax: Axes, counts: np.ndarray, theory) -> None:
    ax.plot(counts, counts, **{**MODELLED, "color": SOFT, "linewidth": 1}, label="ideal: n ranks, n times")
    models = {"model": theory} if callable(theory) else dict(theory or {})
    for number, (name, model) in enumerate(models.items()):
        look = {**MODELLED, "linestyle": _DASHES[number % len(_DASHES)]}
        ax.plot(counts, [model(int(n)) for n in counts], label=f"{name} (modelled)", **look)


def _label_medians(ax: Axes, middle: pd.DataFrame, low, high, near_the_axis: float) -> None:
    """Write speed-up and efficiency under each median, or above it where there is no room."""
    box = {"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
    look = {"textcoords": "offset points", "ha": "center", "fontsize": SMALL, "color": INK, "zorder": 4}
    for n, row in middle.iterrows():
        above = low[n] < near_the_axis
        place = {"xy": (n, high[n]), "xytext": (0, 6), "va": "bottom"}
        if not above:
            place = {"xy": (n, low[n]), "xytext": (0, -6), "va": "top"}
        ax.annotate(f"{row['speedup']:.2f} ({row['efficiency']:.0%})", bbox=box, **place, **look)
