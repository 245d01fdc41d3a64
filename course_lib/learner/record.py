"""What a learner has guessed and solved: lines of JSON in their desk. Elsewhere nothing is kept, and nothing
leaves the desk but what a learner who has joined a class (`class_folder.py`) passes on to it.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from course_lib.learner import class_folder, lines

__all__ = ["COPIES", "RECORD", "here", "keep", "kept"]

COPIES = ".copies.json"  # in a desk: for each copy, the edition of which it is one
RECORD = "record.jsonl"  # in a desk, one line for each thing that happened


@functools.cache
def here() -> Path | None:
    """The desk in which this process works: the folder in which it was when this was first asked for. A
    folder in a desk (of solutions) is none: whose answers those are is known.
    """
    return Path.cwd() if Path(COPIES).exists() else None


def keep(kind: str, desk: Path | None = None, **fields) -> None:
    """Write down one thing that happened; nothing, where there is no desk.

    Args:
        kind: "guess", "compared", "verdict" or "reset".
        desk: None: the one in which this process works.
        fields: what JSON knows.
    """
    desk = desk or here()
    if desk is None or not (desk / COPIES).exists():
        return
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"kind": kind, "when": when} | fields, ensure_ascii=False) + "\n"
    # a desk that cannot be written to (a full disk, say) stops nobody's work
    with contextlib.suppress(OSError):
        # at the end and in one piece, also when two notebooks write at once
        file = os.open(desk / RECORD, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            lines.append(file, line.encode())
            class_folder.pass_on(desk, file)
        finally:
            os.close(file)


def kept(desk: Path | None = None) -> Iterator[dict]:
    """What is kept, the oldest first, each with its `kind`, `when` (UTC) and fields; lines that are damaged
    are passed over.

    Args:
        desk: None: the one in which this process works; nothing, where it is none.
    """
    desk = desk or here()
    if desk is None or not (desk / COPIES).exists():
        return
    with contextlib.suppress(OSError):
        yield from lines.read((desk / RECORD).read_text(encoding="utf-8", errors="replace"))[0]
