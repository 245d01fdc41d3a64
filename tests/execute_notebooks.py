"""Run notebooks from top to bottom and store their outputs in place: `make notebooks`.

    python tests/execute_notebooks.py                        # every chapter, then every solution
    python tests/execute_notebooks.py notebooks/04_ddp.ipynb # only these

Each notebook runs in a kernel of its own, with its own folder as the working directory. A notebook with a
failing cell is left as it was. What is stored is tidied (see `normalise`), so that a second run changes
only the outputs that really changed.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "notebooks", ROOT / "notebooks" / "solutions")
TIMING_METADATA = ("execution", "ExecuteTime", "papermill")
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")
FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; return 0 if every cell of every notebook ran, else 1."""
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs in place.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every chapter and every solution")
    parser.add_argument(
        "--timeout", type=int, default=60, help="seconds that one cell may take (default: 60)"
    )
    options = parser.parse_args(arguments)
    paths = options.notebooks or [path for folder in FOLDERS for path in sorted(folder.glob("*.ipynb"))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        parser.error("there is no " + ", ".join(map(str, missing)))
    if not paths:
        parser.error("there are no notebooks in " + " or ".join(map(str, FOLDERS)))

    failed = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            changed = run_in_place(path, options.timeout)
        except FAILURES as error:
            failed.append(path)
            print("FAILED", flush=True)
            print(f"{describe(error)}\n{path} was not changed.\n", file=sys.stderr, flush=True)
        else:
            print(
                f"{time.perf_counter() - start:.1f} s, {'new outputs' if changed else 'nothing changed'}",
                flush=True,
            )
    if failed:
        print(f"{len(failed)} of {len(paths)} failed: {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


def run_in_place(path: Path, timeout: int = 60) -> bool:
    """Run one notebook and write it back; return whether the file changed.

    Raises:
        CellExecutionError, CellTimeoutError, DeadKernelError: a cell failed; the file is untouched.
    """
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},
        extra_arguments=["--log-level=ERROR"],  # no warnings of the kernel about itself between our lines
        record_timing=False,
        store_widget_state=False,
    )
    progress = {"cell": 0}
    client.on_cell_execute = lambda cell, cell_index: progress.update(cell=cell_index)
    try:
        client.execute()
    except FAILURES as error:
        error.cell_index = progress["cell"]
        error.cell_source = notebook.cells[progress["cell"]].source
        raise
    after = nbformat.writes(normalise(notebook))
    after = after if after.endswith("\n") else after + "\n"
    if after == before:
        return False
    # First beside it, then over it: an interruption never leaves half a notebook.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(after, encoding="utf-8")
    os.replace(unfinished, path)
    return True


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Take out of a notebook what differs between runs and machines and says nothing; change it in place.

    Cell ids, tags and all other metadata stay.
    """
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for key in ("widgets", *TIMING_METADATA):
        notebook.metadata.pop(key, None)

    count = 0
    for cell in notebook.cells:
        for key in TIMING_METADATA:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = merge_streams(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
            output.get("data", {}).pop(WIDGET_MIME, None)  # means nothing without the widget's state
            if output.output_type == "stream":
                # a warning names the file of its cell, another one in each kernel
                output.text = CELL_FILE.sub("cell", output.text)
    return notebook


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring outputs of the same stream: where they are cut depends on timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def describe(error: Exception) -> str:
    """Return which cell failed, its source and why, in plain text."""
    if isinstance(error, CellExecutionError):
        reason = error.traceback
    elif isinstance(error, CellTimeoutError):
        reason = "It took longer than the time limit (see --timeout)."
    else:
        reason = f"The kernel died: {error}"
    source = "\n".join(f"    {line}" for line in error.cell_source.splitlines())
    return re.sub(r"\x1b\[[0-9;]*m", "", f"Cell {error.cell_index} failed:\n{source}\n\n{reason}")


if __name__ == "__main__":
    sys.exit(main())
