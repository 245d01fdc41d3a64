"""What the operating system knows of threads (Linux): names, by which other processes can tell what a thread
does, and whether a thread sleeps.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["ANSWERING", "called", "others", "computed_and_waited"]

ANSWERING = "course_lib"  # a rank's thread that answers when the kernel asks where the rank is


@contextlib.contextmanager
def called(name: str) -> Iterator[None]:
    """Within, this thread has a name of up to 15 characters in /proc; elsewhere nothing happens."""
    path = f"/proc/self/task/{threading.get_native_id()}/comm"
    try:
        with open(path) as file:
            before = file.read()
        _write(path, name)
    except OSError:
        before = ""
    try:
        yield
    finally:
        if before:
            _write(path, before)


def others() -> dict[int, tuple[bool, int]]:
    """Of each thread of this process but the one that asks: does it sleep, and how often has it gone to sleep
    by itself so far? Empty where there is no /proc.
    """
    found = {}
    with contextlib.suppress(OSError):
        for task in set(map(int, os.listdir("/proc/self/task"))) - {threading.get_native_id()}:
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/status") as file:  # it may end
                told = dict(line.split(":", 1) for line in file)
                found[task] = (told["State"].split()[0] == "S", int(told["voluntary_ctxt_switches"]))
    return found


def computed_and_waited(pid: int) -> tuple[float, float]:
    """Seconds that a process has computed, all its threads together, and that the one of them which has
    waited most for a free core has waited. Both 0 where there is no /proc, or no such process.
    """
    computed, waited = 0, 0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            # it may end
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as file:
                ran, delayed, _ = map(int, file.read().split())
                computed, waited = computed + ran, max(waited, delayed)
    return computed / 1e9, waited / 1e9


def _write(path: str, name: str) -> None:
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(name)
