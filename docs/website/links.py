"""Links that lead from page to page: where a text of the project names a file, the website has a page."""

import functools
import os
import re
from pathlib import Path

from project import ROOT, page_of

__all__ = ["with_links", "shown_source"]

FENCE = re.compile(r"^(```.*?^```)[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
SPAN = re.compile(r"(?<![`\[])`([\w./]+)`(?![`\]])")
SYMPTOMS = "docs/symptoms.md"
NAMED = re.compile(r"(course_lib|notebooks|docs|data|tests)/[\w./]*|[A-Z]{6,}\.md")


def with_links(text: str, file: str, repository: str = "", root: Path = ROOT) -> str:
    """A text of the project, with its links leading to pages of the website.

    A link to a file that has no page leads to the repository, or is plain text where its address is not
    known. Files that are named in code spans become links, too. Code blocks and headings stay as they are.

    Args:
        text: Markdown.
        file: where it stands, from the project's folder.
        repository: address of the project's repository; "" if it is not known.
    """
    pieces = FENCE.split(text)
    for at in range(0, len(pieces), 2):
        lines = pieces[at].split("\n")
        pieces[at] = "\n".join(
            line if line.startswith("#") else _line(line, file, repository, root) for line in lines
        )
    return "".join(pieces)


def shown_source(path: str, repository: str) -> str:
    """The address of a file in the repository; "" if that is not known."""
    return f"{repository}/blob/HEAD/{path}" if repository else ""


@functools.cache
def _chapters(root: Path) -> list[str]:
    return [path.name for path in (root / "notebooks").glob("[0-9]*.ipynb")]


def _line(line: str, file: str, repository: str, root: Path) -> str:
    kept: list[str] = []
    # its last column has chapters, by their names
    chapters = {name[3:-6]: f"notebooks/{name}" for name in _chapters(root)} if file == SYMPTOMS else {}

    def keep(words: str) -> str:
        kept.append(words)
        return f"\0{len(kept) - 1}\0"

    def link(found: re.Match) -> str:
        words, target = found.groups()
        if re.match(r"\w+:|#", target):
            return keep(found[0])
        target, _, heading = target.partition("#")
        address = _address(os.path.join(os.path.dirname(file), target), file, repository, root)
        if not address:
            return words
        heading = f"#{heading}" if heading and not address.startswith("http") else ""
        return keep(f"[{words}]({address}{heading})")

    def span(found: re.Match) -> str:
        path = chapters.get(found[1]) or found[1]
        named = NAMED.fullmatch(path) and _address(path, file, repository, root)
        return f"[{found[0]}]({named})" if named else found[0]

    line = SPAN.sub(span, LINK.sub(link, line))
    return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], line)


def _address(path: str, file: str, repository: str, root: Path) -> str:
    path = os.path.normpath(path)
    page, here = page_of(path, root), page_of(file, root) or file
    if page == here:
        return ""
    if page:
        return os.path.relpath(page, os.path.dirname(here) or ".")
    return shown_source(path, repository) if (root / path).exists() else ""
