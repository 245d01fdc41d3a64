"""`make notebooks` stores real outputs, leaves no noise, and never spoils a notebook that fails."""

import copy
import json
from pathlib import Path

import nbformat
import pytest
from execute_notebooks import FOLDERS, FOR_TEACHERS, main, normalise
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def write(path: Path, *sources: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def noisy_notebook() -> nbformat.NotebookNode:
    stream = lambda name, text: new_output("stream", name=name, text=text)  # noqa: E731
    widget = {"text/plain": "a bar", "application/vnd.jupyter.widget-view+json": {"model_id": "f00"}}
    result = new_output("execute_result", data={"text/plain": "3"}, execution_count=1)
    cells = [
        new_markdown_cell("# Title", metadata={"execution": {}}),
        new_code_cell(
            "1 + 2",
            execution_count=1,
            metadata={"tags": ["nbval-ignore-output"], "execution": {"iopub.status.busy": "2026-01-01"}},
            outputs=[
                stream("stdout", "a\n"),
                stream("stdout", "b\n"),
                stream("stderr", "c\n"),
                stream("stdout", "d\n"),
                result,
            ],
        ),
        new_code_cell(""),
        new_code_cell(
            "bar",
            execution_count=2,
            outputs=[new_output("display_data", data={}), new_output("display_data", data=widget)],
        ),
    ]
    metadata = {
        "kernelspec": {"display_name": ".venv", "language": "python", "name": "venv"},
        "language_info": {"name": "python", "version": "3.11.7"},
        "widgets": {"state": {}},
        "authors": [{"name": "kept"}],
    }
    return new_notebook(cells=cells, metadata=metadata)


def test_normalise_takes_out_the_noise_and_nothing_else():
    notebook = noisy_notebook()
    ids = [cell.id for cell in notebook.cells]
    normalise(notebook)
    title, code, empty, bar = notebook.cells
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "authors": [{"name": "kept"}],
    }
    assert [cell.id for cell in notebook.cells] == ids
    assert title.metadata == {} and code.metadata == {"tags": ["nbval-ignore-output"]}
    assert (code.execution_count, empty.execution_count, bar.execution_count) == (1, None, 2)
    assert [(out.get("name"), out.get("text")) for out in code.outputs[:3]] == [
        ("stdout", "a\nb\n"),
        ("stderr", "c\n"),
        ("stdout", "d\n"),
    ]
    assert code.outputs[3].execution_count == 1
    assert [out.data for out in bar.outputs] == [{"text/plain": "a bar"}]
    nbformat.validate(notebook)


def test_a_notebook_runs_in_its_own_folder_and_a_second_run_changes_nothing(tmp_path, capsys):
    (tmp_path / "beside.txt").write_text("read from beside the notebook")
    path = write(tmp_path / "good.ipynb", "print(open('beside.txt').read())\nprint(1)", "2 + 2")
    ids = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
    assert main([str(path)]) == 0
    assert "new outputs" in capsys.readouterr().out
    stored = path.read_bytes()
    cells = json.loads(stored)["cells"]
    assert "".join(cells[0]["outputs"][0]["text"]) == "read from beside the notebook\n1\n"
    assert cells[1]["outputs"][0]["data"]["text/plain"] == ["4"]
    assert cells[1]["outputs"][0]["execution_count"] == 2
    assert [cell["execution_count"] for cell in cells] == [1, 2]
    assert [cell["id"] for cell in cells] == ids

    assert main([str(path)]) == 0
    assert path.read_bytes() == stored and "nothing changed" in capsys.readouterr().out
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["beside.txt", "good.ipynb"]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("total = 1 / 0", "ZeroDivisionError: division by zero"),
        ("import time; time.sleep(100)", "A cell timed out"),
        ("import os; os._exit(3)", "Kernel died"),
    ],
)
def test_a_failing_cell_is_named_and_the_others_still_run(tmp_path, capsys, source, reason):
    bad = write(tmp_path / "bad.ipynb", "print(1)", source)
    good = write(tmp_path / "good.ipynb", "print(2)")
    before = bad.read_bytes()
    assert main(["--timeout", "10", str(bad), str(good)]) == 1
    errors = capsys.readouterr().err
    assert "Cell 1 failed" in errors and source in errors and reason in errors
    assert "1 of 2 failed" in errors and "\x1b" not in errors
    assert bad.read_bytes() == before
    assert json.loads(good.read_text())["cells"][0]["outputs"]


def test_a_notebook_that_does_not_exist_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere.ipynb")])
    assert "nowhere.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [path for folder in (*FOLDERS, FOR_TEACHERS) for path in sorted(folder.glob("*.ipynb"))],
    ids=lambda path: path.name,
)
def test_stored_notebooks_were_run_and_are_tidy(path):
    """nbval compares nothing where no output is stored, so it would pass a notebook that never ran."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    advice = f"run: make notebooks, or python tests/execute_notebooks.py {path.name}"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), advice
    counts = [
        (cell.execution_count, out.execution_count)
        for cell in code
        for out in cell.outputs
        if "execution_count" in out
    ]
    assert all(of_cell == of_output for of_cell, of_output in counts), advice
    assert normalise(copy.deepcopy(notebook)) == notebook, advice
