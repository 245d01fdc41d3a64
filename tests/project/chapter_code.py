"""The code of all chapters and solutions, and what it imports."""

import importlib.util
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def code_of_notebooks() -> str:
    paths = (ROOT / "notebooks").rglob("*.ipynb")
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells]
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def modules_of_chapters() -> list[str]:
    """The modules of course_lib that notebooks import, or import from."""
    modules = set()
    for package, names in re.findall(r"from (course_lib[\w.]*) import ([\w, ]+)", code_of_notebooks()):
        names = [name.split(" as ")[0].strip() for name in names.split(",")]
        modules |= {package, *(f"{package}.{name}" for name in names)}
    return sorted(filter(_is_module, modules))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a name in a module that is no package
        return False
