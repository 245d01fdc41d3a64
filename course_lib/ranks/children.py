"""Processes that are forked here and end here: a rank's first and last moments, seen from its parent.

The parent is the supervisor of a job on this machine (`server.py`), or the one on a node of a cluster
(`slurm/agent.py`).
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time

import psutil

from course_lib.ranks import network

__all__ = [
    "adopt_orphans",
    "become_rank",
    "die_with_parent",
    "end_all",
    "kill_group",
    "live_without_parent",
    "own_group",
    "run_to_exit",
    "send_signal",
]

# how long a killed process may take to be gone, and one that clears away what others shared to do its work
KILLED_END_S, TRACKER_END_S = 5.0, 3.0
_CLEARS_AWAY = ("resource_tracker", "torch_shm_manager")  # the second does it two seconds later
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)  # opened once, here: what a rank opens itself it cannot share


def become_rank(request: dict, rank: int, channel: int, content: int, places: list[list[int]]) -> None:
    """In a fork: be this rank, in a process group of its own, in its host (of several: `places` has the
    namespaces of each), with its output in a file, until `worker.work` returns.

    channel: descriptor of its line to the kernel; content: as `worker.work` takes it.
    """
    own_group(0)
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if places:
        network.enter(places[request["hosts"][rank]])
        for namespace in sum(places, []):
            os.close(namespace)
    output = os.open(
        os.path.join(request["directory"], f"rank{rank}.out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(nothing)
    from course_lib.ranks import worker

    worker.work(request, rank, socket.socket(fileno=channel), content)


def run_to_exit(function, *args) -> None:
    """Call `function` in a forked child and never return into the parent's code."""
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:  # the child must not fall back into the server's loop
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def live_without_parent() -> None:
    """Take `die_with_parent` back."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Become the parent of what a rank leaves behind, also of what has a session of its own (setsid)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_all() -> None:
    """Kill and reap children until there is none: a killed one may have had children, which are ours then.

    A child that is not reaped keeps its process id, and nobody else reaps here, so that no stranger is hit.
    Those which remove shared memory when the last process that used it has ended, Python's resource tracker
    and torch's manager, are given time to do so.
    """
    begin = time.monotonic()
    while (seconds := time.monotonic() - begin) < KILLED_END_S:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # no child is left
            return
        for child in psutil.Process().children():
            with contextlib.suppress(OSError, psutil.Error):
                words = " ".join(child.cmdline())
                if seconds > TRACKER_END_S or not any(name in words for name in _CLEARS_AWAY):
                    os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.005)


def own_group(pid: int) -> None:
    """Give a rank a process group of its own, so that what it starts can be ended with it (both sides ask: no
    race).
    """
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass


def send_signal(pids, number: int) -> None:
    """Signal ranks, none of which has been reaped."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if number == signal.SIGKILL:
            kill_group(pid)


def kill_group(pid: int) -> None:
    """End what a rank has started where it doesn't come to us when the rank ends; of a session of its own, we
    know nothing there.
    """
    if sys.platform != "linux":
        # PermissionError: a group that has just ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
