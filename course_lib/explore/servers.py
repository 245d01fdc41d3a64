"""What if one worker were slower: how old gradients get, and how many samples a second a parameter server
takes in.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import instance, listed, number, whole
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import CHOSEN, MEASURED, MODELLED, SLEEPS, legend, panel
from course_lib.plots.units import time_in_words

__all__ = ["staleness"]

WORKERS, SLOWER = (2, 3, 4, 8, 16, 32, 64), (1, 1.5, 2, 4, 8, 16)
ACROSS = (1, 1.001, *SLOWER[1:])  # a bounded server changes as soon as somebody is slower
POLICIES = {"all wait: bound 0": 0.0, "a little ahead: bound 2": 2.0, "nobody waits: no bound": math.inf}
COLORS = {0.0: "#0072B2", 2.0: "#E69F00", math.inf: "#D55E00"}
SHORT = {0.0: "bound 0", 2.0: "bound 2", math.inf: "no bound"}


def staleness(
    compute_s: float = 0.02,
    samples: int = 32,
    measured: Mapping[float, Sequence] | None = None,
    slower: float = 4,
    asleep: bool = True,
) -> Explorer:
    """A parameter server whose workers wait for all, for some or for nobody, while one of them is always
    slower than the rest: samples per second, and the mean staleness of gradients. Sending takes no time.

    Args:
        compute_s: seconds in which a worker makes a gradient; the slow one takes so many times as long.
        samples: of one gradient.
        measured: of servers that have run, bound -> history, a list of (worker, staleness, second) for each
            update: drawn where there are as many workers and one is so much slower.
        slower: how many times as long as the others the slow worker of these took; one of the choices.
        asleep: they slept in the place of computing.
    """
    number("compute_s", compute_s, above=True)
    whole("samples", samples)
    ran = {}
    for bound, history in instance("measured", {} if measured is None else measured, Mapping).items():
        ran[number("a bound", bound, finite=False)] = _read(history, samples)
    workers_of_runs = max((its["workers"] for its in ran.values()), default=0)
    ran_as = "asleep" if instance("asleep", asleep, bool) else "measured"
    if number("slower", slower) not in SLOWER:
        raise ValueError(f"slower={slower!r}: it must be one of {', '.join(map(str, SLOWER))}.")

    def modelled(workers, bound, slowest) -> tuple[float, float]:
        found = theory.server_with_straggler(workers, compute_s, slowest, bound)
        return samples * found["updates_per_second"], found["staleness"]

    def draw(workers, policy, slowest) -> tuple[Axes, pd.DataFrame]:
        shown = ran if (workers, slowest) == (workers_of_runs, slower) else {}
        rows = {}
        for bound in POLICIES.values():
            rate, age = modelled(workers, bound, slowest)
            most_rate, without = (theory.stale_rate_limit(its) for its in (math.ceil(age), 0))
            rows[SHORT[bound]] = {
                "samples / s": f"{rate:,.0f}",
                "mean staleness": f"{age:.3g}",
                "at most": f"{theory.most_staleness(workers, bound):.3g}" if bound < math.inf else "no limit",
                "learning rate, over that without": f"{most_rate / without:.2g}",
            }
            if shown:
                its = shown.get(bound, {})
                rows[SHORT[bound]] |= {
                    f"samples / s, {ran_as}": f"{its['rate']:,.0f}" if its else "",
                    f"staleness, {ran_as}": f"{its['age']:.2f}" if its else "",
                }
        rate, age = modelled(workers, policy, slowest)
        titles = f"{SHORT[policy]}: {rate:,.0f} samples / s", f"staleness {age:.3g}"
        where = f"modelled: {workers} workers, {time_in_words(compute_s)} for a gradient"
        if shown:
            where += "; circles: run, with workers that sleep" if asleep else "; circles: measured"
        lines = {bound: [modelled(workers, bound, its) for its in ACROSS] for bound in COLORS}
        ax = _curves(titles, where, lines, policy, slowest, shown, ran_as)
        return ax, pd.DataFrame(rows).T

    controls = {"workers": WORKERS, "policy": POLICIES, "slowest": {f"{x:g} times": x for x in SLOWER}}
    start = {"workers": workers_of_runs} if workers_of_runs in WORKERS else {"workers": 8}
    return Explorer("Staleness and speed", controls, draw, policy=2.0, slowest=slower, **start)


def _read(history: Sequence, samples: int) -> dict[str, float]:
    def is_update(its) -> bool:
        return isinstance(its, Sequence) and len(its) == 3

    listed("a history", history, "a list of (worker, staleness, second), one for each update", is_update)
    for worker, age, second in history:
        whole("a worker", worker, least=0)
        number("a staleness", age)
        number("a second", second)
    seconds = number("the last second", history[-1][2], above=True)
    return {
        "workers": len({worker for worker, *_ in history}),
        "rate": samples * len(history) / seconds,
        "age": sum(age for _, age, _ in history) / len(history),
    }


def _curves(titles, where, lines, policy, slowest, shown, ran_as) -> Axes:
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    across = "the slowest takes so many times as long"
    panel(titles[0], where, left, xlabel=across, ylabel="samples / s", grid="both")
    panel(titles[1], "modelled, the mean", right, xlabel=across, ylabel="updates", grid="both")
    places = [math.log2(s) for s in ACROSS]  # a logarithmic axis has ticks by itself, which take time
    for nth, (bound, color) in enumerate(COLORS.items()):
        look = MODELLED | {"color": color, "linewidth": 2.4 if bound == policy else 1.2}
        look["linestyle"] = (4 * nth, (4, 4))  # where lines lie on each other, both are seen
        for ax, line in zip((left, right), zip(*lines[bound])):
            ax.plot(places, line, **look, label=SHORT[bound])
            if bound == policy:
                ax.plot([math.log2(slowest)], [line[ACROSS.index(slowest)]], **CHOSEN | {"color": color})
    for bound, its in shown.items():
        for ax, key in ((left, "rate"), (right, "age")):
            color = COLORS.get(bound, MODELLED["color"])
            style = SLEEPS if ran_as == "asleep" else MEASURED
            look = style | {"linestyle": "", "color": color, "markersize": 9, "markerfacecolor": "none"}
            ax.plot([math.log2(slowest)], [its[key]], **look, label=f"{SHORT.get(bound, bound)}, {ran_as}")
    for ax in (left, right):
        ax.set_xticks([math.log2(s) for s in SLOWER], [f"{s:g}" for s in SLOWER])
        ax.set_ylim(0, 1.12 * ax.get_ylim()[1])
    legend(right)
    return left
