"""What if one saved more seldom: the time that saves, lost work and restarts take, against the time between
two saves.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import instance, number
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import CHOSEN, INK, MEASURED, MODELLED, PUBLISHED, SLEEPS, legend, panel
from course_lib.plots.units import time_in_words

__all__ = ["checkpoints"]

RANKS = (8, 64, 512, 1024, 4096, 16_384, 131_072)
SAVES_S = (0.1, 1, 5, 15, 60, 300)
INTERVALS_S = (1, 10, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400)
# what the time goes to that is lost, from the bottom up
LOST = {"restarts": "#D0D7DE", "saves": "#A8CBE6", "work done again": "#F3C9A5"}
DAYS, GPUS = 54, 16_384  # of the pre-training of Llama 3 405B, whose interruptions are published
EFFECTIVE = 0.9  # of its time training was effective, at least: the same section


def checkpoints(
    save_s: float | None = None, mtbf_s: float | None = None, restart_s: float = 600.0, asleep: bool = False
) -> Explorer:
    """The share of a job's time in which it does not get on, and what this goes to, against the time between
    two saves: the curve of Daly 2006, the best intervals by Young and by Daly, and the one that you choose.

    Args:
        save_s: seconds for which a save keeps your training waiting, as you have measured them: then the
            first choice, and where the interval is yours to choose.
        mtbf_s: mean seconds between two failures of **one** rank; of n ranks there are n times as many. None:
            what the 419 published interruptions of Llama 3 405B give, in 54 days on 16,384 GPUs.
        restart_s: seconds from a failure until training goes on.
        asleep: what was measured is a save to a disk that sleeps.
    """
    saves = {time_in_words(s): float(s) for s in SAVES_S}
    how = "its disk sleeps" if instance("asleep", asleep, bool) else "measured"
    if save_s is not None:
        own = float(number("save_s", save_s, above=True))
        saves = {f"yours, {how}: {time_in_words(own)}": own} | saves
    whose = "yours"
    if mtbf_s is None:
        counts = [row["count"] for row in theory.published("llama3_interruptions")["rows"]]
        mtbf_s, whose = theory.mtbf_seconds(86_400 * DAYS, sum(counts), GPUS, 1), "Llama 3 405B, published"
    number("mtbf_s", mtbf_s, above=True)
    number("restart_s", restart_s)
    published = whose != "yours"

    def draw(save, ranks, interval) -> tuple[Axes, pd.DataFrame]:
        m = theory.mtbf_seconds(mtbf_s, 1, 1, ranks)

        def goes_to(its_interval: float) -> dict[str, float]:
            return theory.goodput_shares(its_interval, save, m, restart_s)

        points = {
            "Young": theory.checkpoint_interval(save, m, "young"),
            "Daly": theory.checkpoint_interval(save, m, "daly"),
            "chosen": float(interval),
        }
        shares = {name: goes_to(t) for name, t in points.items()}
        lost = {name: 1 - its["useful"] for name, its in shares.items()}
        title = (
            f"{ranks:,} ranks, a save every {time_in_words(interval)}: {lost['chosen']:.1%} lost,"
            f" at best {lost['Daly']:.1%}"
        )
        where = (
            f"modelled: a failure every {time_in_words(m)} ({whose}), a save of {time_in_words(save)},"
            f" a restart of {time_in_words(restart_s)}"
        )
        labels = {"xlabel": "time between two saves", "ylabel": "share of the time that is lost"}
        ax = panel(title, where, size=(7.5, 3.8), grid="both", **labels)
        low, high = min(INTERVALS_S[0], *points.values()), max(INTERVALS_S[-1], *points.values())
        t = np.geomspace(low, high, 90)
        curve = pd.DataFrame([goes_to(its) for its in t])
        ax.stackplot(t, curve[list(LOST)].T, colors=LOST.values(), labels=LOST)
        ax.plot(t, 1 - curve["useful"], **MODELLED, label="all that is lost")
        for name, marker in (("Young", "^"), ("Daly", "v")):
            look = {"linestyle": "", "marker": marker, "markersize": 9, "markerfacecolor": "none"}
            ax.plot([points[name]], [lost[name]], color=INK, **look, label=name)
        ax.plot([interval], [lost["chosen"]], **CHOSEN, label="chosen")
        if save_s is not None and save == save_s:
            look = {k: (SLEEPS if asleep else MEASURED)[k] for k in ("color", "linestyle", "linewidth")}
            ax.axvline(save, **look, label=f"your save takes\n({how})")
        if published and ranks == GPUS:
            line = PUBLISHED | {"marker": ""}
            ax.axhline(1 - EFFECTIVE, **line, label="Llama 3: less\n(published)")
        ax.set_xscale("log")
        ticks = [tick for tick in (0.01, 0.1, 1, 10, 60, 600, 3600, 21_600, 86_400) if low <= tick <= high]
        ax.set_xticks(ticks, [time_in_words(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter("{x:.0%}")
        legend(ax)
        rows = {
            name: {
                "save every": time_in_words(points[name]),
                "lost": f"{lost[name]:.1%}",
                **{f"in {what}": f"{its[what]:.1%}" for what in LOST},
                "useful (goodput)": f"{its['useful']:.1%}",
            }
            for name, its in shares.items()
        }
        return ax, pd.DataFrame(rows).T

    controls = {"save": saves, "ranks": RANKS, "interval": {time_in_words(s): s for s in INTERVALS_S}}
    start = {} if save_s is not None else {"save": 60.0}
    return Explorer("How often to save", controls, draw, ranks=GPUS, interval=3600, **start)
