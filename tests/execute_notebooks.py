"""Run notebooks from top to bottom and store their outputs in place: `make notebooks`.

    python tests/execute_notebooks.py                        # every chapter, every solution, and for teachers
    python tests/execute_notebooks.py notebooks/04_ddp.ipynb # only these

What `jupyter execute --inplace` does, and three things that it does not: a failing cell is named, and the
other notebooks still run; an interruption never leaves half a notebook; and what is stored is tidied (see
`normalise`), so that a second run changes only the outputs that really changed. The last cell leads to the
chapters before and after. A chapter's number stands in its file's name: the title and the links to it follow.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "notebooks", ROOT / "notebooks" / "solutions")
FOR_TEACHERS = ROOT / "notebooks" / "teaching"  # no chapters: nothing comes before or after
NOISE = ("widgets", "execution", "ExecuteTime", "papermill")  # in the metadata of notebooks and cells
NAVIGATION = "navigation"  # the id of a cell
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
NUMBER = re.compile(r"^# Chapter \d\d:")  # in the title
LINK = re.compile(r"\[([Cc]hapter) \d\d\]\((\.\./)?\d\d_(\w+)\.ipynb\)")  # in a text, to another chapter
CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")


class Failed(Exception):
    """Which cell of a notebook failed, its source, and why."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; return 0 if every cell of every notebook ran, else 1."""
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs in place.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--timeout", type=int, default=60, help="seconds for one cell (default: 60)")
    parser.add_argument(
        "--links", action="store_true", help="run nothing; only last cells and numbers are made anew"
    )
    options = parser.parse_args(arguments)
    folders = (*FOLDERS, FOR_TEACHERS)
    paths = options.notebooks or [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    if missing := [path for path in paths if not path.is_file()]:
        parser.error("there is no " + ", ".join(map(str, missing)))

    os.environ.pop("JPY_SESSION_NAME", None)  # no person looks at these kernels, even if a cell started this
    if options.links:
        for path in paths:
            store(nbformat.read(path, as_version=4), path)
        return 0

    failed = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            changed = run_in_place(path, options.timeout)
        except Failed as error:
            failed.append(str(path))
            print("FAILED", flush=True)
            print(f"{error}\n{path} was not changed.\n", file=sys.stderr, flush=True)
        else:
            seconds = time.perf_counter() - start
            print(f"{seconds:.1f} s, {'new outputs' if changed else 'nothing changed'}", flush=True)
    if failed:
        print(f"{len(failed)} of {len(paths)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_in_place(path: Path, timeout: int = 60) -> bool:
    """Run one notebook in a kernel of its own and in its own folder; return whether the file changed.

    Errors: Failed if a cell raises, takes longer than `timeout` seconds, or ends the kernel; the file is then
        untouched.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},
        extra_arguments=["--log-level=ERROR"],  # no warnings of the kernel about itself between our lines
        record_timing=False,
        store_widget_state=False,
    )
    at = {}
    client.on_cell_execute = lambda cell, cell_index: at.update(index=cell_index, source=cell.source)
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise Failed(strip_ansi(f"Cell {at['index']} failed:\n{at['source']}\n\n{error}")) from None
    return store(notebook, path)


def store(notebook: NotebookNode, path: Path) -> bool:
    """Write a notebook, tidied and with its last cell; return whether the file changed."""
    folder = path.resolve().parent
    if folder in FOLDERS:
        notebook.cells = [*(cell for cell in notebook.cells if cell.id != NAVIGATION), navigation(path)]
    if folder in (*FOLDERS, FOR_TEACHERS):
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = numbered(cell.source, path)
    after = nbformat.writes(normalise(notebook)).rstrip("\n") + "\n"
    if after == path.read_text(encoding="utf-8"):
        return False
    # first beside it, then over it: an interruption never leaves half a notebook
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(after, encoding="utf-8")
    os.replace(unfinished, path)
    return True


def numbered(source: str, path: Path) -> str:
    """A text of a chapter, with today's numbers in its title and in its links to other chapters."""

    def link(found: re.Match) -> str:
        word, up, name = found.groups(default="")
        folder = path.parent.parent if up else path.parent
        number = next((other.stem[:2] for other in folder.glob(f"[0-9][0-9]_{name}.ipynb")), None)
        return f"[{word} {number}]({up}{number}_{name}.ipynb)" if number else found[0]

    return LINK.sub(link, NUMBER.sub(f"# Chapter {path.stem[:2]}:", source))


def navigation(path: Path) -> NotebookNode:
    """The last cell of a chapter, or of its solution: what comes before and after, and what is beside."""
    solved = path.parent.name == "solutions"
    chapters = sorted(path.parent.glob("*.ipynb"))
    at = [other.name for other in chapters].index(path.name)
    before, after = chapters[at - 1 : at] if at else [], chapters[at + 1 : at + 2]
    links = [f"Next: **[{title(other)}]({other.name})**" for other in after]
    links += [f"Before: [{title(other)}]({other.name})" for other in before]
    twin = f"../{path.name}" if solved else f"solutions/{path.name}"
    links += [f"[{'The chapter' if solved else 'Solutions'}]({twin})"]
    links += [f"[All chapters]({'../' * (1 + solved)}README.md#the-chapters)"]
    return nbformat.v4.new_markdown_cell(" · ".join(links), id=NAVIGATION)


def title(path: Path) -> str:
    """The first heading of a chapter."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).partition("\n")[0].removeprefix("# ")


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Take out of a notebook what differs between runs and machines and says nothing; change it in place.

    Cell ids, tags and all other metadata stay.
    """
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for holder in (notebook, *notebook.cells):
        for key in NOISE:
            holder.metadata.pop(key, None)
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # where a stream is cut depends on timing
    for cell in notebook.cells:
        if "outputs" in cell:  # an empty display is what is left of a sign that is over
            cell.outputs = [out for out in cell.outputs if out.output_type != "display_data" or out.data]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop(WIDGET_MIME, None)  # means nothing without the widget's state
        if output.output_type == "stream":
            # a warning names the file of its cell, another one in each kernel
            output.text = CELL_FILE.sub("cell", output.text)
    return notebook


if __name__ == "__main__":
    sys.exit(main())
