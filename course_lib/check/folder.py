"""The folder in which the ranks of a trial write."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from course_lib.ranks import folder

__all__ = ["trial_folder"]


@contextlib.contextmanager
def trial_folder() -> Iterator[Path]:
    """A new folder that only this user can open; it is gone after the block.

    It is made as a job's own directory is: named and locked, so that the next fork server sweeps it up where
    this process was killed.
    """
    path = folder.new_path()
    lock = folder.make(str(path))
    try:
        yield path
    finally:
        folder.remove(path)
        os.close(lock)
