"""Where a learner stands: by the record of their desk, chapter by chapter."""

import json

import pytest

from course_lib import check
from course_lib.learner import __main__ as commands
from course_lib.learner import desk, record
from course_lib.learner.standing import where_i_stand


@pytest.fixture
def project(tmp_path):
    """Two chapters, each with a prediction and two exercises."""
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    for number, name in enumerate(("begin", "further")):
        sources = [
            f"# {name.title()}",
            f'guess = predict(\n    "{name.replace("_", "-")}-bytes", "How many?")',
            "def f(): raise NotImplementedError",
            f"check.{name}_f(f)",
            "def g(): raise NotImplementedError",
            f"check.{name}_g(g)",
        ]
        cells = [
            {
                "cell_type": "code" if at else "markdown",
                "source": source,
                "metadata": {"tags": ["exercise"] if source.startswith("def") else []},
            }
            for at, source in enumerate(sources)
        ]
        for folder in ("notebooks", "notebooks/solutions"):
            path = tmp_path / folder / f"0{number}_{name}.ipynb"
            path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    desk.lay(tmp_path)
    return tmp_path


def test_what_is_predicted_and_solved_and_where_to_further(project):
    place = project / desk.DESK

    def standing():
        return where_i_stand(place, project)

    assert standing().next_step == "Begin with Begin."
    record.keep("guess", place, name="begin-bytes", guess=2)
    record.keep("verdict", place, exercise="begin_g", passed=False)
    assert standing().next_step == "Go on with Begin: the exercise begin g."
    record.keep("verdict", place, exercise="begin_g", passed=True)
    record.keep("verdict", place, exercise="begin_g", passed=False)  # solved is solved
    assert repr(standing()).splitlines() == [
        "         predicted  solved",
        "Begin       1 of 1  1 of 2",
        "Further     0 of 1  0 of 2",
        "Go on with Begin: the exercise begin f.",
    ]
    assert '<a href="00_begin.ipynb">Begin</a></td><td>1 of 1</td>' in standing()._repr_html_()
    record.keep("verdict", place, exercise="begin_f", passed=True)
    assert standing().next_step == "Begin with Further."
    record.keep("guess", place, name="further-bytes", guess=3, known=True)  # the answer was there
    assert not standing()[1].predicted
    desk.reset(project, "begin")
    assert standing().next_step == "Go on with Begin: its predictions."


def test_the_command_prints_it_and_where_no_desk_is_nothing_is_done(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "PROJECT", project)
    assert commands.main(["where", "--place", str(tmp_path / "elsewhere")]) == 0
    assert "Begin with Begin." in capsys.readouterr().out


def test_a_check_keeps_its_verdict_in_a_desk_and_not_that_of_a_stub(tmp_path, monkeypatch):
    (tmp_path / record.COPIES).write_text("{}")
    monkeypatch.chdir(tmp_path)
    record.here.cache_clear()

    def stub(ready_s, send_s):
        raise NotImplementedError

    assert check.finish_time(stub).untouched and not list(record.kept())
    assert not check.finish_time(lambda ready_s, send_s: "soon")
    (line,) = record.kept()
    assert (line["kind"], line["exercise"], line["passed"]) == ("verdict", "finish_time", False)
    assert line["missed"]
    record.here.cache_clear()


def test_the_book_is_known():
    book = where_i_stand()
    assert [int(place.file.partition("_")[0]) for place in book] == [*range(len(book))]
    assert all(place.exercises for place in book)
