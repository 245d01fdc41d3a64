"""Docstrings are as wide as the code: a line ends where the next word has no room."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 110
FILES = sorted(path for folder in ("course_lib", "tests") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_a_docstring_ends_early(path):
    source = path.read_text(encoding="utf-8")
    assert not [line for docstring in docstrings(source) for line in early(docstring)]


def docstrings(source: str) -> Iterator[list[str]]:
    """The lines of each docstring, with their indentation, from quotes to quotes."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            yield lines[body[0].lineno - 1 : body[0].end_lineno]


def early(docstring: list[str]) -> Iterator[str]:
    """The lines that have room for the first word of the next one, where both are of one text."""
    whole = " ".join(" ".join(docstring).split())
    if WIDTH < indent(docstring[0]) + len(whole) - 1 <= WIDTH + len('"""'):
        return  # all but the closing quotes would fit in one line: ruff puts these there too
    base, code = indent(docstring[0]), False
    for before, line, following in zip(["", *docstring], docstring, docstring[1:]):
        if not before.strip():
            code = indent(line) > base
        if not code and goes_on(line, following) and len(f"{line} {following.split()[0]}") <= WIDTH:
            yield line


def goes_on(line: str, following: str) -> bool:
    """Whether two lines are of one paragraph: not of a list, of a table, of code, and no closing quotes."""
    if not line.strip() or not following.strip(' "') or line.endswith(":"):
        return False
    if re.search(r"\S {2,}\S", line.strip() + following.strip()):
        return False
    new = re.match(r" *(-|[\w*`, ]+:) | *[\d\[(\"]", following)  # an item, or the rest of a formula
    deeper = indent(following) - indent(line)
    return not new and (deeper == 0 or deeper == 4 and re.match(r" *[\w*, ]+: ", line) is not None)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())
