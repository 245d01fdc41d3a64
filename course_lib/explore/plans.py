"""What if the model, the machine or the number of ranks were another: the best plans, by the cost model."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from course_lib.arguments import instance, number
from course_lib.explore.panel import Explorer
from course_lib.plan import A100, H100, Machine, Model, Ranked, here, layouts, ranked, transformer
from course_lib.plots.styles import COLORS, INK, MEASURED, OUTLINE, PAPER, SMALL, panel
from course_lib.plots.units import Unit, time_in_words

__all__ = ["planner"]

RANKS = (1, 2, 4, 8, 64, 512, 1024, 4096)
BEST = 5
NONE = "no plan can deal out this batch and these layers"
# layers, hidden, heads: as published (Narayanan et al. 2021, tables 1 and 2)
SHAPES = {"GPT, 1.7 billion": (24, 2304, 24), "GPT, 7.5 billion": (36, 4096, 32)}
SHAPES |= {"GPT, 39 billion": (48, 8192, 64), "GPT, 175 billion": (96, 12288, 96)}
# the parts of a step; those of the mesh's axes have their colours
PARTS = {"compute": COLORS["backward"], "bubble": COLORS["other"]}
PARTS |= {axis: COLORS[axis] for axis in ("tp", "pp", "dp")}
PARTS |= {"update": COLORS["optimizer"], "software": COLORS["activations"]}


def planner(
    machine: Machine | None = None,
    model: Model | None = None,
    measured: Mapping[str, float] | None = None,
) -> Explorer:
    """The best five plans of `plan.ranked`: their step, part by part, and the memory of a rank beside what
    the machine has.

    Args:
        machine: yours, as `plan.calibrate` has measured it: the first choice, with the trainings of
            course_lib.demo. A100 and H100 clusters follow, as the data sheets have them.
        model: yours, as `plan.describe` reads it; four GPTs with a batch of 2,048 sequences follow.
        measured: seconds of steps that you have measured on your machine with your model, by str(plan).
    """
    machines = {"A100, data sheet": A100, "H100, data sheet": H100}
    models = {
        name: transformer(layers, hidden, sequence=2048, batch=2048, heads=heads)
        for name, (layers, hidden, heads) in SHAPES.items()
    }
    if machine is not None:
        machines = {"yours, measured": instance("machine", machine, Machine)} | machines
    if model is not None:
        models = {f"yours: {instance('model', model, Model).name}": model} | models
    ran = dict(instance("measured", {} if measured is None else measured, Mapping))
    for name, seconds in ran.items():
        number(f"measured[{name!r}]", seconds, above=True)

    yours = model, machine

    def draw(model, machine, ranks) -> tuple[Axes, pd.DataFrame]:
        plans = layouts(ranks, model)
        if machine.software_s and ranks <= 64:  # its own ranks have measured what these ways take
            plans = [its for its in here((ranks,)) if its.way in machine.software_s]
        best = ranked(model, machine, plans)[:BEST]
        own = (model, machine) == yours
        dots = {k: ran[str(its.plan)] for k, its in enumerate(best) if own and str(its.plan) in ran}
        names = [
            next(name for name, its in choices.items() if its == chosen)
            for choices, chosen in ((models, model), (machines, machine))
        ]
        ax = _bars(best, dots, "; ".join(names), ranks, machine.memory_bytes)
        rows = {_name(its): _row(its) for its in best} or {"no plan": {"why": NONE}}
        table = pd.DataFrame(rows).T
        if dots:
            table.insert(
                1, "measured", [time_in_words(dots[k]) if k in dots else "" for k in range(len(best))]
            )
        return ax, table

    controls = {"model": models, "machine": machines, "ranks": RANKS}
    start = {"ranks": 2 if machine is not None else 1024}
    if model is None:
        start["model"] = models["GPT, 39 billion"]
    return Explorer("The best plans", controls, draw, **start)


def _name(its: Ranked) -> str:
    plan = its.plan
    mesh = ", ".join(f"{axis} {size}" for axis in ("dp", "tp", "pp") if (size := getattr(plan, axis)) > 1)
    more = [mesh or "1 rank"]
    if plan.microbatches > 1:
        more.append(f"m {plan.microbatches}")
    return f"{plan.way}: {', '.join(more)}" + ", recompute" * plan.recompute


def _row(its: Ranked) -> dict[str, str]:
    cost = its.cost
    return {
        "step": time_in_words(cost.step_s),
        "compute": f"{cost.seconds['compute'] / cost.step_s:.0%}",
        "a rank sends": Unit.of(sent := sum(cost.sent.values())).text(sent),
        "memory": Unit.of(cost.peak_bytes).text(cost.peak_bytes),
        "fits": "yes" if cost.fits else "no",
        "why it is where it is": its.reason,
    }


def _bars(best: list[Ranked], dots: dict[int, float], what: str, ranks: int, memory_bytes: float) -> Axes:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.4), sharey=True, gridspec_kw={"width_ratios": (2, 1)}
    )
    on = f"{ranks:,} rank{'s' * (ranks > 1)}"
    title = f"Best on {on}: {time_in_words(best[0].cost.step_s)} a step" if best else f"{on}: {NONE}"
    if best and not best[0].cost.fits:
        title = f"No plan fits on {on}"
    panel(title, f"modelled: {what}" + "; dots: measured" * bool(dots), left, grid="x")
    has = Unit.of(memory_bytes).text(memory_bytes)
    panel("Memory of a rank", f"modelled; the machine has {has}", right, grid="x")
    at, steps = range(len(best)), [its.cost.step_s for its in best]
    longest_s = max([*steps, *dots.values()], default=0)
    unit_s, unit = (1e-3, "ms") if longest_s < 1 else (1, "s") if longest_s < 600 else (60, "min")
    begin = np.zeros(len(best))
    for part, color in PARTS.items():
        length = np.array([its.cost.seconds[part] for its in best]) / unit_s
        if length.any():
            _lie(left, begin, length, 0.62, facecolor=color, edgecolor=PAPER, linewidth=0.5, label=part)
            begin = begin + length
    peaks = [its.cost.peak_bytes for its in best]
    most = 1.2 * max(peaks, default=memory_bytes)
    if memory_bytes < 20 * most:
        most = max(most, 1.1 * memory_bytes)
        right.axvline(memory_bytes, color="#CF222E", linewidth=1.2)
    size = Unit.of(most)
    colors = [COLORS["other"] if its.cost.fits else "#CF222E" for its in best]
    outline = {name: its for name, its in OUTLINE.items() if name != "fill"} | {"facecolor": "none"}
    nothing = np.zeros(len(best))
    _lie(right, nothing, peaks, 0.62, facecolor=colors)
    for ax, lengths in ((left, begin), (right, peaks)):
        _lie(ax, nothing, lengths, 0.7, **outline)
    if dots:  # with a rim: bars may have their colour
        look = MEASURED | {"linestyle": "", "markersize": 8, "markeredgecolor": PAPER, "markeredgewidth": 1.5}
        left.plot([s / unit_s for s in dots.values()], list(dots), **look, label="measured")
    right.yaxis.set_visible(False)  # it is that of the left
    right.set_xlim(0, most)
    size.ticks(right.xaxis)
    right.set_xlabel(size.name)
    left.set_xlabel(f"{unit} of a step")
    left.set_yticks(at, [_name(its).replace(": ", ":\n", 1) for its in best], fontsize=SMALL, color=INK)
    left.tick_params(axis="y", length=0)
    left.set_ylim(max(len(best), 1) - 0.4, -0.75)
    left.set_xlim(0, 1.05 * longest_s / unit_s or 1)
    for ax in (left, right):  # each number takes as long as all bars
        ax.locator_params("x", nbins=5, steps=[1, 2, 5, 10])
    if best:
        count = len(PARTS) + bool(dots)  # below both panels: in one row, and as wide as they are
        figure.legend(loc="lower left", ncols=count, frameon=False, fontsize=SMALL, columnspacing=1.4)
    return left


def _lie(ax: Axes, begins: Sequence, lengths: Sequence, height: float, **look) -> None:
    """Bars that lie, of one series: as one collection, since a patch for each takes long to make and draw."""
    low, high = -height / 2, height / 2
    corners = [
        ((begin, k + low), (begin + length, k + low), (begin + length, k + high), (begin, k + high))
        for k, (begin, length) in enumerate(zip(begins, lengths))
    ]
    ax.add_collection(PolyCollection(corners, **look), autolim=False)
