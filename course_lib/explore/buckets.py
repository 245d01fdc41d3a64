"""What if buckets were smaller, the link slower, the ranks more: a step whose gradients travel while it
computes.
"""

import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.arguments import instance, number
from course_lib.explore.links import RANKS, link_choices
from course_lib.explore.panel import Explorer
from course_lib.plots.styles import COLORS, INK, PAPER, SMALL, legend, panel
from course_lib.plots.traced import require_trace
from course_lib.plots.units import Unit, time_in_words
from course_lib.record import Job, held

__all__ = ["overlap"]

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
FINE = 16  # with more buckets than that, no lines between them
KINDS = ("forward", "backward")


def overlap(
    job: Job | None = None,
    forward_s: float | None = None,
    backward_s: float | None = None,
    gradient_bytes: float | None = None,
    alpha_s: float | None = None,
    bytes_per_s: float | None = None,
) -> Explorer:
    """A step of data parallelism: what computes and what travels, with overlap and without. A ring all_reduce
    for each of some equal buckets.

    Args:
        job: a traced job of your own, best one with a single bucket: its slowest rank's forward and backward
            and its gradients are the start, and its step is drawn, as measured, under the modelled ones.
        forward_s, backward_s, gradient_bytes: in the place of a job's, all three. Without any: a ResNet-50 of
            Goyal et al. 2017, whose forward is taken to be as much shorter as its work is less.
        alpha_s, bytes_per_s: the link that you have measured, as in `collectives`.
    """
    f, b, size, whose = _start(job, forward_s, backward_s, gradient_bytes)
    links = link_choices(alpha_s, bytes_per_s)
    sizes = {f"{k} of {Unit.of(size / k).text(size / k)}": k for k in BUCKETS}

    def communication(k: int, link: tuple, ranks: int) -> float:
        return theory.ring_seconds("all_reduce", size, ranks, link[0], 1 / link[1], calls=k)

    def draw(buckets, link, ranks) -> tuple[Axes, pd.DataFrame]:
        c = communication(buckets, link, ranks)
        name = next(label for label, value in links.items() if value == link)
        step = theory.overlapped_seconds(f, b, c, buckets)
        steps = {k: theory.overlapped_seconds(f, b, communication(k, link, ranks), k) for k in BUCKETS}
        at_end, best = steps[1], min(steps, key=steps.get)
        lanes = {
            "in buckets: computes": [("forward", [(0, f)]), ("backward", _pieces(f, b, buckets))],
            "travels": [("all_reduce", theory.bucket_seconds(f, b, c, buckets))],
            "at the end: computes": [("forward", [(0, f)]), ("backward", [(f, f + b)])],
            "travels ": [("all_reduce", [(f + b, at_end)])],
        }
        title = f"{buckets} bucket{'s' * (buckets > 1)} on {ranks:,} ranks: {time_in_words(step)} a step"
        where = f"modelled: a ring, {name}; forward, backward and gradients: {whose}"
        ax = _lanes(title, where, lanes, buckets, job)
        rows = {
            "forward": time_in_words(f),
            "backward": time_in_words(b),
            "gradients": Unit.of(size).text(size),
            "all_reduces, in all": time_in_words(c),
            "of this, hidden": f"{theory.hidden_fraction(b, c, buckets):.0%}",
            "after backward": time_in_words(step - f - b),
            "step": time_in_words(step),
            "step, one bucket": time_in_words(at_end),
            "saved": f"{1 - step / at_end:.0%}",
            "best number of buckets": f"{best}, {time_in_words(steps[best])}",
        }
        if job is not None:
            rows["yours, measured"] = time_in_words(_pieces_of(job)["end_s"].max())
        return ax, pd.DataFrame({"": rows})

    controls = {"buckets": sizes, "link": links, "ranks": RANKS}
    start = {"ranks": job.ranks if job and job.ranks in RANKS else 64}
    if alpha_s is None:
        start["link"] = links["25 Gbit/s, published"]
    return Explorer("Overlap in buckets", controls, draw, buckets=4, **start)


def _start(job, forward_s, backward_s, gradient_bytes) -> tuple[float, float, float, str]:
    given = {"forward_s": forward_s, "backward_s": backward_s, "gradient_bytes": gradient_bytes}
    if job is not None:
        require_trace(instance("job", job, Job))
        rows = _pieces_of(job)
        seconds = {kind: rows[rows["kind"] == kind]["seconds"].sum() for kind in KINDS}
        if not all(seconds.values()):
            raise ValueError(
                f"{job.label} has no forward and backward in its traced step: give their seconds."
            )
        return *map(float, seconds.values()), float(held(job)["grads"].max()), "measured"
    if all(value is None for value in given.values()):
        row = theory.published("goyal_resnet50")["rows"][0]
        backward = row["backward_ms"] / 1e3
        work = theory.pass_flop(1, 1)
        forward = backward * work["forward"] / work["backward"]
        return forward, backward, row["gradient_mb"] * 1e6, "a ResNet-50, Goyal et al. 2017"
    f, b, size = (number(name, value, above=True) for name, value in given.items())
    return f, b, size, "yours"


def _pieces_of(job: Job) -> pd.DataFrame:
    """What the rank whose traced step is longest did in it, from its begin on."""
    rows = job.timeline.assign(end_s=job.timeline["start_s"] + job.timeline["seconds"])
    rows = rows[rows["rank"] == rows.groupby("rank")["end_s"].max().idxmax()]
    begin = rows["start_s"].min()
    return rows.assign(start_s=rows["start_s"] - begin, end_s=rows["end_s"] - begin)


def _pieces(begin: float, length: float, count: int) -> list[tuple[float, float]]:
    return [(begin + k * length / count, begin + (k + 1) * length / count) for k in range(count)]


def _lanes(title: str, where: str, lanes: dict, buckets: int, job: Job | None) -> Axes:
    heights = dict(zip(lanes, (0, 1, 2.4, 3.4)))
    if job is not None:
        where += f"; under them: {job.where}"
        heights |= {"yours: computes": 4.8, "travels  ": 5.8}
    ax = panel(title, where, size=(7.5, 1.9 + 0.28 * len(heights)), xlabel="ms", grid="x")
    look = {"edgecolor": INK, "linestyle": "--", "linewidth": 0.7 if buckets <= FINE else 0}
    named = set()
    for lane, of_kinds in lanes.items():
        for kind, pieces in of_kinds:
            _blocks(ax, heights[lane], kind, pieces, named, **look)
    if job is not None:
        rows = _pieces_of(job)
        computes = rows["kind"].isin(KINDS)
        travels = rows["kind"] == "communication"
        for lane, its, what in (("yours: computes", computes, "kind"), ("travels  ", travels, "name")):
            for kind, of_kind in rows[its].groupby(what, sort=False):
                pieces = list(zip(of_kind["start_s"], of_kind["end_s"]))
                _blocks(ax, heights[lane], kind, pieces, named, edgecolor=PAPER, linewidth=0.5)
    ax.set_yticks(list(heights.values()), [lane.strip() for lane in heights], fontsize=SMALL)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(heights.values()) + 0.6, -0.6)
    ax.set_xlim(0, None)
    legend(ax)
    return ax


def _blocks(ax: Axes, height: float, kind: str, pieces: list, named: set, **look) -> None:
    label = None if kind in named else kind
    named.add(kind)
    spans = [(1e3 * begin, 1e3 * (end - begin)) for begin, end in pieces]
    place = height - 0.42, 0.84
    ax.broken_barh(spans, place, facecolor=COLORS.get(kind, COLORS["other"]), label=label, zorder=2, **look)
    if spans and not look["linewidth"]:  # too many for lines between them: one around all
        whole = [(spans[0][0], sum(spans[-1]) - spans[0][0])]
        ax.broken_barh(whole, place, zorder=3, **look | {"facecolor": "none", "linewidth": 0.7})
