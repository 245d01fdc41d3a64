"""The link that joins this rank's host to the others, where `run` was told `on=hosts.Linked(...)`: bytes that
the system counts on its interface, and whether it is up.

The counter is of the whole host: every frame that its ranks send to other hosts, with headers and
acknowledgements. What ranks of one host say to each other does not pass it.
"""

import fcntl
import socket
import struct

from course_lib.ranks.network import INTERFACE

__all__ = ["found", "is_there", "look", "take_down", "Counter"]

_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914  # linux/sockios.h
_UP, _RUNNING = 0x1, 0x40  # linux/if.h: switched on here; connected to an end that is switched on
_REQUEST = struct.Struct("16sH22x")  # struct ifreq: a name, and flags
_here: list[int] = []  # the number of this rank's host; empty where no link is


def found(host: int) -> None:
    """This rank is on a linked host, of this number (called by the rank's worker)."""
    _here[:] = [host]


def is_there() -> bool:
    """Whether this process is a rank on a linked host."""
    return bool(_here)


def look() -> dict | None:
    """state ("up", "down": here, or "cut": elsewhere) and moved_bytes (both ways, so far) of this host's
    link; None where there is none.
    """
    if not _here:
        return None
    flags = _flags()
    state = "down" if not flags & _UP else "up" if flags & _RUNNING else "cut"
    return {"state": state, "moved_bytes": sum(_counted())}


def take_down() -> None:
    """Switch this host's end of the link off."""
    _flags(_flags() & ~_UP)


class Counter:
    """The bytes that this host has sent over its link, step by step. Each rank counts, and of a host the
    count of the first that measures steps is kept.

    A step's bytes are those from its beginning to the beginning of the next: what a rank has handed to the
    system is still on its way when the rank goes on.
    """

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self._step: dict | None = None  # that has ended, and is still to be counted
        self._before = 0

    def begin(self) -> None:
        """A step begins, or the last one is over: the one before is counted."""
        now = _counted()[1]
        if self._step is not None:
            self.rows.append({"host": _here[0], **self._step, "sent_bytes": now - self._before})
        self._step, self._before = None, now

    def end(self, step: int, phase: str) -> None:
        """A step has ended, and was no failure."""
        self._step = {"step": step, "phase": phase}


def _counted() -> tuple[int, int]:
    """Bytes received and sent by the interface so far."""
    with open("/proc/self/net/dev") as file:
        for line in file:
            name, _, numbers = line.partition(":")
            if name.strip() == INTERFACE:
                received, *_, sent = numbers.split()[:9]
                return int(received), int(sent)
    return 0, 0


def _flags(new: int | None = None) -> int:
    """The interface's flags, after they were set to `new`."""
    name = INTERFACE.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        if new is not None:
            fcntl.ioctl(line, _SET_FLAGS, _REQUEST.pack(name, new))
        return _REQUEST.unpack(fcntl.ioctl(line, _GET_FLAGS, _REQUEST.pack(name, 0)))[1]
