"""What a kernel may leave behind: processes, files, shared memory, sockets on which somebody listens. The one
place where tests and benches look.

A kernel is started with `environ`: a mark that everything below it inherits, whoever its parent is by then,
and a folder of its own for temporary files. So only what is its own is found, also on a machine with other
work.
"""

import os
import re
import secrets
import time
from pathlib import Path

import psutil

_MARK = "COURSE_LIB_TEST_MARK"


class Traces:
    """The traces of one kernel, from before its start to after its end."""

    def __init__(self, folder: Path):
        """`folder`: an empty one, which becomes the kernel's folder for temporary files."""
        self.folder, self._mark = folder, secrets.token_hex(8)
        self.environ = {**os.environ, _MARK: self._mark, "TMPDIR": str(folder)}
        self._seen: dict[int, psutil.Process] = {}

    def look(self) -> list[psutil.Process]:
        """The kernel's processes that live now (a zombie has ended: in a container often nobody collects it).
        What is found is kept in mind.
        """
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    self._seen[process.pid] = process
            except psutil.Error:
                pass
        return [process for process in self._seen.values() if _lives(process)]

    def sockets(self) -> list[str]:
        """Addresses on which the kernel's processes listen."""
        found = []
        for process in self.look():
            try:
                found += [
                    f"{c.laddr.ip}:{c.laddr.port} of process {process.pid}"
                    for c in process.net_connections("inet")
                    if c.status == psutil.CONN_LISTEN
                ]
            except psutil.Error:
                pass
        return found

    def files(self) -> list[str]:
        """What stands in its folder for temporary files, but for what others put there (torch makes one cache
        per user).
        """
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if not path.name.startswith(("ipykernel", "torchinductor"))
        )

    def shared_memory(self) -> list[str]:
        """Entries of /dev/shm named after one of its processes: torch's, and those of
        `faults.keeps_shared_memory`.
        """
        return shared_memory_of(self._seen.keys())

    def left(self, wait_s: float, spare: set[int] = frozenset()) -> list[str]:
        """In words, what is still there once `wait_s` seconds have passed; empty as soon as nothing is.
        `spare`: processes that may live on.
        """
        end = time.monotonic() + wait_s
        while True:
            processes = [f"process {p.pid}" for p in self.look() if p.pid not in spare]
            found = [*processes, *(self.sockets() if processes else ()), *self.files(), *self.shared_memory()]
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.02)


def shared_memory_of(processes: set[int]) -> list[str]:
    """Entries of /dev/shm with the id of one of these processes in their name."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return [name for name in names if processes & {int(number) for number in re.findall(r"\d+", name)}]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
