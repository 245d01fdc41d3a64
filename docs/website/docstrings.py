"""An extension for Sphinx: docstrings of this project as reStructuredText.

They are plain text for who reads the code: `names` in single quotes, tables by columns, examples that are
indented, sections in Google's style. Napoleon reads the sections; what stands between them is made ready
here.
"""

import re
from collections.abc import Iterator

from docutils import nodes
from docutils.statemachine import StringList
from project import docstring_of
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["as_restructured", "setup"]

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Errors|Source|Sources):(?: (.*))?$")
ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")
AN_ARGUMENT = re.compile(r" *[*\w`, ]+: ")
COLUMNS = re.compile(r"\S {2,}\S")


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before Napoleon
    app.add_directive("docstring", ModuleDocstring)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def as_restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring, without their common indentation, as Napoleon and docutils read them."""
    result: list[str] = []
    for block in _blocks(lines):
        found = SECTION.match(block[0])
        if found:
            result += _section(found[1], found[2], block[1:])
        elif _is_code(block):
            least = min(len(line) - len(line.lstrip()) for line in block)
            result += ["::", "", *(f"    {line[least:]}" for line in block)]
        elif len(_entries(block)) > 1 or _entries(block) and any(line.startswith(" ") for line in block):
            result += _listed(block)
        elif block[0].startswith("- "):
            result += [_marked(line) for line in block]
        else:
            result += [_marked(line.strip()) for line in block]
        result.append("")
    return result


def _section(name: str, words: str | None, rest: list[str]) -> list[str]:
    """A section in Google's style: what stands in its first line goes below it."""
    if words and not all(line.startswith("    ") for line in rest):
        rest = [f"    {line}" for line in rest]
    return [f"{name}:", *(_marked(line) for line in ([f"    {words}"] if words else []) + rest)]


def _entries(block: list[str]) -> list[str]:
    """The lines of a block that begin with a name and a colon, if its first line does."""
    return [line for line in block if ENTRY.match(line)] if ENTRY.match(block[0]) else []


def _listed(block: list[str]) -> list[str]:
    """Names that are explained, as a list."""
    lines = []
    for line in block:
        found = ENTRY.match(line)
        lines.append(f"- **{found[1]}**: {_marked(found[2])}" if found else f"  {_marked(line.strip())}")
    return lines


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs, and the arguments of a section each as it stands."""
    block: list[str] = []
    for line in lines:
        if not line.strip() or (block and SECTION.match(line) and not line.startswith(" ")):
            if block:
                yield block
            block = [] if not line.strip() else [line]
        else:
            block.append(line.rstrip())
    if block:
        yield block


def _is_code(block: list[str]) -> bool:
    """Whether a block is set as it stands: an example that is indented, or columns."""
    in_columns = sum(bool(COLUMNS.search(line.strip())) for line in block)
    return all(line.startswith("    ") for line in block) or in_columns > 0


def _marked(line: str) -> str:
    """A line of text: names as code, and nothing else that docutils would read as a mark."""
    pieces = re.split(r"(`[^`]+`)", line)
    pieces[1::2] = [f"`{piece}`" for piece in pieces[1::2]]
    if not AN_ARGUMENT.match(line):
        pieces[::2] = [re.sub(r"([*|\\_])", r"\\\1", piece) for piece in pieces[::2]]
    for at in range(2, len(pieces), 2):  # "`Block`s": docutils wants to be told where the name ends
        pieces[at] = re.sub(r"^(?=\w)", r"\\ ", pieces[at])
    return "".join(pieces)


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = as_restructured(lines)


class ModuleDocstring(SphinxDirective):
    """`.. docstring:: course_lib.theory`: what the module says of itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        lines = as_restructured(docstring_of(module).splitlines())
        section = nodes.Element()
        self.state.nested_parse(StringList(lines, source=f"docstring of {module}"), 0, section)
        return section.children
