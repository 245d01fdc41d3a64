"""Lay a desk, open it in JupyterLab, begin a chapter or an exercise anew, where you stand, join a class.

    python -m course_lib.learner lab                  # what `make lab` does
    python -m course_lib.learner desk                 # lay it, or bring it up to date, and open nothing
    python -m course_lib.learner reset ddp            # a whole chapter; what you wrote is kept beside it
    python -m course_lib.learner reset ddp own_ddp    # one exercise, by the name of its check
    python -m course_lib.learner where                # for each chapter, what is predicted and what is solved
    python -m course_lib.learner join /srv/class --name Anna    # from now on a teacher sees what you solve
    python -m course_lib.learner leave                # and no more

Each takes --place FOLDER: the desk is `desk/` in it, and not in the project's own folder. What else `lab` is
given goes to JupyterLab.
"""

import argparse
import os
import sys
from pathlib import Path

from course_lib.learner import class_folder, desk, kernel, record, standing

__all__ = ["main"]

PROJECT = Path(__file__).resolve().parents[2]
# for JupyterLab: no other host is asked for news or newer versions, no question about them lies over the
# first page, and names of chapters have all the room beside it
SETTINGS = Path(__file__).parent / "lab_settings"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.learner",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("lab", "desk", "reset", "where", "join", "leave"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--place", type=Path, default=PROJECT)
        if name == "reset":
            command.add_argument("chapter")
            command.add_argument("exercise", nargs="?")
        if name == "join":
            command.add_argument("folder", type=Path)
            command.add_argument("--name", required=True)
    options, more = parser.parse_known_args(arguments)
    if more and options.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    place = options.place.expanduser().resolve()
    try:
        if options.command == "reset":
            print(desk.reset(PROJECT, options.chapter, options.exercise, place))
            return 0
        if options.command == "where":
            print(standing.where_i_stand(place / desk.DESK, PROJECT))
            _say_what_is_passed_on(place)
            return 0
        if options.command in ("join", "leave"):
            own = place / desk.DESK
            if not (own / record.COPIES).exists():
                raise ValueError(f"There is no desk in {place}: make the desk first.")
            if options.command == "leave":
                print(class_folder.leave(own))
            else:
                print(class_folder.join(own, options.folder, options.name, own / record.RECORD))
            return 0
        kernel.make_known()
        for sentence in desk.lay(PROJECT, place):
            print(sentence)
        _say_what_is_passed_on(place)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if options.command == "lab":
        _open(place, more)
    return 0


def _say_what_is_passed_on(place: Path) -> None:
    if now := class_folder.membership(place / desk.DESK):
        print(f"What you guess and solve is passed on to {now.file}, until you `leave`.")


def _open(place: Path, more: list[str]) -> None:
    """JupyterLab, until it is closed, with the desk's first chapter as the page that it begins with."""
    from jupyterlab import labapp  # loads for seconds

    # what a learner has set in JupyterLab comes before it
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, (os.environ.get("JUPYTER_CONFIG_PATH"), str(SETTINGS)))
    )
    first = min(path.name for path in (place / desk.DESK).glob("[0-9]*.ipynb"))
    settings = [f"--ServerApp.root_dir={place}", f"--LabApp.default_url=/lab/tree/{desk.DESK}/{first}"]
    labapp.main([*settings, *more])


if __name__ == "__main__":
    sys.exit(main())
