"""What came back, without torch: a Job, a Sweep of jobs, and what one reads off them."""

from course_lib.record.job import Job
from course_lib.record.readings import bubble, overlap
from course_lib.record.sweep import Sweep

__all__ = ["Job", "Sweep", "overlap", "bubble"]
