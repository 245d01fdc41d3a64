"""A chapter as a page: its cells with their stored outputs, and a line of what one can do with it."""

import json
import re
from pathlib import Path

from links import with_links
from project import ROOT

__all__ = ["page_of_chapter", "binder_address"]


def page_of_chapter(file: str, repository: str = "", root: Path = ROOT) -> str:
    """The notebook that the website shows, as JSON; nothing in it is executed.

    Texts have their links to pages, each figure has an alternative text, and the last cell, which leads to
    the chapters around, is left out: each page has such links.

    Args:
        file: of a chapter or a solved chapter, from the project's folder.
    """
    notebook = json.loads((root / file).read_text(encoding="utf-8"))
    solved = Path(file).parent.name == "solutions"
    cells = [cell for cell in notebook["cells"] if cell["id"] != "navigation"]
    before = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            before = "".join(cell["source"])
            cell["source"] = with_links(before, file, repository, root)
        for output in cell.get("outputs", []):
            tell(output, before)
    title, _, rest = cells[0]["source"].partition("\n")
    title += " (solved)" if solved else ""
    cells[0]["source"] = f"{title}\n\n{_offers(file, solved, repository)}\n{rest}"
    metadata = {"kernelspec": notebook["metadata"]["kernelspec"]}
    if solved:
        metadata["nosearch"] = True  # a search finds the chapter; its solved twin has the same words
    return json.dumps(notebook | {"cells": cells, "metadata": metadata}, ensure_ascii=False, indent=1)


def tell(output: dict, before: str) -> None:
    """Give a figure that has no alternative text the sentence that announces it."""
    if "image/png" in output.get("data", {}):
        words = output["metadata"].setdefault("image/png", {})
        if not words.get("alt"):
            words["alt"] = f"Figure. {last_sentence(before)}"


def last_sentence(text: str) -> str:
    """Of a cell's text, without marks: "Look for a gap between their accuracies:"."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).strip().split("\n\n")[-1]
    text = " ".join(re.sub(r"[*`$#\\]|^\W+", "", text).split())
    return re.split(r"(?<=[.?!)]) (?=[A-Z(])", text)[-1]


def binder_address(repository: str, file: str) -> str:
    """Where mybinder.org opens a chapter on a desk of its own; "" if the repository is not known."""
    known = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", repository)
    if not known:
        return ""
    return f"https://mybinder.org/v2/gh/{known[1]}/HEAD?urlpath=lab/tree/desk/{Path(file).name}"


def _offers(file: str, solved: bool, repository: str) -> str:
    """The line below the title."""
    name = Path(file).name
    up = "../../" if solved else "../"
    offers = [f"[The chapter](../{name})" if solved else f"[Solved](solutions/{name})"]
    offers += [f"{{download}}`Download the notebook <{up}downloads/{file.removeprefix('notebooks/')}>`"]
    if not solved and (binder := binder_address(repository, file)):
        offers += [f"[Open it in Binder]({binder})"]
    offers += [f"[Where to try it]({up}try.md)"]
    return "{.offers}\n" + " · ".join(offers) + "\n"
