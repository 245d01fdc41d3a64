"""What the project says of itself, for the website: its parts, its chapters, and which page each file has."""

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "TEXTS", "Chapter", "parts", "page_of", "rooms", "file_of", "docstring_of"]

ROOT = Path(__file__).resolve().parents[2]
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")  # beside those in docs/


@dataclass(frozen=True)
class Chapter:
    """A chapter as README's table has it: the number and the name of its file, its title, what is in it."""

    number: str
    name: str
    title: str
    about: str

    @property
    def file(self) -> str:
        return f"{self.number}_{self.name}.ipynb"


def parts(root: Path = ROOT) -> dict[str, list[Chapter]]:
    """The chapters of each part, in reading order: "Part I: Start" and so on, as docs/design.md has them.

    Errors: ValueError if design, README and notebooks/ do not have the same chapters.
    """
    rows = re.findall(
        r"^\| (\d\d) \| \[([^\]]+)\]\(notebooks/\1_(\w+)\.ipynb\) \| (.*) \|$",
        (root / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    chapters = {name: Chapter(number, name, title, about) for number, title, name, about in rows}
    table = (root / "docs" / "design.md").read_text(encoding="utf-8").split("| Part | Chapters |\n")[1]
    found = {}
    for line in table.partition("\n\n")[0].splitlines()[1:]:
        title, names = (cell.strip() for cell in line.strip("|").split("|"))
        found[title] = [name.strip() for name in names.split(",")]
    files = sorted(path.name for path in (root / "notebooks").glob("[0-9]*.ipynb"))
    designed = [name for names in found.values() for name in names]
    if not designed == list(chapters) == [file[3:-6] for file in files]:
        raise ValueError(
            "docs/design.md, README.md and notebooks/ do not have the same chapters in one order."
        )
    return {
        f"Part {ROMAN[at]}: {title}": [chapters[name] for name in names]
        for at, (title, names) in enumerate(found.items())
    }


def page_of(path: str, root: Path = ROOT) -> str | None:
    """The page (or the picture) of the website that shows a file or a folder of the project; None for others.

    Args:
        path: from the project's folder, as "course_lib/mini/ddp/__init__.py".
    """
    path = os.path.normpath(path)
    if path == "README.md":
        return "index.md"
    if path == "notebooks/scripts":
        return "notebooks/scripts/index.md"
    if path == "notebooks/solutions":
        return "notebooks/solutions/index.md"
    if path in ("course_lib", "course_lib/__init__.py"):
        return "api/index.rst"
    if path.startswith("course_lib/") and (root / path).exists():
        return f"api/{room(path)}.rst"
    if not (root / path).is_file():
        return None
    if found := re.fullmatch(r"docs/website/(\w+\.md)", path):
        return found[1]
    if re.fullmatch(r"notebooks/(solutions/)?\d\d_\w+\.ipynb", path):
        return path
    if re.fullmatch(r"notebooks/scripts/\w+\.(py|sbatch)", path):
        return str(Path(path).with_suffix(".md"))
    if re.fullmatch(r"docs/\w+\.md|data/\w+\.png", path) or path in TEXTS:
        return path
    return None


def rooms(root: Path = ROOT) -> dict[str, list[str]]:
    """The modules of course_lib that offer something, by the room that they stand in.

    A room is a module or a folder of course_lib, or one idea of `mini`; its page shows all of its modules,
    the room's own first.
    """
    found: dict[str, list[str]] = {}
    for path in sorted((root / "course_lib").rglob("*.py"), key=lambda path: path.with_suffix("").parts):
        if "__all__" not in path.read_text(encoding="utf-8") and path.name != "__init__.py":
            continue
        inside = path.relative_to(root)
        if path == root / "course_lib" / "__init__.py":
            continue
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        found.setdefault(room(str(inside)), []).append(module)
    return found


def room(path: str) -> str:
    """Of a file of course_lib: "measure", "theory", "mini.ddp"."""
    parts = Path(path).with_suffix("").parts[1:]
    return ".".join(parts[: 2 if parts[0] == "mini" and parts[1:] not in ((), ("__init__",)) else 1])


def file_of(module: str, root: Path = ROOT) -> Path:
    """Where a module of course_lib stands; the file need not be there."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def docstring_of(module: str, root: Path = ROOT) -> str:
    """The docstring of a module of course_lib, without an import of it."""
    path = file_of(module, root)
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
