"""Names of threads for the operating system, by which other processes can tell what a thread does (Linux)."""

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["ANSWERING", "called"]

ANSWERING = "course_lib"  # a rank's thread that answers when the kernel asks where the rank is


@contextlib.contextmanager
def called(name: str) -> Iterator[None]:
    """Within, this thread has a name of up to 15 characters in /proc; elsewhere nothing happens."""
    path = f"/proc/self/task/{threading.get_native_id()}/comm"
    try:
        with open(path) as file:
            before = file.read()
        _write(path, name)
    except OSError:
        before = ""
    try:
        yield
    finally:
        if before:
            _write(path, before)


def _write(path: str, name: str) -> None:
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write(name)
