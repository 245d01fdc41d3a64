"""What came back, without torch: a Job, a Sweep of jobs, and what one reads off them."""

from course_lib.record.agreement import parity
from course_lib.record.job import Job
from course_lib.record.readings import calls, held, sent, step_seconds
from course_lib.record.sweep import Sweep
from course_lib.record.timelines import bubble, overlap, span_seconds

__all__ = [
    "Job",
    "Sweep",
    "sent",
    "held",
    "calls",
    "step_seconds",
    "overlap",
    "bubble",
    "span_seconds",
    "parity",
]
