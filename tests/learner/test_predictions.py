"""A prediction is asked, kept and answered, and once compared it stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from course_lib import predict
from course_lib.learner import predictions, record

PROJECT = Path(__file__).resolve().parents[2]
WRONG = {"every rank the same": "The root has n - 1 partners."}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """This process works in a desk."""
    (tmp_path / record.COPIES).write_text("{}")
    monkeypatch.chdir(tmp_path)
    record.here.cache_clear()
    yield tmp_path
    record.here.cache_clear()


def ring(**more):
    return predict("ring-bytes", "How many times S does each rank send?", unit="x S", **more)


def who(**more):
    choices = ("the root", "every rank the same")
    return predict("who-sends", "Who sends most?", choices=choices, **more)


def test_without_a_guess_it_is_one_calm_line_and_the_measurement(capsys):
    ring().compare(1.5)
    who().compare("the root", WRONG)
    assert capsys.readouterr().out == (
        "Predict: How many times S does each rank send? (x S)\nmeasured 1.50 x S\n"
        "Predict: Who sends most? (the root / every rank the same)\nmeasured: the root\n"
    )


@pytest.mark.parametrize(
    ("said", "measured", "told"),
    [
        (2, 1.5, "measured 1.50 x S; you said 2.00 (33% too high)"),
        (2.0, 2.0, "measured 2.00 x S; you said 2.00 (right)"),
        (2, 2, "measured 2 x S; you said 2 (right)"),
        (1.46, 1.5, "measured 1.50 x S; you said 1.46 (right within 5%)"),
        (4.5, 1.5, "measured 1.50 x S; you said 4.50 (3 times too high)"),
        (0.9, 1.5, "measured 1.50 x S; you said 0.900 (40% too low)"),
        (0.5, 1.5, "measured 1.50 x S; you said 0.500 (3 times too low)"),
        (0, 3, "measured 3 x S; you said 0 (3 too low)"),
        (5, 0, "measured 0 x S; you said 5 (5 too high)"),
        (1_000_000, 12_345.6, "measured 12,346 x S; you said 1,000,000 (81 times too high)"),
        (-2.0, -1.0, "measured -1.00 x S; you said -2.00 (1.00 too low)"),
        (1, torch.tensor(0.5), "measured 0.500 x S; you said 1.00 (2 times too high)"),
        (numpy.int64(3), numpy.float32(3), "measured 3.00 x S; you said 3.00 (right)"),
    ],
)
def test_measured_guessed_and_the_ratio(said, measured, told, capsys):
    ring(guess=said).compare(measured)
    assert capsys.readouterr().out.splitlines()[1] == told


def test_a_choice_gets_a_sentence_on_a_wrong_belief_and_none_on_a_right_one(capsys):
    who(guess="every rank the same").compare("the root", WRONG)
    who(guess="the root").compare("the root", WRONG, how="modelled")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "measured: the root; you said: every rank the same. The root has n - 1 partners."
    assert lines[3] == "modelled: the root, as you said"
    with pytest.raises(ValueError, match="a sentence for each of the other choices"):
        who().compare("the root")


@pytest.mark.parametrize("bad", ["much", True, float("nan"), [1, 2], torch.ones(2), None])
def test_what_is_no_number_is_said(bad):
    with pytest.raises(ValueError, match="'ring-bytes' is a number"):
        ring().compare(bad)


def test_arguments_that_cannot_be_are_refused():
    for name, choices in (("Ring bytes", None), ("ring", ("a",)), ("ring", ("a", "a")), ("ring", "ab")):
        with pytest.raises(ValueError, match="name=|choices="):
            predict(name, "How?", choices=choices)
    with pytest.raises(ValueError, match="one of 'the root'"):
        who(guess="nobody")
    with pytest.raises(ValueError, match="one of 'measured', 'modelled'"):
        ring().compare(1, how="guessed")


def test_a_guess_may_change_until_it_is_compared_and_then_it_stays(desk, capsys):
    first = ring(guess=3)
    first.say(2)
    first.compare(1.5)
    first.say(1.5)
    again = ring(guess=1.5)  # the cell is run once more, in another kernel say
    again.compare(1.49)
    assert (first.value, again.value, again.locked) == (2, 2, True)
    assert "You said: 2 x S, compared." in capsys.readouterr().out
    kept = [(line["kind"], line["guess"], line.get("measured")) for line in record.kept()]
    assert kept == [("guess", 3, None), ("guess", 2, None), ("compared", 2, 1.5)]


def test_who_ran_all_before_guessing_may_guess_and_the_record_says_so(desk):
    ring().compare(1.5)
    ring().compare(1.5)
    late = ring(guess=1.5)
    late.compare(1.5)
    assert late.locked
    lines = list(record.kept())
    assert [line["kind"] for line in lines] == ["compared", "guess", "compared"]
    assert lines[0]["guess"] is None and lines[1]["known"]


def test_a_chapter_begun_anew_asks_anew(desk):
    ring(guess=2).compare(1.5)
    record.keep("reset", desk, chapter="10_begin.ipynb", predictions=("ring-bytes",))
    assert ring().value is None
    assert ring(guess=1.5).value == 1.5


def test_damaged_and_foreign_lines_are_passed_over(desk):
    ring(guess=2)
    with (desk / record.RECORD).open("a") as file:
        file.write('{"kind": "guess", "name": "ring\n[1]\n{"kind": 3}\n\x00\n{"kind": "other"}\n')
        file.write('{"kind": "reset", "predictions": null}\n{"kind": "guess", "name": "ri')  # cut
    ring(guess=3)
    assert [line["guess"] for line in record.kept() if line["kind"] == "guess"] == [2, 3]


def test_a_question_that_is_another_one_now_is_asked_anew(desk):
    who(guess="the root").compare("the root", WRONG)
    assert predict("who-sends", "How many send?").value is None
    asked = predict("who-sends", "Who sends least?", choices=("rank 1", "nobody"))
    assert (asked.value, asked.locked) == (None, False)


def test_the_desk_is_kept_where_a_learner_goes_elsewhere(desk, tmp_path_factory, monkeypatch):
    ring(guess=2)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    ring().compare(1.5)
    assert [line["kind"] for line in record.kept(desk)] == ["guess", "compared"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.5", 1.5), (" 2 ", 2), ("1,000,000", 1e6), ("12,345.6", 12345.6), ("3/2", 1.5), ("2e6", 2e6)],
)
def test_numbers_as_people_type_them(text, number):
    assert predictions._typed(text) == number


@pytest.mark.parametrize("text", ["1,5", "0,25", "2,5e6", "1,23", "much", "", "1/0"])
def test_what_may_be_meant_otherwise_is_asked_again(text):
    with pytest.raises(ValueError):
        ring().say(predictions._typed(text))


def test_outside_of_a_desk_and_among_its_solutions_nothing_is_kept(desk, monkeypatch):
    (desk / "solutions").mkdir()
    monkeypatch.chdir(desk / "solutions")
    record.here.cache_clear()
    ring(guess=2).compare(1.5)
    assert os.listdir() == [] and list(record.kept()) == [] and not (desk / record.RECORD).exists()


def test_a_desk_that_cannot_be_written_to_stops_nobody(desk, capsys):
    (desk / record.RECORD).mkdir()
    ring(guess=2).compare(1.5)
    assert "you said 2.00" in capsys.readouterr().out


def test_a_kernel_shows_a_field_and_what_is_typed_into_it_is_kept(desk):
    """A real kernel, and what a frontend does: it sends the new value to the widget."""
    from jupyter_client.manager import start_new_kernel

    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    manager, client = start_new_kernel(
        kernel_name="python3", cwd=str(desk), env={**os.environ, "PYTHONPATH": path}
    )
    try:

        def told(code):
            outputs = []
            reply = client.execute_interactive(code, timeout=240, output_hook=outputs.append)
            assert reply["content"]["status"] == "ok", reply["content"]
            return [message for message in outputs if message["msg_type"] != "status"]

        asked = told("from course_lib import predict\nguess = predict('ring-bytes', 'How many?', unit='x S')")
        (shown,) = [m["content"]["data"] for m in asked if m["msg_type"] == "display_data"]
        assert shown["text/plain"] == "Predict: How many? (x S)"
        assert "application/vnd.jupyter.widget-view+json" in shown
        opened = [m["content"] for m in asked if m["msg_type"] == "comm_open"]
        (field,) = [
            one["comm_id"] for one in opened if one["data"]["state"].get("_model_name") == "TextModel"
        ]
        for typed in ("many", "3/2"):
            data = {"method": "update", "state": {"value": typed}, "buffer_paths": []}
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": field, "data": data}))
        after = told("guess.compare(1.5)")
        assert "measured 1.50 x S; you said 1.50 (right)" in [
            m["content"].get("text", "").strip() for m in after
        ]
        # the field goes, so that a file that is opened again shows the line
        (update,) = [m["content"]["data"] for m in after if m["msg_type"] == "update_display_data"]
        assert update == {"text/plain": "Predict: How many? You said: 1.50 x S, compared."}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    lines = [json.loads(line) for line in (desk / record.RECORD).read_text().splitlines()]
    assert [(line["kind"], line["guess"]) for line in lines] == [("guess", 1.5), ("compared", 1.5)]


def test_predictions_cost_a_rank_nothing():
    code = "import sys, course_lib.check.judge, course_lib; print('ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
