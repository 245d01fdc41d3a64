"""What if there were more ranks: memory per rank for data parallelism and the stages of ZeRO."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import instance, whole
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import COLORS, INK, OUTLINE, PAPER, SMALL, legend, panel
from course_lib.plots.units import Unit
from course_lib.record import Job, held

__all__ = ["memory"]

STRATEGIES = {"data parallel": 0, "ZeRO 1": 1, "ZeRO 2": 2, "ZeRO 3": 3}
MODELS = {
    "TinyGPT, 0.14 million": 136_448,
    "GPT-2, 1.5 billion": 1_500_000_000,
    "Llama 3 8B": 8 * 10**9,
    "Llama 3 70B": 70 * 10**9,
    "GPT-3, 175 billion": 175 * 10**9,
    "Llama 3 405B": 405 * 10**9,
}
RANKS = (1, 2, 4, 8, 16, 64, 256, 1024, 4096, 16384)
DEVICE_BYTES = 80e9  # of one A100 or H100 (NVIDIA's data sheets)


def memory(job: Job | None = None, numel: int | None = None) -> Explorer:
    """Parameters, gradients and Adam's states on one rank, for four strategies; a line says what a GPU of 80
    GB holds. Activations come on top.

    Args:
        job: a traced job of your own: beside the modelled bars stands what its fullest rank held.
        numel: parameters of its whole model, which then is the first choice, in fp32.
    """
    if job is not None:
        instance("job", job, Job)
    models, start = dict(MODELS), {"ranks": 8, "model": 8 * 10**9}
    if numel is not None:
        models = {f"yours, {whole('numel', numel):,}": numel} | models
        start = {"model": numel, "precision": "fp32", "ranks": job.ranks if job and job.ranks in RANKS else 8}
    own = None
    if job is not None:
        kinds = ["params", "grads", "optimizer_states"]
        own = held(job)[kinds].loc[held(job)[kinds].sum(axis=1).idxmax()]

    def draw(model, ranks, precision) -> tuple[Axes, pd.DataFrame]:
        rows = {
            name: theory.zero_memory(model, ranks, stage, precision) for name, stage in STRATEGIES.items()
        }
        if own is not None:
            rows[f"{job.label}, measured"] = own.to_dict()
        table = pd.DataFrame(rows).T
        return _bars(table, job, precision), _in_words(table)

    controls = {"model": models, "ranks": RANKS, "precision": ("mixed", "fp32")}
    return Explorer("Memory per rank", controls, draw, **start)


def _bars(table: pd.DataFrame, job: Job | None, precision: str) -> Axes:
    total, x = table.sum(axis=1), np.arange(len(table))
    unit = Unit.of(total.max())
    bytes_each = "2 + 2 + 12" if precision == "mixed" else "4 + 4 + 8"
    where = f"modelled: Adam, {bytes_each} bytes for each parameter, without activations"
    if job is not None:
        where += f"; measured: {job.where}"
    ax = panel("Memory per rank", where, size=(7.5, 3.6), ylabel=f"memory ({unit.name})")
    bottom = np.zeros(len(table))
    for category in table:
        look = {"color": COLORS[category], "edgecolor": PAPER, "linewidth": 0.6, "label": category}
        ax.bar(x, table[category], 0.6, bottom=bottom, **look)
        bottom = bottom + table[category].to_numpy()
    modelled = len(STRATEGIES)
    ax.bar(x[:modelled], total.iloc[:modelled], 0.66, **OUTLINE, label="modelled")
    for at, height in zip(x, total):
        style = {"textcoords": "offset points", "ha": "center", "color": INK, "fontsize": SMALL}
        ax.annotate(unit.text(height), (at, height), xytext=(0, 4), **style)
    top = total.max()
    if 0.02 * top < DEVICE_BYTES < 20 * top:
        ax.axhline(DEVICE_BYTES, color="#CF222E", linewidth=1.2, label="a GPU of 80 GB")
        top = max(top, DEVICE_BYTES)
    ax.set_ylim(0, 1.15 * top)
    ax.set_xticks(x, table.index)
    unit.ticks(ax.yaxis)
    legend(ax)
    return ax


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The bytes as people say them."""
    words = table.assign(all=table.sum(axis=1))
    return words.map(lambda nbytes: Unit.of(nbytes).text(nbytes))
