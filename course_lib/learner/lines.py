"""Lines of JSON in a file: one for each thing that happened, added by several programs at once, and read also
where some of them are damaged.
"""

import contextlib
import errno
import fcntl
import json
import os

__all__ = ["append", "read"]


def append(file: int, lines: bytes) -> None:
    """Write whole lines at the end of a file, all of them or none.

    Args:
        file: open for reading and appending. It stays locked against others who append until it is closed,
            where its file system knows locks.

    Errors: OSError where they cannot be written, on a full disk say.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    size = os.fstat(file).st_size
    half = size and os.pread(file, 1, size - 1) != b"\n"  # a line that was cut
    lines = b"\n" * bool(half) + lines
    if os.write(file, lines) < len(lines):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(text: str) -> tuple[list[dict], int]:
    """The lines of a file, each with a `kind`; and how many others there are, damaged or foreign."""
    found, others = [], 0
    for line in filter(str.strip, text.split("\n")):
        try:
            one = json.loads(line)
        except (ValueError, RecursionError):
            one = None
        if isinstance(one, dict) and isinstance(one.get("kind"), str):
            found.append(one)
        else:
            others += 1
    return found, others
