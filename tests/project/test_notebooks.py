"""What every chapter and every solution has to be, read from the files alone: nothing is executed here."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from cells import made, used
from execute_notebooks import LINK, NAVIGATION, navigation, numbered
from nbformat import NotebookNode

from course_lib import record

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
TEACHING = sorted((FOLDER / "teaching").glob("*.ipynb"))
LONGEST_CELL = 25
# what can be read and run in about an hour: docs/design.md
MOST_CELLS, MOST_LINES, MOST_WORDS = 75, 300, 2_500
STUB = "raise NotImplementedError"
PATHS = re.compile(
    r"/home/|/root/|/tmp/|/Users/|/mnt/|[A-Z]:\\\\|site-packages|ipykernel_\d|course_lib-\w{8}"
)
# what this machine and its cluster are asked for, and whether a process may look at another
OF_THE_MACHINE = re.compile(r"\breport\(\)|\bhosts\.Slurm\(|\bstack_of\(")
TIMES = re.compile(r"\d ?(s|ms|us|µs|seconds|milliseconds|minutes)\b|samples per second|samples/s")

NAMES = {"ids": lambda path: str(path.relative_to(FOLDER))}
each_notebook = pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS, *TEACHING], **NAMES)
each_of_the_book = pytest.mark.parametrize("path", [*CHAPTERS, *SOLUTIONS], **NAMES)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_figure(cell: NotebookNode) -> bool:
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


def text_of(cell: NotebookNode) -> str:
    """A cell's outputs as one text, without its images."""
    outputs = json.loads(json.dumps(cell.outputs))
    for output in outputs:
        for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
            del output["data"][kind]
    return json.dumps(outputs, ensure_ascii=False)


def broken(notebook: NotebookNode, rule) -> list[str]:
    """The first lines of the code cells that break a rule."""
    return [
        f"cell {i}: {cell.source.splitlines()[0]}"
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and rule(cell)
    ]


def test_there_are_chapters_and_each_has_its_solution():
    assert CHAPTERS
    assert [path.name for path in SOLUTIONS] == [path.name for path in CHAPTERS]


@each_chapter
def test_solution_has_the_same_cells_but_for_the_exercises(path):
    chapter, solution = read(path), read(FOLDER / "solutions" / path.name)
    assert len(chapter.cells) == len(solution.cells)
    for number, (ours, theirs) in enumerate(zip(chapter.cells, solution.cells)):
        assert (ours.cell_type, ours.id, tags(ours)) == (
            theirs.cell_type,
            theirs.id,
            tags(theirs),
        ), f"cell {number}"
        if "exercise" not in tags(ours) and ours.id != NAVIGATION:
            assert ours.source == theirs.source, f"cell {number}"


@each_of_the_book
def test_the_last_cell_leads_to_the_chapters_around_it(path):
    """`python tests/execute_notebooks.py --links` makes it anew."""
    last = read(path).cells[-1]
    assert (last.id, last.source) == (NAVIGATION, navigation(path).source)
    for link in re.findall(r"\]\(([^)#]+)", last.source):
        assert (path.parent / link).is_file(), link


@each_notebook
def test_chapters_are_numbered_by_their_files_and_named_by_links(path):
    """`python tests/execute_notebooks.py --links` makes the numbers anew."""
    for i, cell in enumerate(read(path).cells):
        if cell.cell_type == "markdown" and cell.id != NAVIGATION:
            assert cell.source == numbered(cell.source, path), f"cell {i}"
            bare = LINK.sub("", cell.source).removeprefix("# Chapter")
            assert not re.search(r"[Cc]hapters? \d", bare), f"cell {i} names a chapter without a link"


def test_a_chapter_that_gets_another_number_keeps_its_name(tmp_path):
    for name in ("00_begin.ipynb", "07_go_on.ipynb"):
        (tmp_path / name).touch()
    text = "# Chapter {:0>2}: Begin\nSee [chapter {:0>2}]({:0>2}_go_on.ipynb), "
    text += "[chapter {:0>2}]({:0>2}_gone.ipynb)."
    old, new = text.format(1, 2, 2, 3, 3), text.format(0, 7, 7, 3, 3)
    assert numbered(old, tmp_path / "00_begin.ipynb") == new


@each_chapter
def test_exercises_are_stubs_and_solved_in_the_solution(path):
    chapter, solution = read(path), read(FOLDER / "solutions" / path.name)
    stubs = [cell for cell in code_cells(chapter) if "exercise" in tags(cell)]
    solved = [cell for cell in code_cells(solution) if "exercise" in tags(cell)]
    assert len(stubs) >= 3
    assert all(STUB in cell.source for cell in stubs) and not any(STUB in cell.source for cell in solved)
    assert not any(STUB in cell.source for cell in code_cells(chapter) if "exercise" not in tags(cell)), (
        "a stub lacks the tag `exercise`"
    )


@each_of_the_book
def test_checks_speak_calmly_in_the_chapter_and_pass_in_the_solution(path):
    verdicts = [
        text_of(cell)
        for cell in code_cells(read(path))
        if re.search(r"^check\.\w+\(", cell.source, re.MULTILINE)
    ]
    assert len(verdicts) >= 3
    wanted = ": solved" if path in SOLUTIONS else "not attempted yet"
    assert all(wanted in verdict for verdict in verdicts), verdicts


@each_notebook
def test_no_compared_cell_hides_its_value(path):
    """With a semicolon at its end: nbval, which keeps no history, would find the value."""

    def hides(cell):
        return cell.source.rstrip().endswith(";") and "nbval-ignore-output" not in tags(cell)

    assert not broken(read(path), hides)


@each_notebook
def test_executed_once_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_errors_are_stored_where_they_are_meant_and_nowhere_else(path):
    def wrong(cell):
        failed = any(output.output_type == "error" for output in cell.outputs)
        return failed != ("raises-exception" in tags(cell))

    assert not broken(read(path), wrong)


@each_notebook
def test_outputs_carry_no_path_of_a_machine(path):
    assert not broken(read(path), lambda cell: PATHS.search(text_of(cell)))


@each_notebook
def test_every_figure_is_announced_and_read(path):
    cells = read(path).cells
    for number, cell in enumerate(cells):
        if cell.cell_type == "code" and has_figure(cell):
            around = [
                cells[i].cell_type if 0 <= i < len(cells) else "nothing" for i in (number - 1, number + 1)
            ]
            assert around == ["markdown", "markdown"], f"cell {number}: {cell.source.splitlines()[0]}"


@each_of_the_book
def test_the_course_s_figures_have_words_beside_them(path):
    """`course_lib.plots.described` gives them. What matplotlib draws before the first of them has none."""

    def silent(cell):
        shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        told = [
            output
            for output in shown
            if output.metadata.get("image/png", {}).get("alt") or "alt=" in output.data.get("text/html", "")
        ]
        return re.search(r"\b(plots|pictures|explore)\.[a-z]", cell.source) and len(told) < len(shown)

    assert not broken(read(path), silent)


@each_notebook
def test_code_cells_are_short(path):
    assert not broken(read(path), lambda cell: not 0 < len(cell.source.splitlines()) <= LONGEST_CELL)


@each_chapter
def test_a_chapter_can_be_read_and_run_in_an_evening(path):
    notebook = read(path)
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines() if line.strip()]
    words = [word for cell in notebook.cells if cell.cell_type == "markdown" for word in cell.source.split()]
    assert len(notebook.cells) <= MOST_CELLS
    assert len(lines) <= MOST_LINES
    assert len(words) <= MOST_WORDS


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_no_cell_reads_what_a_later_one_calls_by_the_same_name(path):
    """Run again, it would find something else. (`guess` is the one name that all predictions have.)"""
    sources = [cell.source for cell in code_cells(read(path))]
    cells = [(used(source) - made(source), made(source)) for source in sources]
    imports = [
        node
        for node in ast.walk(ast.parse("\n".join(sources)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    # what is imported is the same whoever imports it
    same = {
        "guess",
        *((name.asname or name.name).partition(".")[0] for node in imports for name in node.names),
    }
    for number, (reads, _) in enumerate(cells):
        before, later = (
            set().union(*(sets for _, sets in part)) for part in (cells[:number], cells[number:])
        )
        assert not (reads & before & later) - same, f"code cell {number}"


def test_no_function_is_written_in_two_chapters():
    """What two chapters need lives in the library; each may train in its own way."""
    homes: dict[str, set[str]] = {}
    for path in CHAPTERS:
        for cell in code_cells(read(path)):
            if "exercise" not in tags(cell):
                for name in re.findall(r"^(?:def|class) (\w+)", cell.source, re.MULTILINE):
                    homes.setdefault(name, set()).add(path.name)
    assert {name: where for name, where in homes.items() if len(where) > 1}.keys() <= {"train"}
    readings = {*record.__all__, "error", "relative_error", "per_parameter", "compare"}
    assert not readings & homes.keys(), "a reading of its own"


@each_notebook
def test_only_times_figures_and_versions_escape_the_comparison(path):
    def wrong(cell):
        ignored = "nbval-ignore-output" in tags(cell)
        varies = has_figure(cell) or "about()" in cell.source or TIMES.search(text_of(cell))
        # it names its cell, and under nbval every cell is In[1]
        varies = varies or "raises-exception" in tags(cell)
        varies = varies or OF_THE_MACHINE.search(cell.source)
        return ignored and not varies

    assert not broken(read(path), wrong)


@each_notebook
def test_no_cell_escapes_in_another_way(path):
    """nbval knows more ways to look away than the tag; none of them is used."""
    known = {"exercise", "raises-exception", "nbval-ignore-output"}
    assert not broken(
        read(path),
        lambda cell: (
            set(tags(cell)) - known or re.search(r"^# *(NBVAL_|PYTEST_VALIDATE)", cell.source, re.MULTILINE)
        ),
    )


@each_notebook
def test_stored_neatly(path):
    """As tests/execute_notebooks.py stores it: no widgets, no times of execution, the kernel that every
    reader has.
    """
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert not any({"execution", "ExecuteTime"} & set(cell.metadata) for cell in notebook.cells)
    assert "widget-view" not in "".join(map(text_of, code_cells(notebook)))
    assert not any(
        output.output_type == "stream" and output.name == "stderr"
        for cell in code_cells(notebook)
        for output in cell.outputs
    )
