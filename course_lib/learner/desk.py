"""A desk: a folder of one learner's own, with a copy of each chapter in which no output stands yet.

The published chapters stay as they are. What a learner has touched is never overwritten: a copy is replaced
by a newer edition only while it is as it was made, and what is reset is kept beside.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import sys
from pathlib import Path

from course_lib.learner import kernel, record
from course_lib.learner.record import COPIES

__all__ = ["DESK", "lay", "reset", "published", "exercises", "predictions"]

DESK = "desk"  # the folder's name
# Beside the desk, links of its chapters lead where they lead in the project.
_BESIDE = ("README.md", "course_lib", "data", "docs", "notebooks")
_UNREADABLE = "unreadable"
_CHECK = re.compile(r"^check\.(\w+)\(", re.MULTILINE)
# From the last cell of a chapter, to where the published ones are, with their answers: a desk's own stand in
# its folder.
_AWAY = re.compile(r" · \[All chapters\]\([^)]*\)")
_PREDICT = re.compile(r"""\bpredict\(\s*["']([a-z0-9-]+)["']""")


def lay(project: Path, place: Path | None = None) -> list[str]:
    """Lay the desk, or bring one that is there up to date; return a sentence on each thing that was done, or
    was left because it is the learner's.

    Args:
        project: the folder that holds `notebooks/`.
        place: the folder in which `desk/` is made; None: the project itself. Elsewhere, in a class say, links
            beside the desk lead to the project.

    Errors: FileNotFoundError if the project has no chapters; PermissionError or another OSError where the
    place cannot be written to.
    """
    place = place or project
    desk, chapters = place / DESK, published(project)
    if not chapters:
        raise FileNotFoundError(f"There are no chapters in {project / 'notebooks'}.")
    desk.mkdir(parents=True, exist_ok=True)
    if place.resolve() != project.resolve():
        for name in _BESIDE:
            link = place / name
            if link.is_symlink() and not link.exists():
                link.unlink()  # the project has moved
            if not link.exists():
                link.symlink_to((project / name).resolve())
    copies, told, made = _copies(desk), [], 0
    try:
        for name, source in chapters.items():
            done = _bring_up_to_date(desk / name, source, copies, name)
            made += done == "made"
            if done == "theirs":
                done = (
                    "there is a newer edition. Yours has your work in it and stays; to get the new one and"
                    f" keep yours beside it: {_command(name, project, place)}"
                )
            if done not in ("", "made"):
                told.append(f"{name}: {done}")
        for name in sorted(copies.keys() - chapters.keys()):
            told += _take_away(desk / name, copies, name)
    finally:
        _write(desk / COPIES, json.dumps(copies, indent=1))
    return ([f"{desk}: {made} chapters and solutions copied"] if made else []) + told


def reset(project: Path, chapter: str, exercise: str | None = None, place: Path | None = None) -> str:
    """Begin a chapter of the desk, or one exercise of it, anew; return a sentence on where the learner's text
    is kept.

    Args:
        chapter: the file's name, with or without its number and ending: "04_ddp.ipynb", "ddp".
        exercise: the name of its check, such as "own_ddp". None: the whole chapter.

    Errors: ValueError if there is no such chapter or exercise.
    """
    desk, chapters = (place or project) / DESK, published(project)
    name = _chapter(chapter, chapters)
    copy, copies = desk / name, _copies(desk)
    if exercise is None:
        kept = None
        if copy.exists() and _edition(copy) != copies.get(name):
            kept = _free_name(copy)
            copy.rename(kept)
        copies[name] = _copy(chapters[name], copy)
        _write(desk / COPIES, json.dumps(copies, indent=1))
        record.keep("reset", desk, chapter=name, predictions=predictions(_load(copy)))
        return f"{name} is as published." + (f" What you wrote is in {kept.name}, beside it." if kept else "")
    if not copy.exists():
        raise ValueError(f"There is no {copy}: make the desk first.")
    if _edition(copy) == _UNREADABLE:
        raise ValueError(f"Your {name} cannot be read as a notebook: reset the whole chapter.")
    fresh, mine = _load(chapters[name]), _load(copy)
    stubs, answers = exercises(fresh), exercises(mine)
    if exercise not in stubs:
        raise ValueError(f"{name} has no exercise {exercise!r}: it has {', '.join(stubs)}.")
    ids = {fresh["cells"][number].get("id") for number in stubs[exercise]} - {None}
    written = [number for number, cell in enumerate(mine["cells"]) if cell.get("id") in ids]
    written = written or answers.get(exercise, [])
    first = written[0] if written else _where_checked(mine, exercise)
    if first is None:
        raise ValueError(f"Your {name} calls check.{exercise} in no cell: reset the whole chapter.")
    new = [_for_a_desk(fresh["cells"][number]) for number in stubs[exercise]]
    text = "\n\n".join(_text(mine["cells"][number]) for number in written)
    kept = [] if text in ("", "\n\n".join(map(_text, new))) else [_kept(text)]
    left = [cell for number, cell in enumerate(mine["cells"]) if number not in written]
    mine["cells"] = [*left[:first], *new, *kept, *left[first:]]
    _write(copy, _dumped(mine))
    return f"{name}: {exercise} is as published." + (" What you wrote stands below it." if kept else "")


def exercises(notebook: dict) -> dict[str, list[int]]:
    """The exercises of a chapter, by the names of their checks: the numbers of the cells to write in."""
    found, before = {}, []
    for number, cell in enumerate(notebook["cells"]):
        if "exercise" in cell["metadata"].get("tags", ()):
            before.append(number)
        elif cell["cell_type"] == "code" and before and (called := _CHECK.search(_text(cell))):
            found[called[1]], before = before, []
    return found


def predictions(notebook: dict) -> tuple[str, ...]:
    """The names of a chapter's predictions."""
    code = [_text(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return tuple(dict.fromkeys(name for text in code for name in _PREDICT.findall(text)))


def published(project: Path) -> dict[str, Path]:
    """Chapters and solutions, by their names in the desk."""
    folder = project / "notebooks"
    paths = sorted(folder.glob("[0-9]*.ipynb")) + sorted(folder.glob("solutions/[0-9]*.ipynb"))
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _chapter(wanted: str, chapters: dict[str, Path]) -> str:
    asked = wanted.removesuffix(".ipynb")
    for name in chapters:
        if asked in (name.removesuffix(".ipynb"), re.sub(r"^\d+_", "", name).removesuffix(".ipynb")):
            return name
    names = [re.sub(r"^\d+_", "", name).removesuffix(".ipynb") for name in chapters if "/" not in name]
    raise ValueError(f"There is no chapter {wanted!r}: it can be {', '.join(names)}.")


def _bring_up_to_date(copy: Path, source: Path, copies: dict[str, str], name: str) -> str:
    """Make or replace one copy where that is right; return what is to be said of it, "made", or "theirs"."""
    edition = _edition(source, outputs=False)
    if not copy.exists():
        copies[name] = _copy(source, copy)
        return "made"
    if copies.get(name) == edition:
        return ""
    found = _edition(copy)
    if found == edition:  # it is the new one already, and the list of copies was lost
        copies[name] = edition
        return ""
    if found == copies.get(name):
        copies[name] = _copy(source, copy)
        return "there was a newer edition, and you had not touched yours; now it is the new one"
    return "theirs"


def _command(name: str, project: Path, place: Path) -> str:
    """What to type to reset a chapter or a solution, from wherever one is."""
    where = [] if place.resolve() == project.resolve() else ["--place", str(place.resolve())]
    command = [sys.executable, "-m", "course_lib.learner", "reset", name.removesuffix(".ipynb"), *where]
    return shlex.join(command)


def _take_away(copy: Path, copies: dict[str, str], name: str) -> list[str]:
    """A chapter that is published no more, or under another name. A touched one is the learner's own from now
    on.
    """
    edition = copies.pop(name)
    if not copy.exists() or _edition(copy) == edition:
        copy.unlink(missing_ok=True)
        return []
    return [f"{name}: is published no more, or under another name; yours stays"]


def _edition(path: Path, outputs: bool = True) -> str:
    """A short text that changes with the cells of a notebook, and not with what JupyterLab writes when it
    opens one. `outputs`: a cell that has been run counts as changed; without, that of a copy, made of it now.
    """
    try:
        cells = _load(path)["cells"] if outputs else map(_for_a_desk, _load(path)["cells"])
        parts = [[cell["cell_type"], _text(cell), outputs and bool(cell.get("outputs"))] for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _UNREADABLE  # the learner's, in whatever state it is
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _copy(source: Path, copy: Path) -> str:
    """Write a copy without outputs, and return its edition."""
    notebook = _load(source)
    notebook["metadata"] |= {"kernelspec": kernel.SPEC, "language_info": kernel.language()}
    notebook["cells"] = [_for_a_desk(cell) for cell in notebook["cells"]]
    copy.parent.mkdir(exist_ok=True)
    _write(copy, _dumped(notebook))
    return _edition(copy)


def _for_a_desk(cell: dict) -> dict:
    """A cell as a copy has it: without outputs, and without the link that leads away from the desk."""
    if cell["cell_type"] == "code":
        return cell | {"outputs": [], "execution_count": None}
    return cell | {"source": _AWAY.sub("", _text(cell)).splitlines(keepends=True)}


def _where_checked(notebook: dict, exercise: str) -> int | None:
    for number, cell in enumerate(notebook["cells"]):
        if (called := _CHECK.search(_text(cell))) and called[1] == exercise:
            return number
    return None


def _kept(text: str) -> dict:
    """A cell of text that shows what stood in an exercise before."""
    return {
        "cell_type": "markdown",
        "id": f"kept-{secrets.token_hex(4)}",
        "metadata": {},
        "source": f"What you wrote before:\n```python\n{text}\n```",
    }


def _free_name(path: Path) -> Path:
    numbers = (path.with_name(f"{path.stem}.mine-{number}.ipynb") for number in range(1, 10_000))
    return next(name for name in numbers if not name.exists())


def _copies(desk: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((desk / COPIES).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _text(cell: dict) -> str:
    return "".join(cell["source"])


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _dumped(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """All of it or nothing, also when the machine stops meanwhile."""
    half = path.with_name(f".{path.name}.new")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)
