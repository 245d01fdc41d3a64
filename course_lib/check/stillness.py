"""Whether the other ranks can still go on by themselves, or all stand still: told by what the operating
system says of their threads, not by a clock. However busy the machine is, a thread that waits for a core does
not stand still, and one that waits for a message does.
"""

import contextlib
import os

from course_lib import torch_internals
from course_lib.ranks import threads

__all__ = ["still_at", "looking"]

LOOKING = "looking"
# gloo's own threads wake up a hundred times a second: they are judged by the bytes that they write
NOT_AT_WORK = (LOOKING, threads.ANSWERING, torch_internals.GLOO_LISTENS)


def still_at() -> int | None:
    """Bytes that this job's other processes have written so far, if every other thread of all its processes
    waits for another (state S in /proc, and not for a time to come) or looks; None if one is at work, and
    where there is no /proc.

    Who finds the same number at many looks in a row knows that nothing moves.
    """
    parent, own = os.getppid(), str(os.getpid())
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            processes = file.read().split()
        if not all(
            _waits(process, task) for process in processes for task in os.listdir(f"/proc/{process}/task")
        ):
            return None
        return sum(_written_bytes(process) for process in processes if process != own)
    except OSError:  # no /proc; or a process has ended, and the next look will not meet it
        return None


def looking() -> contextlib.AbstractContextManager:
    """Within, this thread only looks at what the others do, and counts as one that stands still."""
    return threads.called(LOOKING)


def _waits(process: str, task: str) -> bool:
    with open(f"/proc/{process}/task/{task}/stat") as file:
        name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
    if name in NOT_AT_WORK:
        return True
    if rest.split()[0] not in "SZ":
        return False
    with open(f"/proc/{process}/task/{task}/wchan") as file:  # where in the kernel it waits
        return "nanosleep" not in file.read()


def _written_bytes(process: str) -> int:
    with open(f"/proc/{process}/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar:"))
