"""Pages of the reference: each public name of course_lib once, under the shortest name that imports it.

Names are found by reading the files, so that pages are laid out in a second; Sphinx imports them later.
"""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from project import ROOT, docstring_of, file_of, rooms

__all__ = ["Name", "public_names", "reference_pages"]


@dataclass(frozen=True)
class Name:
    """A public name: the module and the kind of statement that define it, and its value if it is short."""

    module: str
    name: str
    kind: str  # "class", "function" or "data"
    value: str = ""


def public_names(root: Path = ROOT) -> dict[str, dict[str, Name]]:
    """For each module that offers something, what its names are. Modules that it offers are left out."""
    modules = ["course_lib", *(module for inside in rooms(root).values() for module in inside)]
    return {
        module: {
            name: _defined(module, name, root)
            for name in _offered(module, root)
            if not file_of(f"{module}.{name}", root).exists()
        }
        for module in modules
    }


@functools.cache
def _statements(module: str, root: Path) -> dict[str, ast.stmt]:
    """What a module defines or imports at its top, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(file_of(module, root).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                found[target.id] = node
    return found


def _offered(module: str, root: Path) -> list[str]:
    """What stands in `__all__`, also where it is put together in two lines."""
    names: list[str] = []
    for node in ast.parse(file_of(module, root).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == "__all__":
                try:
                    names += ast.literal_eval(node.value)
                except ValueError:  # of other lists
                    return list(importlib.import_module(module).__all__)
    return names


@functools.cache
def _defined(module: str, name: str, root: Path) -> Name:
    node = _statements(module, root).get(name)
    if isinstance(node, ast.ClassDef):
        return Name(module, name, "class")
    if isinstance(node, ast.FunctionDef):
        return Name(module, name, "function")
    if isinstance(node, ast.ImportFrom):
        if not node.module.startswith("course_lib"):
            return Name(module, name, "data")  # of another library
        (alias,) = [alias for alias in node.names if (alias.asname or alias.name) == name]
        return _defined(node.module, alias.name, root)
    if node is None:  # a package that loads its names when they are first used says where they stand
        homes = getattr(importlib.import_module(module), "_HOMES", {})
        return (
            _defined(f"{module}.{homes[name]}", name, root) if name in homes else Name(module, name, "data")
        )
    value = ast.unparse(node.value) if node.value else ""
    return Name(module, name, "data", value if len(value) <= 80 else "")


def reference_pages(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Each page of the reference: its file, and its text in reStructuredText."""
    names, inside = public_names(root), rooms(root)
    shortest: dict[Name, str] = {}
    for module in sorted(names, key=lambda module: (module.count("."), module)):
        for name, found in names[module].items():
            shortest.setdefault(found, f"{module}.{name}")
    about = {room: docstring_of(modules[0], root).partition("\n\n")[0] for room, modules in inside.items()}
    listed = [f"   * - :doc:`{room}`\n     - {_escaped(text)}" for room, text in about.items()]
    yield (
        "api/index.rst",
        "\n".join(
            [
                *_heading("The library", "="),
                "The library is small and meant to be read: each name leads to its source. ``from course_lib"
                " import run, measure, plots`` gives what stands first; the rooms below have the rest.",
                "",
                *_members("course_lib", names["course_lib"], shortest),
                *_heading("Rooms", "-"),
                ".. list-table::\n",
                *listed,
                "",
                ".. toctree::\n   :hidden:\n",
                *(f"   {room}" for room in inside),
                "",
            ]
        ),
    )
    for room, modules in inside.items():
        lines = _heading(f"course_lib.{room}", "=")
        for module in modules:
            if module != modules[0]:
                lines += _heading(module.removeprefix("course_lib."), "-")
            lines += [f".. py:module:: {module}", "", f".. docstring:: {module}", ""]
            lines += _members(module, names[module], shortest)
        yield f"api/{room}.rst", "\n".join(lines)


def _heading(title: str, line: str) -> list[str]:
    return [title, line * len(title), ""]


def _members(module: str, names: dict[str, Name], shortest: dict[Name, str]) -> list[str]:
    lines, elsewhere = [], []
    for name, found in names.items():
        full = shortest[found]
        if full != f"{module}.{name}":
            elsewhere.append(full)
        elif found.kind == "class":
            lines += [f".. autoclass:: {full}", "   :members:", ""]
        elif found.kind == "function":
            lines += [f".. autofunction:: {full}", ""]
        else:
            value = [f"   :value: {found.value}"] if found.value else []
            lines += [f".. py:data:: {full}", *value, ""]
    if elsewhere:
        said = ", ".join(f":py:obj:`~{full}`" for full in elsewhere)
        lines += [f"Described elsewhere: {said}.", ""]
    return lines


def _escaped(text: str) -> str:
    """A sentence of a docstring as reStructuredText, in one line."""
    return re.sub(r"([\\*|_])", r"\\\1", " ".join(text.split())).replace("`", "``")
