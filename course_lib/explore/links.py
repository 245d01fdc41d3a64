"""What if the message were larger: seconds of a collective by three algorithms, over links of any speed."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import number
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import MODELLED, panel
from course_lib.plots.units import Unit

__all__ = ["collectives"]

RANKS = (2, 4, 8, 16, 64, 256, 1024)
SIZES = {f"{Unit.of(10**power).text(10**power)}": 10**power for power in range(3, 11)}
COLORS = {"ring": "#0072B2", "halving and doubling": "#009E73", "star": "#D55E00"}
USUAL_S = 5e-6  # what it takes to start a message, within and between servers: a usual order of size


def seconds(algorithm: str, nbytes: float, ranks: int, alpha_s: float, bytes_per_s: float) -> float:
    """Seconds of an all_reduce over links that each rank has to itself.

    "ring": `theory.ring_seconds`. "halving and doubling": 2 log2(n) alpha + 2 (n-1)/n S / bandwidth. "star":
    all to one root and back, which has one link for all: 2 alpha + 2 (n-1) S / bandwidth.

    Source: Thakur and Gropp 2003, section 4; the star from the bytes at its root.
    """
    if algorithm == "ring":
        return theory.ring_seconds("all_reduce", nbytes, ranks, alpha_s, 1 / bytes_per_s)
    sent = theory.collective_bytes("all_reduce", nbytes, ranks)
    if algorithm == "star":
        return 2 * alpha_s + ranks * sent / bytes_per_s
    return 2 * math.ceil(math.log2(ranks)) * alpha_s + sent / bytes_per_s


def collectives(alpha_s: float | None = None, bytes_per_s: float | None = None) -> Explorer:
    """Seconds of an all_reduce against its size: a ring, halving and doubling, a star.

    Args:
        alpha_s: seconds to start a message, as you have measured them.
        bytes_per_s: bandwidth of a rank's link, as you have measured it.
    """
    links = {
        f"H100, {row['link']}": (USUAL_S, row["gb_per_s"] * 1e9)
        for row in theory.published("h100_links")["rows"]
    } | {"10 Gbit/s": (3e-5, 10e9 / 8), "200 Mbit/s": (3e-4, 200e6 / 8)}
    if alpha_s is not None or bytes_per_s is not None:
        own = number("alpha_s", alpha_s, above=True), number("bytes_per_s", bytes_per_s, above=True)
        links = {"yours, measured": own} | links

    def draw(link, ranks, size) -> tuple[Axes, pd.DataFrame]:
        alpha, rate = link
        name = next(label for label, value in links.items() if value == link)
        where = f"modelled: {alpha * 1e6:.3g} us for each message, {rate / 1e9:.3g} GB/s ({name})"
        ax = panel(
            f"An all_reduce on {ranks} ranks",
            where,
            size=(7.5, 3.6),
            xlabel="bytes",
            ylabel="seconds",
            grid="both",
        )
        sizes, rows = np.logspace(3, 10, 60), {}
        for algorithm, color in COLORS.items():
            line = [seconds(algorithm, x, ranks, alpha, rate) for x in sizes]
            here = seconds(algorithm, size, ranks, alpha, rate)
            ax.plot(sizes, line, **MODELLED | {"color": color}, label=algorithm)
            ax.plot([size], [here], **MODELLED | {"linestyle": "", "marker": "o", "color": color})
            share = size / rate / here
            rows[algorithm] = {
                "seconds": f"{here:.3g}",
                "starting messages": f"{seconds(algorithm, 0, ranks, alpha, rate) / here:.0%}",
                "algbw over the link": f"{share:.2f}",
            }
        ax.set(xscale="log", yscale="log")
        ax.minorticks_off()
        ax.legend(frameon=False)
        return ax, pd.DataFrame(rows).T

    controls = {"link": links, "ranks": RANKS, "size": SIZES}
    return Explorer("Seconds of an all_reduce", controls, draw, ranks=8, size=10**7)
