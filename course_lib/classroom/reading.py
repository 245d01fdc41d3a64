"""A folder of records, as learners pass them on. Anybody in the class may have written anything into it: what
is no record is passed over, and counted.
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from course_lib.learner.book import PROJECT, Chapter, chapters
from course_lib.learner.class_folder import NAME
from course_lib.learner.lines import read

__all__ = ["Classroom", "read_class", "SAMPLE"]

SAMPLE = PROJECT / "data" / "sample_class"  # of learners who are simulated: data/README.md
MOST_BYTES = 20_000_000  # of one learner; a whole course is a hundredth of it
LARGEST = 1e300  # of a number


@dataclass(frozen=True)
class Classroom:
    """What the records of a class say.

    Attributes:
        learners: name -> what they have passed on, the oldest first.
        chapters: of the book, in reading order.
        files_passed_over: files that are no record, or cannot be read.
        lines_passed_over: damaged and foreign lines of the others.
    """

    learners: Mapping[str, tuple[dict, ...]]
    chapters: tuple[Chapter, ...]
    files_passed_over: int = 0
    lines_passed_over: int = 0

    def __repr__(self) -> str:
        lines = sum(map(len, self.learners.values()))
        over = f"{_many(self.files_passed_over, 'file')}, {_many(self.lines_passed_over, 'line')}"
        whole = f"{_many(len(self.learners), 'learner')}, {_many(lines, 'line')}"
        return f"{whole}; passed over, damaged or foreign: {over}"

    def chapter_of(self, name: object) -> Chapter | None:
        """The chapter that has a prediction or an exercise of this name; None: no chapter has."""
        return next((one for one in self.chapters if name in one.predictions or name in one.exercises), None)


def read_class(folder: str | Path = SAMPLE) -> Classroom:
    """Read what a class has passed on. Nothing is written.

    Args:
        folder: the class's. Without one, the sample: a class that is simulated.

    Errors: ValueError if there is no such folder; TypeError for what is no path.
    """
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder={folder!r}: it must be the path of a folder.")
    folder = Path(folder).expanduser()
    if "\0" in str(folder) or not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    learners, no_records, others = {}, 0, 0
    for path in sorted(folder.iterdir()):
        lines, damaged = _record(path)
        if lines:
            learners[path.stem] = tuple(sorted(lines, key=lambda line: line["when"]))
            others += damaged
        elif path.name != "README.md":
            no_records += 1
    return Classroom(learners, chapters(), no_records, others)


def _record(path: Path) -> tuple[list[dict], int]:
    """The good lines of a file, and how many others it has; nothing, where it is no record."""
    try:
        about = path.lstat()
        if path.suffix != ".jsonl" or not NAME.fullmatch(path.stem):
            return [], 0
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
            return [], 0  # a pipe, say, in which nothing would ever come
        found, others = read(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return [], 0
    lines = [line for line in map(_checked, found) if line]
    return lines, others + len(found) - len(lines)


def _checked(line: dict) -> dict | None:
    """A line with its time as a time, if all that the tables read of it is as `record.keep` writes it."""
    try:
        when = datetime.fromisoformat(line["when"]).astimezone(UTC)
        good = 2000 < when.year < 2200 and _FIELDS[line["kind"]](line)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return line | {"when": when} if good else None


def _is_answer(value: object) -> bool:
    if isinstance(value, str):
        return len(value) < 1000
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < LARGEST  # not so of nan


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{1,100}", value) is not None


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


_FIELDS = {
    "joined": lambda line: isinstance(line["desk"], str),
    "guess": lambda line: (
        _is_name(line["name"]) and _is_answer(line["guess"]) and isinstance(line["unit"], str)
    ),
    "compared": lambda line: (
        _is_name(line["name"])
        and _is_answer(line["measured"])
        and (line["guess"] is None or _is_answer(line["guess"]) and _alike(line["guess"], line["measured"]))
        and isinstance(line["unit"], str)
        and line["how"] in ("measured", "modelled")
    ),
    "verdict": lambda line: (
        _is_name(line["exercise"]) and isinstance(line["passed"], bool) and _are_names(line["missed"])
    ),
    "reset": lambda line: isinstance(line["chapter"], str) and _are_names(line["predictions"]),
}


def _alike(one: object, other: object) -> bool:
    """Both numbers, or both choices."""
    return isinstance(one, str) == isinstance(other, str)


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"
