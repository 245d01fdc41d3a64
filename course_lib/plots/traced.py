"""What the figures of one traced step have in common: there must be one, theory may lie over it, and ranks
stand along an axis.
"""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes

from course_lib.arguments import instance
from course_lib.record import Job

__all__ = ["require_trace", "times_theory", "mark_ranks"]

_CHARACTER_IN, _AXIS_IN = 0.1, 4.2  # of what stands below an axis: the width of a character, and of all


def require_trace(job: Job) -> None:
    """Refuse to draw a job that has no traced step, and say what to change."""
    phases = set(instance("job", job, Job, "as run returns it").steps["phase"])
    if not phases:
        raise ValueError(
            f"{job.label} has no measured step to draw: put each training step inside `with"
            " measure.step(model, optimizer):` and run it again."
        )
    if "traced" not in phases:
        raise ValueError(
            f"{job.label} measured only its warm-up step: run at least two steps inside measure.step, because"
            " the second one is traced."
        )


def times_theory(measured: float, predicted: Iterable[float] | None) -> str:
    """What all ranks measured over what theory gives for all of them; empty without theory."""
    total = 0 if predicted is None else sum(predicted)
    return f"{measured / total:.2f} \u00d7 theory" if total else ""


def mark_ranks(ax: Axes, places: Sequence[float], ranks: Sequence[int], roles: Sequence[str]) -> None:
    """Put the ranks' numbers below the axis at these places, and under each its role if ranks have some."""
    labels = [f"{rank}\n{roles[rank]}" if roles else str(rank) for rank in ranks]
    ax.set_xticks(places, labels)
    if roles and max(map(len, roles)) * _CHARACTER_IN * len(places) > _AXIS_IN:
        ax.set_xticks(places, [label.replace("\n", ", ") for label in labels], rotation=90)
