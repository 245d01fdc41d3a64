"""Lay desks for a class, or list the exercises that were solved.

    python -m course_lib.classroom lay names.txt /srv/course    # what `make class` does: one name a line
    python -m course_lib.classroom csv /srv/course/class > marks.csv

A learner's file in the class's folder is their own, and can be written by hand: the list helps, and proves
nothing.
"""

import argparse
import sys
import unicodedata
from pathlib import Path

from course_lib.classroom import desks, reading, tables
from course_lib.learner import kernel

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.classroom",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lay = commands.add_parser("lay", allow_abbrev=False)
    lay.add_argument("list", type=Path)
    lay.add_argument("desks", type=Path)
    commands.add_parser("csv", allow_abbrev=False).add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        return _csv(options.folder) if options.command == "csv" else _lay(options.list, options.desks)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _lay(names: Path, where: Path) -> int:
    kernel.make_known()
    try:
        text = names.read_text(encoding="utf-8-sig")  # with or without the mark that Windows puts first
    except UnicodeDecodeError:
        raise ValueError(f"{names} is no text in UTF-8: save it as such.") from None
    # an accent may be a letter of its own, which looks the same, and is none that a name can have
    lines = [line.strip() for line in unicodedata.normalize("NFC", text).splitlines()]
    told, refused = desks.lay_class([line for line in lines if line and not line.startswith("#")], where)
    print("\n".join(told))
    folder = where.expanduser().resolve() / desks.CLASS
    print(
        f"\n{len(told)} desk{'s' * (len(told) != 1)}; what is guessed and solved comes to {folder}."
        "\nSay so to the learners: `lab` tells them too, and `python -m course_lib.learner leave --place ...`"
        " ends it."
    )
    for sentence in refused:
        print(f"Refused: {sentence}", file=sys.stderr)
    return 1 if refused else 0


def _csv(folder: Path) -> int:
    room = reading.read_class(folder)
    solved = tables.tries(room).query("solved").sort_values(["learner", "solved_at"])
    solved = solved[["learner", "chapter", "exercise", "tries", "solved_at"]]
    solved.rename(columns={"solved_at": "solved_at_utc"}).to_csv(sys.stdout, index=False)
    print(room, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
