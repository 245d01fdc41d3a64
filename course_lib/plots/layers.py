"""Draw which layers' full parameters were alive when."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from course_lib.arguments import listed
from course_lib.plots.styles import COLORS, FAINT, INK, MEASURED, PAPER, SMALL, panel
from course_lib.plots.units import Unit

__all__ = ["alive"]

WAITING = 0.35  # how lightly what waits is drawn

Moment = tuple[str, list[int]] | tuple[str, list[int], list[int]]


def alive(moments: Sequence[Moment], title: str, where: str, ax: Axes | None = None) -> Axes:
    """Draw which layers were alive when (a dot: the one that works), and above it the bytes of all that were.

    Args:
        moments: what `measure.alive.watch` noted on one rank in one forward and backward; what it noted as
            waiting is drawn lightly, on top.
        title: of the figure.
        where: on what it was measured, as `job.where` says it.

    Returns:
        The Axes, a frame around two others, its `child_axes`: the bytes above, the layers below. The bytes
        reach up to those of all layers together, so that figures of one model have one scale.
    """
    listed("moments", moments, "a list of moments, as alive.watch notes them", _is_moment)
    number_of_layers = len(moments[0][1])
    if any(len(layers) != number_of_layers for _, *both in moments for layers in both):
        raise ValueError("moments have different numbers of layers: they must be of one model.")
    ax = panel(title, where, ax, size=(5, 4.6))
    ax.set_axis_off()
    names, x = [name for name, *_ in moments], list(range(len(moments)))
    layers = list(zip(*(moment[1] for moment in moments)))  # [layer][moment], bytes
    waiting = list(zip(*((*moment, [0] * number_of_layers)[2] for moment in moments)))
    _draw_bytes(ax.inset_axes([0, 0.58, 1, 0.42]), x, layers, waiting)
    below = ax.inset_axes([0, 0, 1, 0.54], sharex=ax.child_axes[0])
    xlabel = "which layer works: F forward, B backward"
    panel("", "", below, xlabel=xlabel, ylabel="layer")
    below.grid(False)
    for number, its_bytes in enumerate(layers):
        below.bar(x, 0.84, 0.9, bottom=number - 0.42, color=FAINT)
        for there, alpha in ((waiting[number], WAITING), (its_bytes, 1)):
            present = [moment for moment in x if there[moment]]
            below.bar(present, 0.84, 0.9, bottom=number - 0.42, color=COLORS["params"], alpha=alpha)
        works = [moment for moment in x if int(names[moment][1:]) == number]
        look = {"marker": "o", "markersize": 4.5, "color": PAPER, "markeredgecolor": INK}
        below.plot(works, [number] * len(works), linestyle="", **look)
    below.set_xticks(x, names, fontsize=SMALL if len(x) <= 16 else 6)
    below.set_yticks(range(len(layers)))
    below.set_ylim(len(layers) - 0.5, -0.5)
    return ax


def _draw_bytes(
    ax: Axes, x: list[int], layers: list[tuple[int, ...]], waiting: list[tuple[int, ...]]
) -> None:
    all_layers_bytes = sum(map(max, layers)) or 1
    unit = Unit.of(all_layers_bytes)
    panel("", "", ax, ylabel=f"full parameters ({unit.name})")
    live_bytes = [sum(moment) for moment in zip(*layers)]
    ax.step(x, live_bytes, where="mid", **{**MEASURED, "marker": "", "color": COLORS["params"]})
    ax.fill_between(x, live_bytes, step="mid", color=COLORS["params"], alpha=0.15, linewidth=0)
    with_waiting = [live + sum(moment) for live, moment in zip(live_bytes, zip(*waiting))]
    if with_waiting != live_bytes:
        light = {"color": COLORS["params"], "alpha": WAITING, "linewidth": 0, "label": "gathered, waiting"}
        ax.fill_between(x, live_bytes, with_waiting, step="mid", **light)
        ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper right")
    ax.set_ylim(0, 1.1 * max(all_layers_bytes, *with_waiting))
    ax.tick_params(axis="x", labelbottom=False)
    unit.ticks(ax.yaxis)


def _is_moment(value) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) in (2, 3)
        and isinstance(value[0], str)
        and value[0][1:].isdecimal()
        and all(isinstance(layers, (tuple, list)) for layers in value[1:])
        and all(isinstance(count, int) for layers in value[1:] for count in layers)
    )
