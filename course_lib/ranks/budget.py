"""Look at what the machine can hold before ranks are started."""
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from course_lib.ranks.devices import usable_cores

__all__ = ["Machine", "look"]

RANK_BYTES = 64 * 2**20             # what a rank needs before it holds a model
SHM_BYTES = 4 * 2**20               # shared memory per rank, for data loaders with workers
WARN_PER_CORE, REFUSE_PER_CORE = 4, 32


@dataclass(frozen=True)
class Machine:
    """What is there to be used."""
    cores: int
    free_bytes: int
    shm_free_bytes: int | None      # None where the system has no /dev/shm

    @classmethod
    def here(cls) -> "Machine":
        shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None
        return cls(usable_cores(), min(psutil.virtual_memory().available, _cgroup_free_bytes()), shm)


def look(ranks: int, threads: int, machine: Machine) -> str | None:
    """A warning in one sentence, or None if `ranks` fit well.

    Errors: ValueError if they would drown the machine; it says what would fit.
    """
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    if threads > machine.cores * REFUSE_PER_CORE:
        raise ValueError(f"threads={threads} is more than this machine can hold: it has {cores}, and allows at most {machine.cores * REFUSE_PER_CORE} threads.")
    by_memory, by_cores = int(max(machine.free_bytes, 0) // RANK_BYTES), machine.cores * REFUSE_PER_CORE // threads
    if ranks > min(by_memory, by_cores):
        raise ValueError(f"ranks={ranks} is more than this machine can hold: it has {cores} and {machine.free_bytes / 1e9:.1f} GB of free memory, and the "
                         f"{'memory allows' if by_memory <= by_cores else 'cores allow'} at most {min(by_memory, by_cores)} ranks.")
    if ranks * threads > machine.cores * WARN_PER_CORE:
        most = machine.cores * WARN_PER_CORE
        return (f"{ranks} rank{'s' * (ranks != 1)} with {threads} thread{'s' * (threads != 1)} each share {cores}: this will be slow, and times will say little. "
                + (f"Up to {most // threads} ranks run well enough." if threads <= most else f"Up to {most} threads run well enough."))
    if machine.shm_free_bytes is not None and machine.shm_free_bytes < ranks * SHM_BYTES:
        return (f"/dev/shm has only {machine.shm_free_bytes / 1e6:.0f} MB free: data loaders with worker processes may end with a bus error. "
                "Use num_workers=0, or give the container more (docker run --shm-size=1g).")
    return None


def _cgroup_free_bytes(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's memory limit leaves; infinite without a limit. Cached files count as used there, but make room when memory is needed."""
    try:
        limit, used = (float((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + float(counts["active_file"]) + float(counts["inactive_file"])
    except (OSError, ValueError, KeyError):         # no cgroup version 2, or "max"
        return float("inf")
