"""What if the ranks were put on a mesh: who talks to whom, and the bytes along each axis."""

import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.explore.panel import Explorer
from course_lib.mini import hybrid
from course_lib.plots import pictures
from course_lib.plots.units import Unit

__all__ = ["mesh"]

SIZES = {"dp": (1, 2), "pp": (1, 2, 4), "tp": (1, 2, 4)}  # more ranks could not be read
MODEL = theory.published("llama3_405b")["rows"][0]  # what the bytes are counted for
TOKENS, ELEMENT_BYTES = 8192, 2  # of one sequence, of bf16


def mesh() -> Explorer:
    """A mesh of up to 32 ranks, and what a rank of Llama 3 405B would send along each axis for one sequence
    of 8,192 tokens in bf16: gradients over dp, activations over pp and tp.
    """

    def draw(dp, pp, tp) -> tuple[Axes, pd.DataFrame]:
        sizes = {axis: size for axis, size in (("dp", dp), ("pp", pp), ("tp", tp)) if size > 1} or {"dp": 1}
        ranks = dp * pp * tp
        places = [hybrid.coordinates(rank, sizes) for rank in range(ranks)]
        groups = {axis: hybrid.axis_groups(axis, sizes) for axis in sizes}
        title = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        ax = pictures.mesh(title, "ranks of one server stand beside each other", places, groups)
        rows = {
            axis: {
                "groups": len(groups.get(axis, [])),
                "ranks of a group": size,
                "a rank sends": Unit.of(nbytes).text(nbytes),
                "when": when,
            }
            for (axis, size, when), nbytes in zip(
                (("dp", dp, "once a step"), ("pp", pp, "at each cut"), ("tp", tp, "in every layer")),
                bytes_by_axis(dp, pp, tp),
            )
        }
        return ax, pd.DataFrame(rows).T

    return Explorer("A mesh of ranks", SIZES, draw, dp=2, tp=2)


def bytes_by_axis(dp: int, pp: int, tp: int) -> tuple[float, float, float]:
    """Bytes that one rank sends along dp, pp and tp for one sequence. Source: Narayanan et al. 2021, section
    3.
    """
    held = MODEL["model"] * 1e9 * ELEMENT_BYTES / (pp * tp)
    layers = MODEL["layers"] / pp
    along_tp = layers * theory.tensor_parallel_bytes(1, TOKENS, MODEL["hidden"], tp, ELEMENT_BYTES)
    along_pp = 2.0 * TOKENS * MODEL["hidden"] * ELEMENT_BYTES * (pp > 1)
    return theory.collective_bytes("all_reduce", held, dp), along_pp, along_tp
