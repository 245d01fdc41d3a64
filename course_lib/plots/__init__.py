"""Draw a job: what it sent, what it held, how it spent its time, and whether more ranks made it faster.

Each function takes measured data, draws on `ax` (a new figure if None) and returns the Axes; nothing is
saved, shown or configured. What was measured, what was modelled and what others have published never look
alike:

    measured    solid, in colour      MEASURED
    sleeps      dash-dotted, hollow   SLEEPS      measured, but the computing is replaced by sleep
    modelled    dashed, dark          MODELLED
    published   dotted, grey, hollow  PUBLISHED

They are keyword arguments of `Axes.plot`, and COLORS has one colour for each collective, kind of memory and
kind of work (Okabe and Ito's, and Tol's for the rarer ones, which colour-blind readers can tell apart), so
that a figure of your own fits in: `plots.panel("My title", job.where).plot(x, y, **plots.MEASURED)`.
"""

import re
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from course_lib.arguments import instance, one_of
from course_lib.plots.styles import (
    COLORS,
    FAINT,
    INK,
    MEASURED,
    MODELLED,
    NORMAL,
    OUTLINE,
    PAPER,
    PUBLISHED,
    SLEEPS,
    SMALL,
    SOFT,
    in_unit,
    legend,
    panel,
    range_text,
    ticks_in_units,
    unit_for,
)
from course_lib.ranks import devices
from course_lib.record import Job, Sweep

__all__ = [
    "communication",
    "memory",
    "speedup",
    "timeline",
    "panel",
    "MEASURED",
    "SLEEPS",
    "MODELLED",
    "PUBLISHED",
    "COLORS",
]

# Tol's muted colours, for spans with names of their own
_SPAN_COLORS = ("#44AA99", "#AA4499", "#999933", "#332288", "#DDCC77", "#882255")
# from the bottom: what has a closed form comes first
_CATEGORIES = ("params", "grads", "optimizer_states", "buffers", "activations", "other")


def communication(job: Job, theory: float | Sequence[float] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the bytes of one step per rank in three layers: payload, algorithm, wire.

    Payload is what was handed to the collectives, algorithm what a textbook algorithm sends for it (both of
    the traced step, stacked by collective), wire what the operating system counted (median over the traced
    and timed steps).

    Args:
        theory: bytes that a rank should send in a step: one number, or one per rank. Drawn over algorithm and
            wire.
    """
    _require_trace(job)
    predicted = None if theory is None else _per_rank("theory", theory, job.ranks)
    layers = {
        "payload": _by_op(job, "payload_bytes"),
        "algorithm": _by_op(job, "algorithm_bytes"),
        "wire": _wire(job),
    }
    top = max(
        [
            1.0,
            *(layer.sum(axis=1).max() for layer in layers.values() if layer is not None),
            *([] if predicted is None else predicted),
        ]
    )
    scale, unit = unit_for(top)
    ax = panel(
        f"{job.label}: bytes per step and rank", job.where, ax, ylabel=f"{unit} per step", xlabel="rank"
    )
    ticks, width = [], job.ranks + max(1.0, 0.35 * job.ranks)
    meanings = {"payload": "asked for", "algorithm": "textbook", "wire": "counted"}
    for group, (layer, table) in enumerate(layers.items()):
        x = group * width + np.arange(job.ranks)
        middle = x.mean()
        _heading(
            ax,
            middle,
            layer,
            meanings[layer],
            None if table is None or layer == "payload" else _ratio(table.to_numpy().sum(), predicted),
        )
        if table is None:
            reason = textwrap.fill(
                "not measured: " + job.absent.get("wire bytes", "this job holds no counts"), 24
            )
            ax.text(
                middle,
                top * 0.5,
                reason,
                ha="center",
                va="center",
                fontsize=SMALL,
                color=SOFT,
                style="italic",
            )
            continue
        ticks += list(x[:: 1 if job.ranks <= 8 else -(-job.ranks // 5)])
        total = np.zeros(job.ranks)
        for op in table:
            ax.bar(
                x,
                table[op],
                0.8,
                bottom=total,
                color=COLORS.get(op, COLORS["other"]),
                edgecolor=PAPER,
                linewidth=0.6,
                label=_calls(job, op),
            )
            total = total + table[op].to_numpy()
        heights = total
        if predicted is not None and layer != "payload":
            ax.hlines(
                predicted,
                x - 0.48,
                x + 0.48,
                color=INK,
                linestyle=(0, (3, 1.2)),
                linewidth=1.8,
                label=f"theory: {range_text(predicted, scale, unit)}",
            )
            heights = np.maximum(total, predicted)
        _label_bars(ax, x, total, heights, scale, unit)
    ax.set_xlim(-0.5 - 0.15 * width, 2 * width + job.ranks - 0.5 + 0.15 * width)
    ax.set_ylim(0, top * 1.5)
    ax.set_xticks(ticks, [str(round(tick % width)) for tick in ticks])
    if job.comm.empty:
        why = (
            f"not measured: {job.absent['collectives']}"
            if "collectives" in job.absent
            else "this step asked for no collective"
        )
        ax.text(
            0.5,
            0.45,
            textwrap.fill(why, 60),
            transform=ax.transAxes,
            ha="center",
            fontsize=NORMAL,
            color=SOFT,
            style="italic",
        )
    ticks_in_units(ax.yaxis, scale)
    legend(ax, last="theory")
    return ax


def memory(
    job: Job, theory: dict[str, float] | Sequence[dict[str, float]] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw what each rank held in the traced step, stacked by what it is for; the total stands above each
    bar.

    Args:
        theory: category -> bytes, for all ranks or as one dict per rank; drawn as a dashed outline around the
            categories that it names.
            Categories: params, grads, optimizer_states, buffers, activations, other.
    """
    _require_trace(job)
    held = (
        job.memory.pivot_table(index="rank", columns="category", values="bytes", aggfunc="sum")
        .reindex(range(job.ranks))
        .fillna(0)
    )
    present = [category for category in _CATEGORIES if category in held and held[category].any()]
    unknown = {layer: job.absent[layer] for layer in ("model states", "activations") if layer in job.absent}
    if not present:
        if unknown:
            raise ValueError(f"{job.label} could not count its memory: {'; '.join(unknown.values())}.")
        raise ValueError(
            f"{job.label} counted no memory: tell measure.step what to count, as in `with measure.step(model,"
            " optimizer):`."
        )
    predicted = _theory_table(theory, job.ranks)
    total, x = held[present].sum(axis=1).to_numpy(), np.arange(job.ranks)
    top = max(total.max(), *predicted.sum(axis=1)) if predicted is not None else total.max()
    scale, unit = unit_for(top)
    where = job.where + "".join(f"; {layer} are not drawn: {reason}" for layer, reason in unknown.items())
    ax = panel(f"{job.label}: memory per rank", where, ax, ylabel=f"memory ({unit})")
    bottom = np.zeros(job.ranks)
    for category in present:
        ax.bar(
            x,
            held[category],
            0.6,
            bottom=bottom,
            color=COLORS[category],
            edgecolor=PAPER,
            linewidth=0.6,
            label=category,
        )
        bottom = bottom + held[category].to_numpy()
    if predicted is not None:
        outline, covered = (
            predicted.sum(axis=1).to_numpy(),
            held.reindex(columns=predicted.columns, fill_value=0).to_numpy().sum(),
        )
        ax.bar(x, outline, 0.74, **OUTLINE, zorder=3, label=f"theory\nmeasured: {_ratio(covered, outline)}")
        for level in predicted.cumsum(axis=1).iloc[:, :-1].to_numpy().T:
            ax.hlines(level, x - 0.37, x + 0.37, color=INK, linestyle=(0, (4, 2)), linewidth=1)
    for rank, height in enumerate(total if predicted is None else np.maximum(total, outline)):
        ax.annotate(
            in_unit(total[rank], scale, unit if job.ranks <= 6 else ""),
            (rank, height),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL if job.ranks <= 8 else 6.5,
            color=INK,
        )
    peak_note = ""
    if "peak" in held and held["peak"].any():
        peak = held["peak"].to_numpy()
        if peak.max() <= 2 * top:
            ax.hlines(peak, x - 0.3, x + 0.3, color=COLORS["wire"], linewidth=2.5, label="peak")
            top = max(top, peak.max())
        else:
            what = (
                "the allocator's peak"
                if job.device == "cuda"
                else "at its peak the whole process had grown by"
            )
            peak_note = f"\n({what} {range_text(peak, *unit_for(peak.max()))})"
    ax.set_xlabel("rank" + peak_note, fontsize=NORMAL, color=INK)
    ax.set_ylim(0, top * 1.12)
    ax.set_xlim(-0.75 - max(0, 3 - job.ranks) * 0.4, job.ranks - 0.25 + max(0, 3 - job.ranks) * 0.4)
    ax.set_xticks(x)
    ticks_in_units(ax.yaxis, scale)
    legend(ax, reverse=True)
    return ax


def speedup(
    sweep,
    theory: Callable[[int], float] | dict[str, Callable[[int], float]] | None = None,
    scaling: str | None = None,
    ax: Axes | None = None,
    sleeps: bool = False,
) -> Axes:
    """Draw the speed-up of every job of a sweep over the number of ranks, the median, and what an ideal
    machine would give.

    Args:
        sweep: a Sweep. theory: a model of the speed-up as a function of the number of ranks, or several as
            label -> function.
        scaling: "strong" (the same work in all) or "weak" (the same work per rank), for the title; the data
            alone do not tell.
        sleeps: the computing of these jobs was replaced by sleep. The figure says so, and takes the style
            SLEEPS.
    """
    one_of("scaling", scaling, ("strong", "weak", None))
    table = instance("sweep", sweep, Sweep, "as sweep returns it").table
    middle = table.groupby("ranks")[["speedup", "efficiency"]].median()
    low, high = table.groupby("ranks")["speedup"].min(), table.groupby("ranks")["speedup"].max()
    ranks, base, last = list(middle.index), int(middle.index[0]), int(middle.index[-1])
    job = max(sweep.jobs, key=lambda job: job.ranks)
    where = (
        f"{', '.join(map(str, ranks))} {job.where.split(' ', 1)[1]}; {sweep.repeats}"
        f" repeat{'s' * (sweep.repeats > 1)}"
    )
    if all(job.steps.empty for job in sweep.jobs):
        where += "; times of the whole function, without measure.step"
    style = SLEEPS if sleeps else MEASURED
    where += "; compute sleeps" if sleeps else ""
    ax = panel(
        f"{sweep.label}: {scaling + ' scaling' if scaling else 'speed-up'}",
        where,
        ax,
        xlabel="ranks",
        ylabel="speed-up over 1 rank (times)" if base == 1 else f"speed-up ({base} ranks count as {base})",
    )
    counts = np.unique(np.linspace(base, last, 64).astype(int))
    ax.plot(counts, counts, **{**MODELLED, "color": SOFT, "linewidth": 1}, label="ideal: n ranks, n times")
    models = {"model": theory} if callable(theory) else dict(theory or {})
    dashes = [(0, (4, 2)), (0, (7, 2, 1, 2)), (0, (2, 1)), (0, (10, 3))]
    for position, (label, model) in enumerate(models.items()):
        ax.plot(
            counts,
            [model(int(n)) for n in counts],
            **{**MODELLED, "linestyle": dashes[position % 4]},
            label=f"{label} (modelled)",
        )
    ax.fill_between(
        ranks, low, high, color=style["color"], alpha=0.15, linewidth=0, label="lowest to highest"
    )
    ax.plot(ranks, middle["speedup"], **{**style, "marker": ""}, label="median (efficiency in %)", zorder=3)
    ax.plot(
        table["ranks"],
        table["speedup"],
        **{**style, "linestyle": "", "alpha": 0.55, **({} if sleeps else {"markeredgewidth": 0})},
        label="one job each",
        zorder=3,
    )
    top = max(high.max(), *(line.get_ydata().max() for line in ax.lines))
    if last > 8:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylim(min(low.min(), base) * 0.6, top * 1.3)
    else:
        ax.set_ylim(0, top * 1.12)
    for n, row in middle.iterrows():
        above = last <= 8 and low[n] < 0.12 * top
        ax.annotate(
            f"{row['speedup']:.2f} ({row['efficiency']:.0%})",
            (n, high[n] if above else low[n]),
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=SMALL,
            color=INK,
            zorder=4,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8},
        )
    left, right = (
        (base / 1.25, last * 1.25)
        if last > 8
        else (base - 0.12 * (last - base) - 0.2, last + 0.12 * (last - base) + 0.2)
    )
    ax.set_xlim(left, right)
    ax.set_xticks(ranks, [str(n) for n in ranks])
    ax.xaxis.set_minor_locator(NullLocator())
    cores = devices.usable_cores()
    # only if this is the machine that the job ran on
    if not sleeps and job.device == "cpu" and job.hardware == devices.cpu_name() and last > cores:
        ax.axvspan(
            cores,
            right,
            color=FAINT,
            zorder=0,
            label=f"more ranks than cores ({cores}):\ncomputing cannot go faster",
        )
    legend(ax)
    return ax


def timeline(job: Job, ax: Axes | None = None) -> Axes:
    """Draw what each rank did and when in the traced step: computing and spans in a wide lane, communication
    in a thin one beneath.

    Empty lane is idle time; the share of the step in which a rank computed stands under its number. A span
    named like a micro-batch of a pipeline ("F0", "forward 3", "B1", or "B1@5" on stage 5) has the colour of
    its kind. Communication includes waiting for the other ranks.
    """
    _require_trace(job)
    rows = job.timeline
    if rows.empty and "timeline" in job.absent:
        raise ValueError(f"{job.label} has no timeline: {job.absent['timeline']}.")
    if rows.empty:
        raise ValueError(
            f"{job.label} has an empty timeline: put the work of a step inside `with measure.step(model,"
            " optimizer):`."
        )
    rows = rows.assign(
        what=[_what(kind, name) for kind, name in zip(rows["kind"], rows["name"])],
        end_s=rows["start_s"] + rows["seconds"],
    )
    length_s = rows["end_s"].max()
    where = job.where
    if "collective times" in job.absent:
        where += f"; communication is not drawn: {job.absent['collective times']}"
    ax = panel(
        f"{job.label}: one step",
        where,
        ax,
        size=(7, max(2.4, 1.5 + 0.5 * job.ranks)),
        xlabel="ms since the first rank began the traced step",
        grid="x",
    )
    ax.set_xlim(0, length_s * 1e3)
    # communication? -> offset from the rank's number, height
    lanes = {False: (-0.14, 0.5), True: (0.28, 0.22)}
    for offset, height in lanes.values():
        ax.barh(np.arange(job.ranks) + offset, length_s * 1e3, height, color=FAINT, zorder=0)
    colors = iter(_SPAN_COLORS * len(rows))
    order = ["forward", "backward", "optimizer"]
    names = sorted(rows["what"].unique(), key=lambda what: order.index(what) if what in order else 3)
    for what in sorted(
        names, key=lambda what: what in set(rows.loc[rows["kind"] == "communication", "what"])
    ):
        part = rows[rows["what"] == what]
        color = COLORS.get(what) or next(colors)
        offset, height = lanes[bool((part["kind"] == "communication").any())]
        ax.barh(
            part["rank"] + offset,
            part["seconds"] * 1e3,
            height,
            left=part["start_s"] * 1e3,
            color=color,
            edgecolor=PAPER,
            linewidth=0.5,
            label=what,
            zorder=2,
        )
        for row in part[part["kind"] == "span"].itertuples():
            _write_inside(ax, row.start_s * 1e3, row.seconds * 1e3, row.rank + offset, row.name, color)
    busy = [
        _union_s(rows[(rows["rank"] == rank) & (rows["kind"] != "communication")]) / length_s
        for rank in range(job.ranks)
    ]
    ax.set_yticks(range(job.ranks), [f"rank {rank}\n{share:.0%} busy" for rank, share in enumerate(busy)])
    ax.tick_params(axis="y", length=0, labelsize=SMALL)
    ax.set_ylim(job.ranks - 0.5, -0.5)
    legend(ax)
    return ax


def _require_trace(job: Job) -> None:
    if instance("job", job, Job, "as run returns it").steps.empty:
        raise ValueError(
            f"{job.label} has no measured step to draw: put each training step inside `with"
            " measure.step(model, optimizer):` and run it again."
        )
    if not (job.steps["phase"] == "traced").any():
        raise ValueError(
            f"{job.label} measured only its warm-up step: run at least two steps inside measure.step, because"
            " the second one is traced."
        )


def _by_op(job: Job, column: str) -> pd.DataFrame:
    """Bytes of the traced step: one row per rank, one column per collective."""
    table = (
        job.comm.pivot_table(index="rank", columns="op", values=column, aggfunc="sum")
        .reindex(range(job.ranks))
        .fillna(0)
    )
    return table[[op for op in COLORS if op in table] + [op for op in table if op not in COLORS]]


def _wire(job: Job) -> pd.DataFrame | None:
    steps = job.steps[job.steps["phase"] != "warm-up"].dropna(subset="wire_bytes")
    if "wire bytes" in job.absent or steps.empty:
        return None
    return (
        steps.groupby("rank")["wire_bytes"]
        .median()
        .astype(float)
        .reindex(range(job.ranks))
        .fillna(0)
        .to_frame("wire")
    )


def _calls(job: Job, op: str) -> str:
    """Legend entry of a collective, with how often each rank called it."""
    if op == "wire":
        return "wire, all together"
    calls = job.comm[job.comm["op"] == op].groupby("rank").size().reindex(range(job.ranks), fill_value=0)
    low, high = calls.min(), calls.max()
    return f"{op}, {low if low == high else f'{low} to {high}'} call{'' if high == 1 else 's'}"


def _per_rank(name: str, value, ranks: int) -> np.ndarray:
    values = np.full(ranks, float(value)) if np.ndim(value) == 0 else np.asarray(value, dtype=float)
    if values.shape != (ranks,):
        raise ValueError(
            f"{name} has {len(values)} values: it must be one number, or one for each of the {ranks} ranks."
        )
    return values


def _theory_table(theory, ranks: int) -> pd.DataFrame | None:
    """Predicted bytes, one row per rank, one column per category in the order of the stack."""
    if theory is None:
        return None
    rows = [theory] * ranks if isinstance(theory, dict) else list(theory)
    if len(rows) != ranks:
        raise ValueError(
            f"theory has {len(rows)} entries: it must be one dict, or one for each of the {ranks} ranks."
        )
    if unknown := {category for row in rows for category in row} - set(_CATEGORIES):
        raise ValueError(
            f"theory names the unknown category {sorted(unknown)[0]!r}: it must be one of"
            f" {', '.join(_CATEGORIES)}."
        )
    table = pd.DataFrame(rows).fillna(0).astype(float)
    return table[[category for category in _CATEGORIES if category in table]]


def _heading(ax: Axes, x: float, title: str, meaning: str, ratio: str | None) -> None:
    for text, y, size, weight, color in (
        (title, 0.99, NORMAL, "bold", INK),
        (meaning, 0.93, SMALL, "normal", SOFT),
        (ratio, 0.87, SMALL, "normal", INK),
    ):
        ax.text(
            x,
            y,
            text or "",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=size,
            fontweight=weight,
            color=color,
        )


def _label_bars(ax: Axes, x, values, heights, scale: float, unit: str) -> None:
    """One label where the ranks agree to 2%, else one for each bar."""
    style = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom", "color": INK}
    if values.max() - values.min() <= 0.02 * values.max() or len(x) > 8:
        ax.annotate(range_text(values, scale, unit), (x.mean(), heights.max()), fontsize=SMALL, **style)
        return
    for position, value, height in zip(x, values, heights):
        ax.annotate(
            in_unit(value, scale, ""),
            (position, height),
            fontsize=7.5,
            rotation=90 if len(x) > 4 else 0,
            **style,
        )


def _ratio(measured: float, predicted) -> str | None:
    """Measurement over theory, both summed over the ranks."""
    return (
        None
        if predicted is None or not predicted.sum()
        else f"{measured / predicted.sum():.2f} \u00d7 theory"
    )


def _what(kind: str, name: str) -> str:
    """What a piece of the timeline is called in the legend: an op, a kind of computing, or a span's name
    without its number.
    """
    if kind != "span":
        return name if kind == "communication" else kind
    if match := re.fullmatch(r"(f|fwd|forward|b|bwd|backward)[\s_]*\d*(@\d+)?", name, re.IGNORECASE):
        return "forward" if match[1][0] in "fF" else "backward"
    return re.sub(r"[\s_]*\d+$", "", name) or name


def _union_s(rows: pd.DataFrame) -> float:
    """Seconds covered by pieces that may overlap."""
    covered, end = 0.0, 0.0
    for row in rows.sort_values("start_s").itertuples():
        covered += max(0.0, row.end_s - max(row.start_s, end))
        end = max(end, row.end_s)
    return covered


def _write_inside(ax: Axes, left: float, width: float, y: float, text: str, color: str) -> None:
    """Write into a bar if there is room."""
    # the legend takes some
    width_in = width / ax.get_xlim()[1] * ax.get_position().width * ax.figure.get_figwidth() * 0.9
    if width_in > 0.07 * len(text) + 0.03:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        ax.text(
            left + width / 2,
            y,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            color=PAPER if dark else INK,
            zorder=3,
            clip_on=True,
        )
