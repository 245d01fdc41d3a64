"""Look at what the machine can hold before ranks are started."""

import errno
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from course_lib.ranks.devices import usable_cores

__all__ = ["Machine", "look", "refusal", "limit_in_words"]

RANK_BYTES = 64 * 2**20  # what a rank needs before it holds a model
SHM_BYTES = 4 * 2**20  # shared memory per rank, for data loaders with workers
# what a rank counts for where processes are limited: itself, and four threads (ours, and three of gloo)
RANK_PROCESSES = 5
WARN_PER_CORE, REFUSE_PER_CORE = 4, 32
COUNT_BELOW = 5000  # a limit on processes that a job may meet


@dataclass(frozen=True)
class Machine:
    """What is there to be used."""

    cores: int
    free_bytes: int
    shm_free_bytes: int | None  # None where the system has no /dev/shm
    processes: float = 0  # that count towards the limit now, with their threads
    processes_limit: float = float("inf")

    @classmethod
    def here(cls) -> "Machine":
        shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None
        return cls(
            usable_cores(), min(psutil.virtual_memory().available, _cgroup_free_bytes()), shm, *_processes()
        )


def look(ranks: int, threads: int, machine: Machine) -> str | None:
    """A warning in one sentence, or None if `ranks` fit well.

    Errors: ValueError if they would drown the machine; it says what would fit.
    """
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    if threads > machine.cores * REFUSE_PER_CORE:
        raise ValueError(
            f"threads={threads} is more than this machine can hold: it has {cores}, and allows at most"
            f" {machine.cores * REFUSE_PER_CORE} threads."
        )
    by_memory = int(max(machine.free_bytes, 0) // RANK_BYTES)
    by_cores = machine.cores * REFUSE_PER_CORE // threads
    if ranks > min(by_memory, by_cores):
        raise ValueError(
            f"ranks={ranks} is more than this machine can hold: it has {cores} and"
            f" {machine.free_bytes / 1e9:.1f} GB of free memory, and the"
            f" {'memory allows' if by_memory <= by_cores else 'cores allow'} at most"
            f" {min(by_memory, by_cores)} ranks."
        )
    if machine.processes + ranks * RANK_PROCESSES > machine.processes_limit:
        raise ValueError(
            _too_many_processes(ranks, machine.processes_limit, f", with {machine.processes:g} in use")
        )
    if ranks * threads > machine.cores * WARN_PER_CORE:
        most = machine.cores * WARN_PER_CORE
        enough = f"{most // threads} ranks" if threads <= most else f"{most} threads"
        return (
            f"{ranks} rank{'s' * (ranks != 1)} with {threads} thread{'s' * (threads != 1)} each share"
            f" {cores}: this will be slow, and times will say little. Up to {enough} run well enough."
        )
    if machine.shm_free_bytes is not None and machine.shm_free_bytes < ranks * SHM_BYTES:
        return (
            f"/dev/shm has only {machine.shm_free_bytes / 1e6:.0f} MB free: data loaders with worker"
            " processes may end with a bus error. Use num_workers=0, or give the container more (docker run"
            " --shm-size=1g)."
        )
    return None


def refusal(error: Exception, ranks: int, label: str) -> Exception:
    """In one sentence, why a job could not be started: the system has refused its supervisor, or the kernel,
    what `error` says.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EAGAIN, errno.ENOMEM):
        return ValueError(_too_many_processes(ranks, _processes()[1]))
    if number in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return ValueError(
            f"ranks={ranks} is more than this machine allows: the limit on open files is {limit}. "
            "Close files, take fewer ranks, or raise the limit (ulimit -n)."
        )
    if number is None:
        return RuntimeError(
            f"{label} could not run, because the supervisor of its ranks failed ({error}). The next run"
            " starts a new one."
        )
    reason = getattr(error, "strerror", None) or error
    return OSError(
        f"{label} cannot start, because its files cannot be written to the folder for temporary files"
        f" ({reason}). Free some space there, or set the environment variable TMPDIR to"
        " another folder."
    )


def limit_in_words() -> str:
    """The limit on processes in one sentence."""
    limit = _processes()[1]
    return (
        "This machine allowed no more processes or threads."
        if limit == float("inf")
        else f"The limit on processes is {limit:g} (threads count too)."
    )


def _too_many_processes(ranks: int, limit: float, in_use: str = "") -> str:
    if limit == float("inf"):
        return (
            f"ranks={ranks} is more than this machine allows: it refused to start another process or thread."
            " Take fewer ranks, or end other programs."
        )
    return (
        f"ranks={ranks} is more than this machine allows: the limit on processes is {limit:g}{in_use}, and a"
        f" rank counts for {RANK_PROCESSES} (threads count too). Take fewer ranks, end other programs, or"
        " raise the limit (ulimit -u; docker run --pids-limit)."
    )


def _processes(folder: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> tuple[float, float]:
    """Processes and threads in use, and how many may be: of this user (RLIMIT_NPROC) or of this container,
    whichever leaves less.
    """
    found = [(0.0, float("inf"))]
    try:
        found.append((float((folder / "pids.current").read_text()), float((folder / "pids.max").read_text())))
    except (OSError, ValueError):  # no such cgroup, or "max"
        pass
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0] if hasattr(resource, "RLIMIT_NPROC") else -1
    # root is free of it; and to count costs time
    if 0 <= limit < COUNT_BELOW and os.getuid() and proc.is_dir():
        found.append((_of_this_user(proc), limit))
    return min(found, key=lambda pair: pair[1] - pair[0])


def _of_this_user(proc: Path) -> int:
    count = 0
    for process in proc.iterdir():
        try:
            if process.name.isdigit() and process.stat().st_uid == os.getuid():
                count += len(os.listdir(process / "task"))
        except OSError:  # it has just ended
            pass
    return count


def _cgroup_free_bytes(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's memory limit leaves; infinite without a limit. Cached files count as used there, but
    make room when memory is needed.
    """
    try:
        limit, used = (float((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + float(counts["active_file"]) + float(counts["inactive_file"])
    except (OSError, ValueError, KeyError):  # no cgroup version 2, or "max"
        return float("inf")
