"""The bubble of a pipeline: how much of a step its ranks were idle, from the spans of the traced step."""
from course_lib.arguments import instance
from course_lib.job import Job
from course_lib.overlap import overlap

__all__ = ["bubble"]


def bubble(job: Job) -> float:
    """Return the idle share of a pipeline's traced step: 1 - busy / (ranks x length), for comparison with `theory.bubble_fraction`.

    busy: seconds in spans of `measure.span`, all ranks together; `mini.pipeline` makes one of every instruction. Waiting and sending count
    as idle. length: from the start of the first span to the end of the last one, whichever rank's they are.

    Errors: ValueError if the traced step has no span.
    """
    instance("job", job, Job, "what run returns")
    spans = job.timeline[job.timeline["kind"] == "span"]
    if spans.empty:
        raise ValueError(f"{job.label} has no span in its traced step: run two steps or more, each inside measure.step.")
    length_s = (spans["start_s"] + spans["seconds"]).max() - spans["start_s"].min()
    busy_s = overlap(job, kinds=("span",))["compute_s"].sum()
    return float(1 - busy_s / (job.ranks * length_s))
