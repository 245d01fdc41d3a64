"""What the figures of one traced step have in common: there must be one, and theory may lie over it."""

from collections.abc import Iterable

from course_lib.arguments import instance
from course_lib.record import Job

__all__ = ["require_trace", "times_theory"]


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
