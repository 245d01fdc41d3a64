"""What came back, without torch: a Job, a Sweep of jobs, and what one reads off them.

job.py        a Job: results, output, and one ledger of bytes, memory and time
attempts.py   the attempts of a job that may start again, and what was lost
sweep.py      a Sweep: one job for each number of ranks and repeat
printed.py    what ranks have printed, for who looks at a job
tables.py     the columns of the ledger's tables
readings.py   what one reads off the tables: bytes sent, bytes held, calls, seconds and samples
timelines.py  what one reads off a timeline: communication that was hidden, a pipeline's idle time
agreement.py  whether ranks computed what one process computes
"""

from course_lib.record.agreement import parity
from course_lib.record.job import Job
from course_lib.record.readings import calls, held, samples_per_second, sent, step_seconds
from course_lib.record.sweep import Sweep
from course_lib.record.timelines import bubble, overlap, span_seconds

__all__ = [
    "Job",
    "Sweep",
    "sent",
    "held",
    "calls",
    "step_seconds",
    "samples_per_second",
    "overlap",
    "bubble",
    "span_seconds",
    "parity",
]
