"""A class: a folder that learners share with their teacher. Who joins passes on what the desk keeps from then
on, line by line, to a file of their own in it. Without the join, nothing leaves the desk.

The desk remembers how far the file has got. So what could not be written (a full disk, a folder that was
away) follows with the next line that can, and nothing stands there twice.
"""

import contextlib
import grp
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from course_lib.learner import lines

__all__ = ["Membership", "membership", "join", "leave", "has_left", "pass_on"]

# of a learner in a class: letters of any language, no way out of the folder
NAME = re.compile(r"\w[\w .-]{0,59}")
_FILE = ".class.json"  # in a desk


@dataclass(frozen=True)
class Membership:
    """A desk's place in a class.

    Attributes:
        folder: the class's.
        name: the learner's in it.
        desk: a number of the desk's own, in hex: by it the file knows whose it is.
        sent: how many bytes of the desk's record have been looked after: passed on, or older than the join.
    """

    folder: Path
    name: str
    desk: str
    sent: int

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.jsonl"


def membership(desk: Path) -> Membership | None:
    """The class that a desk has joined; None: it is in no class, or the file that says so cannot be read."""
    found = _read(desk)
    try:
        joined = Membership(Path(found["folder"]), found["name"], found["desk"], found["sent"])
    except (KeyError, TypeError):
        return None
    good = isinstance(joined.name, str) and NAME.fullmatch(joined.name)
    return joined if good and isinstance(joined.sent, int) and joined.sent >= 0 else None


def join(desk: Path, folder: Path, name: str, record: Path) -> str:
    """Pass on to a class what the desk keeps from now on; return a sentence on who will see what.

    Args:
        desk: the desk.
        folder: the class's, which is there.
        name: the learner's in the class, of their choice: letters, digits, spaces, points and hyphens. To
            join again under the same name changes nothing.
        record: the desk's record. What stands in it by now is not passed on.

    Errors: ValueError if there is no such folder, the name cannot be, another desk has it, or the desk is in
    another class; OSError where the folder cannot be written to.
    """
    folder = folder.expanduser().resolve()
    if not NAME.fullmatch(name) or name != name.strip():
        raise ValueError(
            f"name={name!r}: up to 60 letters, digits, spaces, points, '-' and '_', and no point first."
        )
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: the teacher makes it first.")
    now = membership(desk)
    if now and (now.folder, now.name) != (folder, name):
        raise ValueError(f"This desk is in {now.folder} as {now.name!r}: leave that class first.")
    own = _read(desk).get("desk") or secrets.token_hex(8)
    sent = record.stat().st_size if record.exists() else 0
    wanted = now or Membership(folder, name, own, sent)
    os.close(_open(wanted))
    if now is None:
        _write(desk, wanted)
    return (
        f"You are in the class as {name!r}. From now on your guesses and what was measured, the verdicts of"
        f" checks, what you reset, and when, are written to {wanted.file} as well, which"
        f" {_who_reads(folder)}; nothing that you type in a cell, and nothing from before."
    )


def leave(desk: Path) -> str:
    """Pass on nothing more; return a sentence on what the class still has."""
    now = membership(desk)
    if now is None:
        return "This desk is in no class."
    _write(desk, now.desk)
    return f"Nothing more is passed on. What {now.file} holds stays: it is yours, and you may delete it."


def has_left(desk: Path) -> bool:
    """Whether a desk was in a class, and is in none now."""
    return membership(desk) is None and "desk" in _read(desk)


def pass_on(desk: Path, record: int) -> None:
    """Bring the class's file up to date, where the desk is in a class. What cannot be written waits for the
    next time: nobody's work stops for it.

    Args:
        record: the desk's record, open for reading and locked: two notebooks may pass on at once.
    """
    with contextlib.suppress(OSError, ValueError):
        if now := membership(desk):
            _bring_up_to_date(desk, now, record)


def _bring_up_to_date(desk: Path, now: Membership, record: int) -> None:
    size = os.fstat(record).st_size
    begin = now.sent if now.sent <= size else 0  # the learner began the record anew
    new = os.pread(record, size - begin, begin)
    file = _open(now)
    try:
        lines.append(file, new)
    finally:
        os.close(file)
    _write(desk, replace(now, sent=begin + len(new)))


def _open(wanted: Membership) -> int:
    """The learner's file in the class, made if it is not there.

    Errors: ValueError if it is another desk's; OSError where it cannot be made or written to. The folder is
    never made: a class that is over, or a disk that is away, stays so.
    """
    flags, mode = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, _mode(wanted.folder)
    taken = f"Another desk is in this class as {wanted.name!r}: choose another name."
    try:
        file = os.open(wanted.file, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        try:
            file = os.open(wanted.file, flags)
        except OSError:  # another user's, or a link
            raise ValueError(taken) from None
        if _whose(file) != wanted.desk:
            os.close(file)
            raise ValueError(taken) from None
        return file
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"kind": "joined", "when": when, "desk": wanted.desk}
    try:
        os.fchmod(file, mode)  # whatever the learner's umask is
        lines.append(file, json.dumps(line).encode() + b"\n")
    except OSError:
        os.close(file)
        wanted.file.unlink(missing_ok=True)
        raise
    return file


def _whose(file: int) -> str | None:
    """The desk that made a file of a class, by its first line."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return None
    first = os.pread(file, 1000, 0).partition(b"\n")[0]
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(first).get("desk")
    return None


def _mode(folder: Path) -> int:
    """Where new files get the folder's group (setgid), that group reads; else all who may enter it."""
    return 0o640 if folder.stat().st_mode & stat.S_ISGID else 0o644


def _who_reads(folder: Path) -> str:
    if _mode(folder) == 0o644:
        return "everybody who may enter that folder can read"
    group = folder.stat().st_gid
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(group).gr_name
    return f"you and the group {group!r} can read"


def _read(desk: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((desk / _FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(desk: Path, now: Membership | str) -> None:
    """All of it or nothing; of a desk that has left, only its number, by which it may come back."""
    kept = {"desk": now}
    if isinstance(now, Membership):
        kept = {"desk": now.desk, "folder": str(now.folder), "name": now.name, "sent": now.sent}
    half = desk / f"{_FILE}.new"
    half.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(half, desk / _FILE)
