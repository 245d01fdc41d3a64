"""A learner's desk: nothing of theirs is ever overwritten."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.learner import desk, kernel
from course_lib.learner.__main__ import SETTINGS

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path):
    """A small project with two chapters, the first one in two editions (`publish`)."""
    (tmp_path / "p" / "notebooks" / "solutions").mkdir(parents=True)
    publish(tmp_path / "p", "first")
    shutil.copy(tmp_path / "p/notebooks/10_begin.ipynb", tmp_path / "p/notebooks/11_go_on.ipynb")
    shutil.copy(tmp_path / "p/notebooks/10_begin.ipynb", tmp_path / "p/notebooks/solutions")
    for name in ("course_lib", "data", "docs"):
        (tmp_path / "p" / name).mkdir()
    (tmp_path / "p" / "README.md").write_text("Read me")
    return tmp_path / "p"


def publish(project, edition, name="10_begin"):
    cells = [
        cell("markdown", f"The {edition} edition"),
        cell("code", "1 + 1", outputs=[{"output_type": "stream", "name": "stdout", "text": "2"}]),
        cell("code", "def f(x):\n    raise NotImplementedError", tags=["exercise"]),
        cell("code", "check.f(f)"),
        cell("code", f"class G:  # {edition}\n    raise NotImplementedError", tags=["exercise"]),
        cell("code", "def g(): ...", tags=["exercise"]),
        cell("code", "check.g(G, g)"),
    ]
    write(project / "notebooks" / f"{name}.ipynb", {"cells": cells, "metadata": {}, "nbformat": 4})


def cell(kind, source, tags=(), outputs=None):
    made = {"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": {"tags": list(tags)}}
    return made | ({"outputs": outputs or [], "execution_count": 7} if kind == "code" else {})


def write(path, notebook):
    path.write_text(json.dumps(notebook))


def read(path):
    return json.loads(path.read_text())


def text(path):
    return ["".join(cell["source"]) for cell in read(path)["cells"]]


def edit(path, number, source, **more):
    notebook = read(path)
    notebook["cells"][number] |= {"source": source} | more
    write(path, notebook)


def test_copies_have_no_output_and_the_kernel_of_the_course(project):
    (told,) = desk.lay(project)
    assert told.endswith("3 chapters and solutions copied")
    for name in ("10_begin", "11_go_on", "solutions/10_begin"):
        copy = read(project / "desk" / f"{name}.ipynb")
        code = [cell for cell in copy["cells"] if cell["cell_type"] == "code"]
        assert len(code) == 6 and all(cell["outputs"] == [] for cell in code)
        assert all(cell["execution_count"] is None for cell in code)
        assert copy["metadata"]["kernelspec"]["name"] == kernel.NAME
    assert read(project / "notebooks/10_begin.ipynb")["cells"][1]["outputs"], (
        "the published one keeps its own"
    )
    assert desk.lay(project) == [], "a second time nothing is to be said"


def test_no_link_leads_from_a_copy_to_the_published_chapters_with_answers(tmp_path):
    desk.lay(PROJECT, tmp_path)
    copies = sorted((tmp_path / "desk").rglob("*.ipynb"))
    assert len(copies) == len(desk.published(PROJECT))
    for copy in copies:
        last = text(copy)[-1]
        assert "README" not in last and last.count("](") >= 2, last
    assert desk.lay(PROJECT, tmp_path) == []


def test_what_a_learner_has_touched_is_never_overwritten(project):
    desk.lay(project)
    mine, other = project / "desk/10_begin.ipynb", project / "desk/11_go_on.ipynb"
    edit(mine, 2, "def f(x): return x")
    (project / "desk/notes.txt").write_text("mine")
    before = mine.read_text()
    publish(project, "second")
    publish(project, "second", "11_go_on")
    told = desk.lay(project)
    assert [sentence.split(":")[0] for sentence in told] == ["10_begin.ipynb", "11_go_on.ipynb"]
    assert "yours has your work in it and stays" in told[0].lower() and "now it is the new one" in told[1]
    assert mine.read_text() == before and text(other)[0] == "The second edition"
    assert (project / "desk/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: edit(path, 1, "1 + 1", outputs=[{"output_type": "stream", "text": "2"}]),  # it was run
        lambda path: edit(path, 0, "My note"),
        lambda path: path.write_text("{ half a noteb"),
        lambda path: write(path, read(path) | {"cells": read(path)["cells"][:-1]}),
    ],
)
def test_touched_is_what_was_run_written_cut_or_spoilt(project, touch):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    touch(copy)
    before = copy.read_text()
    publish(project, "second")
    (told,) = desk.lay(project)
    assert copy.read_text() == before
    assert told.endswith(f"{sys.executable} -m course_lib.learner reset 10_begin")


def test_the_command_that_is_told_gets_the_new_solution_in_a_class_too(project, tmp_path):
    place = tmp_path / "anna's"
    desk.lay(project, place)
    edit(place / "desk/solutions/10_begin.ipynb", 0, "My note")
    solution = read(project / "notebooks/solutions/10_begin.ipynb")
    solution["cells"][0]["source"] = ["The second edition"]
    write(project / "notebooks/solutions/10_begin.ipynb", solution)
    (told,) = desk.lay(project, place)
    *_, asked, option, where = shlex.split(told.partition("beside it: ")[2])
    assert option == "--place"
    desk.reset(project, asked, place=Path(where))
    assert text(place / "desk/solutions/10_begin.ipynb")[0] == "The second edition"
    assert desk.lay(project, place) == []


def test_a_desk_whose_list_of_copies_is_lost_heals(project):
    desk.lay(project)
    edit(project / "desk/11_go_on.ipynb", 0, "My note")
    (project / "desk" / desk.COPIES).unlink()
    (told,) = desk.lay(project)
    assert told.startswith("11_go_on.ipynb: there is a newer edition")
    publish(project, "second")
    assert any(told.startswith("10_begin.ipynb: there was a newer") for told in desk.lay(project))


def test_links_of_a_desk_follow_a_project_that_has_moved(project, tmp_path):
    desk.lay(project, tmp_path / "anna")
    project.rename(tmp_path / "moved")
    desk.lay(tmp_path / "moved", tmp_path / "anna")
    assert (tmp_path / "anna/README.md").read_text() == "Read me"


def test_what_jupyterlab_writes_on_opening_is_no_touch(project):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    opened = read(copy)
    opened["metadata"] |= {"language_info": {"name": "python", "version": "3.11.7"}}
    opened["cells"][0]["id"] = "abc"
    write(copy, opened)
    publish(project, "second")
    (told,) = desk.lay(project)
    assert "now it is the new one" in told


def test_a_file_of_the_learners_under_a_chapters_name_stays(project):
    (project / "desk").mkdir()
    (project / "desk/10_begin.ipynb").write_text("my own")
    desk.lay(project)
    assert (project / "desk/10_begin.ipynb").read_text() == "my own"


def test_a_chapter_with_another_number_moves_if_it_is_untouched(project):
    desk.lay(project)
    edit(project / "desk/10_begin.ipynb", 0, "My note")
    for name in ("10_begin", "11_go_on"):
        (project / f"notebooks/{name}.ipynb").rename(project / f"notebooks/1{name}.ipynb")
    told = desk.lay(project)
    assert sorted(path.name for path in (project / "desk").glob("*.ipynb")) == [
        "10_begin.ipynb",
        "110_begin.ipynb",
        "111_go_on.ipynb",
    ]
    assert any("yours stays" in sentence for sentence in told)


def test_a_chapter_begins_anew_and_the_text_is_kept(project):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    edit(copy, 2, "def f(x): return x")
    before = copy.read_text()
    assert "10_begin.mine-1.ipynb" in desk.reset(project, "begin")
    assert (project / "desk/10_begin.mine-1.ipynb").read_text() == before
    assert text(copy) == text(project / "notebooks/10_begin.ipynb")
    assert "mine" not in desk.reset(project, "10_begin.ipynb"), "there is nothing to keep"
    edit(copy, 0, "again")
    assert "10_begin.mine-2.ipynb" in desk.reset(project, "10_begin") and desk.lay(project) == []


def test_an_exercise_begins_anew_and_the_text_is_kept(project):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    edit(copy, 4, "class G: mine = 1")
    edit(copy, 5, "def g(): return 2")
    edit(copy, 2, "def f(x): return x")
    assert "g is as published" in desk.reset(project, "begin", "g")
    assert text(copy)[:4] == [
        *text(project / "notebooks/10_begin.ipynb")[:2],
        "def f(x): return x",
        "check.f(f)",
    ]
    assert (
        text(copy)[4:6] == text(project / "notebooks/10_begin.ipynb")[4:6]
        and text(copy)[7] == "check.g(G, g)"
    )
    assert "class G: mine = 1\n\ndef g(): return 2" in text(copy)[6]


def test_an_exercise_whose_cells_are_gone_comes_back_before_its_check(project):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    notebook = read(copy)
    del notebook["cells"][2]
    write(copy, notebook)
    desk.reset(project, "begin", "f")
    assert text(copy) == text(project / "notebooks/10_begin.ipynb")


def test_an_exercise_is_known_by_its_cells_where_a_check_is_gone(project):
    path = project / "notebooks/10_begin.ipynb"
    notebook = read(path)
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number}"
    write(path, notebook)
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    edit(copy, 2, "def f(x): return x")
    mine = read(copy)
    del mine["cells"][3]  # check.f
    write(copy, mine)
    desk.reset(project, "begin", "g")
    assert text(copy)[2] == "def f(x): return x" and len(text(copy)) == 6


def test_an_untouched_exercise_begins_anew_without_a_trace(project):
    desk.lay(project)
    assert "wrote" not in desk.reset(project, "begin", "g")
    assert text(project / "desk/10_begin.ipynb") == text(project / "notebooks/10_begin.ipynb")


def test_of_a_file_that_is_no_notebook_any_more_the_whole_chapter_can_be_reset(project):
    desk.lay(project)
    copy = project / "desk/10_begin.ipynb"
    copy.write_text("{ half a noteb")
    with pytest.raises(ValueError, match="cannot be read as a notebook: reset the whole chapter"):
        desk.reset(project, "begin", "f")
    desk.reset(project, "begin")
    assert (project / "desk/10_begin.mine-1.ipynb").read_text() == "{ half a noteb"


@pytest.mark.parametrize(
    "chapter, exercise, words",
    [
        ("nothing", None, "There is no chapter 'nothing': it can be begin, go_on."),
        ("begin", "h", "10_begin.ipynb has no exercise 'h': it has f, g."),
    ],
)
def test_what_cannot_be_reset_is_said(project, chapter, exercise, words):
    desk.lay(project)
    with pytest.raises(ValueError) as error:
        desk.reset(project, chapter, exercise)
    assert str(error.value) == words


def test_a_desk_in_another_folder_has_what_its_links_lead_to(project, tmp_path):
    desk.lay(project, tmp_path / "anna")
    desk.lay(project, tmp_path / "anna")
    assert (tmp_path / "anna/desk/10_begin.ipynb").is_file()
    assert (tmp_path / "anna/README.md").read_text() == "Read me"
    assert not (project / "desk").exists()
    desk.lay(project, tmp_path / "ben")
    edit(tmp_path / "anna/desk/10_begin.ipynb", 0, "Anna's")
    assert text(tmp_path / "ben/desk/10_begin.ipynb")[0] == "The first edition"


def test_a_project_without_chapters_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no chapters in"):
        desk.lay(tmp_path)


def test_every_exercise_of_the_course_is_found():
    for path in sorted(PROJECT.glob("notebooks/[0-9]*.ipynb")):
        stubs = sum("exercise" in cell["metadata"].get("tags", ()) for cell in read(path)["cells"])
        found = desk.exercises(read(path))
        assert len(found) >= 3 and sum(map(len, found.values())) == stubs, path


def test_the_command_lays_a_desk_and_says_what_is_wrong(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "course_lib.learner", *arguments, "--place", str(tmp_path)],
            capture_output=True,
            text=True,
        )

    assert "copied" in call("desk").stdout
    assert "_ddp.ipynb: own_ddp is as published" in call("reset", "ddp", "own_ddp").stdout
    wrong = call("reset", "dpp")
    assert wrong.returncode == 1 and "Error: There is no chapter 'dpp'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_what_jupyterlab_is_told_to_do_it_knows():
    """A setting that a newer one calls by another name would be passed over without a word."""
    schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    told = json.loads((SETTINGS / "labconfig" / "default_setting_overrides.json").read_text())
    for plugin, settings in told.items():
        extension, name = plugin.split(":")
        known = json.loads((schemas / extension / f"{name}.json").read_text())["properties"]
        assert settings.keys() <= known.keys(), plugin
    assert told["@jupyterlab/notebook-extension:tracker"]["codeCellConfig"]["lineWrap"]
