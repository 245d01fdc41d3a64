"""What ranks print, in a file for each: read while they run, cut where it is long, saved, and bounded."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from course_lib.ranks import folder

__all__ = ["KEPT_BYTES", "LIVE_BYTES", "MOST_BYTES", "read", "too_long"]

KEPT_BYTES = 100_000  # of each rank's output, what a Job keeps; longer output is saved whole
LIVE_BYTES = 16_000  # of each rank's output, what is read again and again while the job runs
MOST_BYTES = 200_000_000  # a rank that prints more is stopped, before it fills the disk


def read(path: Path, save: bool = False, limit_bytes: int = KEPT_BYTES) -> str:
    """What a rank has printed; of very long output the beginning and the end, and where the rest is: nowhere,
    if it is too much to be kept, or if nobody asks to `save` it.
    """
    size = _size(path)
    if not size:
        return ""
    with open(path, "rb") as file:
        if size <= limit_bytes:
            return file.read().decode(errors="replace")
        half = limit_bytes // 2
        head = file.read(half)
        file.seek(-half, os.SEEK_END)
        tail = file.read()
    whole = ""
    # else the next job would find no room
    if save and size <= MOST_BYTES and shutil.disk_usage(path.parent).free > size:
        with contextlib.suppress(OSError):  # the disk is full after all: the job is not lost for that
            handle, saved = tempfile.mkstemp(prefix=f"course_lib-output-{path.stem}-", suffix=".txt")
            os.close(handle)
            shutil.move(path, saved)
            whole = (
                f"; the whole output, {size / 1e6:.1f} MB, is in {saved} for {folder.KEPT_S / 3600:g} hours"
            )
    return (
        f"{head.decode(errors='replace')}\n... {size - 2 * half:,} bytes left out{whole}"
        f" ...\n{tail.decode(errors='replace')}"
    )


def too_long(path: Path) -> bool:
    """Whether a rank has printed more than the disk should hold."""
    return _size(path) > MOST_BYTES


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
