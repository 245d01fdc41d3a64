"""A job's private directory: made and locked, removed, and swept up where nobody was left to remove it.

It holds what has to have a name: the file through which ranks meet, what each has printed, dumps of its
threads. The supervisor makes it and removes it. Its lock is held by every process of the job and ends with
the last of them, however they end, so that an unlocked directory belongs to nobody: the next fork server of
this user removes it.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["new_path", "make", "empty", "remove", "sweep", "KEPT_S"]

KEPT_S = 24 * 3600.0  # how long the saved output of a job is kept
_PREFIX, _JOB = "course_lib-", "course_lib-job-"


def new_path() -> Path:
    """A path for a job's directory, in the folder for temporary files. Nothing is made yet."""
    return Path(tempfile.gettempdir(), _JOB + secrets.token_hex(8))


def make(path: str) -> int:
    """Make a directory that only this user can open (mode 0700), and lock it.

    Returns:
        The descriptor that holds the lock; a fork inherits it.
    """
    while True:
        os.mkdir(path, 0o700)
        lock = os.open(path, os.O_RDONLY)
        # a file system without locks: then nothing is swept there either
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(path):  # it was not swept up before it was locked
            return lock
        os.close(lock)


def empty(path: str) -> None:
    """Delete what an attempt has left in a job's directory, before the next one begins; the lock stays."""
    for entry in os.scandir(path):
        os.unlink(entry.path)


def remove(path: str | Path, wait_s: float = 1.0) -> None:
    """Delete a directory, more than once where a process that is about to end still writes into it."""
    end = time.monotonic() + wait_s
    while os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > end:
            return


def sweep(folder: str) -> None:
    """Remove what earlier jobs of this user have left in `folder`: directories that no process holds, and
    anything else of ours once it is a day old.
    """
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another sweep was faster
            if (
                not entry.name.startswith(_PREFIX)
                or (told := entry.stat(follow_symlinks=False)).st_uid != os.getuid()
            ):
                continue
            old = time.time() - told.st_mtime > KEPT_S
            if stat.S_ISDIR(told.st_mode) and (old or entry.name.startswith(_JOB)):
                _remove_unless_held(entry.path)
            elif stat.S_ISREG(told.st_mode) and old:
                os.unlink(entry.path)


def _remove_unless_held(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its job runs
        remove(path)
    finally:
        os.close(lock)
