"""What if the message were larger: seconds of an all_reduce by four algorithms, over links of any speed."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import number
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import CHOSEN, MODELLED, dash_from_the_left, panel
from course_lib.plots.units import Unit, time_in_words

__all__ = ["collectives", "link_choices"]

RANKS = (2, 4, 8, 16, 64, 256, 1024)
SIZES = {Unit.of(10**power).text(10**power): 10**power for power in range(3, 11)}
COLORS = {"star": "#D55E00", "ring": "#0072B2", "halving-doubling": "#009E73", "doubling": "#882255"}
YOURS = "yours, measured"


def link_choices(alpha_s: float | None = None, bytes_per_s: float | None = None) -> dict[str, tuple]:
    """Links by name, each as (seconds to start a message, bytes per second): the published ones, and before
    them the one that you have measured.

    Args:
        alpha_s, bytes_per_s: as measured; both or none.
    """
    found = {
        f"{row['link']}, published": (row["alpha_us"] * 1e-6, row["gb_per_s"] * 1e9)
        for row in theory.published("links")["rows"]
    }
    if alpha_s is None and bytes_per_s is None:
        return found
    own = number("alpha_s", alpha_s), number("bytes_per_s", bytes_per_s, above=True)
    return {YOURS: own} | found


def collectives(alpha_s: float | None = None, bytes_per_s: float | None = None) -> Explorer:
    """Seconds of an all_reduce against its size: a star, a ring, halving-doubling, doubling.

    Args:
        alpha_s: seconds to start a message, as you have measured them.
        bytes_per_s: bandwidth of a rank's link, as you have measured it.
    """
    links = link_choices(alpha_s, bytes_per_s)

    def draw(link, ranks, size) -> tuple[Axes, pd.DataFrame]:
        alpha, rate = link
        name = next(label for label, value in links.items() if value == link)
        seconds = {kind: theory.all_reduce_seconds(kind, size, ranks, alpha, 1 / rate) for kind in COLORS}
        quickest = min(seconds, key=seconds.get)
        where = (
            f"modelled from a link ({name}) of {time_in_words(alpha)} for each message, {rate / 1e9:.3g} GB/s"
        )
        title = (
            f"{Unit.of(size).text(size)} on {ranks:,} ranks: {quickest} in {time_in_words(seconds[quickest])}"
        )
        labels = {"xlabel": "bytes of the tensor", "ylabel": "time"}
        ax = panel(title, where, size=(7.5, 3.8), grid="both", **labels)
        sizes, rows = np.geomspace(1e3, 1e10, 40), {}
        for nth, (kind, color) in enumerate(COLORS.items()):
            look = MODELLED | {"color": color}
            dashes = {"linestyle": (3 * nth, (4, 4))}  # where lines lie on each other, both are seen
            messages, share = theory.all_reduce_path(kind, ranks)
            line = [theory.all_reduce_seconds(kind, its, ranks, alpha, 1 / rate) for its in sizes]
            ax.plot(sizes, line, **look | dashes, label=kind)
            ax.plot([size], [seconds[kind]], **CHOSEN | {"color": color})
            starting_s = theory.all_reduce_seconds(kind, 0, ranks, alpha, 1 / rate)
            rows[kind] = {
                "time": time_in_words(seconds[kind]),
                "messages in turn": messages,
                "on the busiest link": Unit.of(share * size).text(share * size),
                "of the time, starting messages": f"{starting_s / seconds[kind]:.0%}",
            }
        ax.set(xscale="log", yscale="log")
        ax.minorticks_off()
        _ticks(ax)
        dash_from_the_left(ax.legend(frameon=False, fontsize=8))
        return ax, pd.DataFrame(rows).T

    controls = {"link": links, "ranks": RANKS, "size": SIZES}
    return Explorer("Seconds of an all_reduce", controls, draw, ranks=8, size=10**7)


def _ticks(ax: Axes) -> None:
    """In words: powers of ten as formulas take longer to draw than all else."""
    words = {10**power: Unit.of(10**power).text(10**power) for power in (3, 5, 7, 9)}
    ax.set_xticks(list(words), list(words.values()))
    low, high = ax.get_ylim()
    heights = [10.0**power for power in range(-7, 5) if low <= 10.0**power <= high]
    ax.set_yticks(heights, [time_in_words(at) if at < 60 else f"{at:,.0f} s" for at in heights])
