"""Lay out the sources of the website, for Sphinx: python docs/website/pages.py build/book-pages

Pages stand where their files stand in the project, so that links between them lead on. Nothing is executed.
A page that has not changed is not written, so that Sphinx reads only what is new.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from chapters import binder_address, page_of_chapter
from links import shown_source, with_links
from project import ROOT, TEXTS, parts
from reference import reference_pages

__all__ = ["all_pages", "main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lay out the sources of the website, for Sphinx.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", default=os.environ.get("REPOSITORY", ""), help="its address")
    options = parser.parse_args(arguments)
    pages = all_pages(options.repository.rstrip("/"))
    for file, content in pages.items():
        path = options.folder / file
        content = content.encode() if isinstance(content, str) else content
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in options.folder.rglob("*"):  # of an earlier build
        if path.is_file() and str(path.relative_to(options.folder)) not in pages:
            path.unlink()
    return 0


def all_pages(repository: str = "", root: Path = ROOT) -> dict[str, str | bytes]:
    """What Sphinx reads, by its file."""
    pages: dict[str, str | bytes] = dict(reference_pages(root))
    for part in parts(root).values():
        for chapter in part:
            for file in (chapter.file, f"solutions/{chapter.file}"):
                pages[f"notebooks/{file}"] = page_of_chapter(f"notebooks/{file}", repository, root)
                pages[f"downloads/{file}"] = (root / "notebooks" / file).read_bytes()
    for file in (*TEXTS, *(str(path.relative_to(root)) for path in sorted((root / "docs").glob("*.md")))):
        pages[file] = with_links((root / file).read_text(encoding="utf-8"), file, repository, root)
    pages |= _scripts(repository, root)
    pages["notebooks/solutions/index.md"] = _solutions(root)
    for picture in sorted((root / "data").glob("*.png")):
        pages[f"data/{picture.name}"] = picture.read_bytes()
    for page in ("index.md", "try.md"):
        pages[page] = _filled(f"docs/website/{page}", repository, root)
    return pages


def _scripts(repository: str, root: Path) -> dict[str, str]:
    """A page for each script, and one that lists them."""
    pages, rows = {}, []
    folder = root / "notebooks" / "scripts"
    chapters = {chapter.name: chapter for part in parts(root).values() for chapter in part}
    files = [f"{name}.py" for name in chapters if (folder / f"{name}.py").exists()]
    for name in [*files, "slurm.sbatch"]:
        path = folder / name
        source = path.read_text(encoding="utf-8")
        said = re.search(r'\A"""(.*?)$', source, re.MULTILINE)
        about = said[1] if said else "These scripts on several nodes of a Slurm cluster."
        chapter = chapters.get(path.stem)
        lead = f"It belongs to [chapter {chapter.number}](../{chapter.file}). " if chapter else ""
        where = shown_source(f"notebooks/scripts/{name}", repository)
        lead += f"{{download}}`Download it <../../downloads/scripts/{name}>`."
        lead += f" [In the repository]({where})." if where else ""
        language = "python" if chapter else "bash"
        pages[f"notebooks/scripts/{path.stem}.md"] = (
            f"# {name}\n\n{lead}\n\n````{language}\n{source.rstrip()}\n````\n"
        )
        pages[f"downloads/scripts/{name}"] = source
        rows.append(f"| [{name}]({path.stem}.md) | {about} |")
    listed = "\n".join(f"{Path(name).stem}" for name in [*files, "slurm.sbatch"])
    pages["notebooks/scripts/index.md"] = (
        "# Scripts\n\nWhat one runs outside the course, with torchrun, on GPUs or on a CPU. They take data"
        " and a small model from the course's library, and else need PyTorch alone.\n\n| | |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n{listed}\n```\n"
    )
    return pages


def _solutions(root: Path) -> str:
    lines = ["# Solved chapters", "", "Each chapter once more, with its exercises solved and checked.", ""]
    chapters = [chapter for part in parts(root).values() for chapter in part]
    lines += [f"- [{chapter.number} {chapter.title}]({chapter.file})" for chapter in chapters]
    lines += ["", "```{toctree}", ":hidden:"]
    lines += [f"{chapter.number} {chapter.title} <{chapter.file[:-6]}>" for chapter in chapters]
    return "\n".join([*lines, "```", ""])


def _filled(file: str, repository: str, root: Path) -> str:
    """A page of this folder, with what it takes from elsewhere: `<!-- README: What you write -->`, say."""
    readme = (root / "README.md").read_text(encoding="utf-8")

    def section(found: re.Match) -> str:
        taken = readme.split(f"\n## {found[1]}\n")[1].split("\n## ")[0].strip()
        return with_links(taken, "README.md", repository, root)

    first = next(chapter.file for part in parts(root).values() for chapter in part)
    binder = binder_address(repository, first)
    text = (root / file).read_text(encoding="utf-8")
    text = re.sub(r"<!-- README: (.*?) -->", section, with_links(text, file, repository, root))
    text = text.replace("<!-- chapters -->", _chapters(root)).replace("<!-- contents -->", _contents(root))
    known = {  # "" where the address of the repository is not known
        "address": f" (`git clone {repository} course`)" if repository else "",
        "clone": f"git clone {repository} course\ncd course\n" if repository else "",
        "binder": f"[Open the course in Binder]({binder}). " if binder else "",
    }
    for name, words in known.items():
        text = text.replace(f"<!-- {name} -->", words)
    return text.replace("ADDRESS-OF-THE-REPOSITORY", repository) if repository else text


def _chapters(root: Path) -> str:
    lines = []
    for part, chapters in parts(root).items():
        lines += [f"### {part}", "", "| | | |", "|---|---|---|"]
        lines += [f"| {c.number} | [{c.title}](notebooks/{c.file}) | {c.about} |" for c in chapters]
        lines += [""]
    return "\n".join(lines)


def _contents(root: Path) -> str:
    """What the side of each page lists."""
    lines = []
    for part, chapters in parts(root).items():
        lines += ["```{toctree}", ":hidden:", f":caption: '{part}'", ""]
        lines += [f"{c.number} {c.title} <notebooks/{c.file[:-6]}>" for c in chapters]
        lines += ["```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
