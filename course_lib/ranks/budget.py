"""Look at what the machine can hold before ranks are started."""
import os
import shutil
from dataclasses import dataclass

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
    fit = min(machine.free_bytes // RANK_BYTES, machine.cores * REFUSE_PER_CORE)
    if ranks > fit:
        short = "memory" if machine.free_bytes // RANK_BYTES <= machine.cores * REFUSE_PER_CORE else "cores"
        raise ValueError(f"ranks={ranks} is more than this machine can hold: it has {machine.cores} core{'s' * (machine.cores != 1)} and "
                         f"{machine.free_bytes / 1e9:.1f} GB of free memory, and the {short} allow{'s' if short == 'memory' else ''} at most {max(fit, 0)} ranks.")
    if ranks * threads > machine.cores * WARN_PER_CORE:
        return (f"{ranks} ranks with {threads} thread{'s' * (threads != 1)} each share {machine.cores} core{'s' * (machine.cores != 1)}: this will be slow, "
                f"and times will say little. Up to {machine.cores * WARN_PER_CORE // threads} ranks run well enough.")
    if machine.shm_free_bytes is not None and machine.shm_free_bytes < ranks * SHM_BYTES:
        return (f"/dev/shm has only {machine.shm_free_bytes / 1e6:.0f} MB free: data loaders with worker processes may end with a bus error. "
                "Use num_workers=0, or give the container more (docker run --shm-size=1g).")
    return None


def _cgroup_free_bytes() -> float:
    """What a container's memory limit leaves; infinite without a limit."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            return float(limit.read()) - float(used.read())
    except (OSError, ValueError):           # no cgroup version 2, or "max"
        return float("inf")
