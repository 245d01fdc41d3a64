"""Desks for a class, from a list of names, each joined to the class's folder."""

import os
import pwd
import shlex
import sys
from pathlib import Path

from course_lib.learner import class_folder, desk, record
from course_lib.learner.book import PROJECT

__all__ = ["CLASS", "lay_class", "lay_one"]

CLASS = "class"  # the folder that all join, beside theirs
OPEN_TO_ALL = 0o3733  # all may add a file, none may see which there are, or take away another's
PRIVATE = 0o700


def lay_class(names: list[str], where: Path, project: Path = PROJECT) -> tuple[list[str], list[str]]:
    """Lay a desk for each name in a folder of that name, and join it to `class/` beside them. What is there
    already is brought up to date, and nothing of a learner's is overwritten; who has left the class is not
    joined again.

    Called by root, a desk whose name is that of a user is made by this user, and theirs.

    Args:
        names: one for each learner.
        where: the folder of all desks; made if it is not there.
        project: the folder that holds `notebooks/`.

    Returns: what each learner types, and a sentence on each name that was refused.

    Errors: OSError if `where` cannot be made or written to.
    """
    where = where.expanduser().resolve()
    folder = where / CLASS
    where.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        folder.mkdir()
        folder.chmod(OPEN_TO_ALL)
    told, refused, seen = [], [], set()
    for name in names:
        try:
            if name in seen:
                raise ValueError("it stands twice in the list.")
            seen.add(name)
            _lay(name, where, folder, project)
        except (ValueError, OSError) as error:
            refused.append(f"{name}: {error}")
        else:
            command = [sys.executable, "-m", "course_lib.learner", "lab", "--place", str(where / name)]
            told.append(f"{name}: {shlex.join(command)}")
    return told, refused


def lay_one(name: str, place: Path, folder: Path, project: Path = PROJECT) -> None:
    """Lay one learner's desk in `place`, and join it to a class's folder, unless its learner has left that.

    Errors: ValueError if the desk is in another class, or another desk has the name.
    """
    own = place / desk.DESK
    desk.lay(project, place)
    if not class_folder.has_left(own):
        class_folder.join(own, folder, name, own / record.RECORD)


def _lay(name: str, where: Path, folder: Path, project: Path) -> None:
    if name == CLASS:
        raise ValueError("the folder that all join has this name.")
    if not class_folder.NAME.fullmatch(name) or name != name.strip():
        raise ValueError("a name has up to 60 letters, digits, spaces, points, '-' and '_', no point first.")
    place, user = where / name, _user(name)
    if not place.exists() and not place.is_symlink():
        place.mkdir(PRIVATE)
        if user:
            os.chown(place, user.pw_uid, user.pw_gid, follow_symlinks=False)
    if user is None:
        lay_one(name, place, folder, project)
    elif place.is_symlink() or place.stat().st_uid != user.pw_uid:
        raise ValueError(f"{place} belongs to another user.")
    else:
        _lay_as(user, name, place, folder, project)


def _user(name: str) -> pwd.struct_passwd | None:
    """The user of this name, in whose place only root can work."""
    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    return user if os.geteuid() == 0 and user.pw_uid else None


def _lay_as(user: pwd.struct_passwd, *arguments) -> None:
    """As this user, in a process that can be root no more: root writes nothing where a learner may have put a
    link.
    """
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            lay_one(*arguments)
        except BaseException as error:
            os.write(writer, (str(error) or repr(error)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        wrong = told.read()
    os.waitpid(child, 0)
    if wrong:
        raise ValueError(wrong)
