"""What stands in a widget's place when a notebook is opened again: beside each that a person may see."""

from types import SimpleNamespace

import IPython
import ipywidgets as widgets
import pytest

from course_lib import explore, frontend, predict, reopened
from course_lib.learner import record
from course_lib.ranks.panel import Panel
from course_lib.reopened import Display

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a cell as they are now."""
    shown = []

    def display(data, raw, display_id=False):
        shown.append(data)
        number = len(shown) - 1
        return SimpleNamespace(update=lambda data, raw: shown.__setitem__(number, data))

    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def test_a_widget_is_followed_by_what_stands_in_its_place_until_it_ends(outputs):
    closed = []
    shown = Display(SimpleNamespace(model_id="m", close=lambda: closed.append(1)), "a line", "<b>gone</b>")
    assert outputs[0] == {
        WIDGET: {"version_major": 2, "version_minor": 0, "model_id": "m"},
        "text/plain": "a line",
    }
    assert outputs[1]["text/html"].endswith('style="display: none"><b>gone</b></div>') and len(outputs) == 2
    shown.tell_instead("<b>other</b>")
    assert "<b>other</b>" in outputs[1]["text/html"] and not closed
    shown.end({"text/plain": "over"})
    assert outputs == [{"text/plain": "over"}, {}] and closed


def test_where_nothing_is_to_stand_there_nothing_follows(outputs):
    Display(SimpleNamespace(model_id="m", close=lambda: None), "a line").end({})
    assert outputs == [{}]


def test_all_that_stands_in_a_widget_ends_with_it(outputs):
    parts = [widgets.HTML(), widgets.Button()]
    row = widgets.HBox(parts)
    Display(widgets.VBox([row]), "a line").end({})
    assert [widget.comm for widget in (row, *parts)] == [None] * 3


def test_a_page_that_hears_of_no_output_sees_in_some_last_widgets_how_it_ended(outputs):
    reopened._late.clear()
    boxes = [widgets.VBox([widgets.HBox([widgets.Button()])]) for _ in range(reopened.LATE + 1)]
    rows = [box.children[0] for box in boxes]
    for number, box in enumerate(boxes):
        Display(box, "a line", "gone").end({"text/plain": "over"}, late=f"<b>{number}</b>")
    assert outputs == [{"text/plain": "over"}, {}] * len(boxes)
    assert [row.comm for row in rows] == [None] * len(rows)
    assert boxes[0].comm is None, "the first of them gives its place to the last"
    assert [box.children[0].value for box in boxes[1:]] == [f"<b>{n}</b>" for n in range(1, len(boxes))]
    assert {box.model_id for box in boxes[1:]} < set(widgets.Widget.get_manager_state()["state"])


def test_after_a_job_whose_panel_had_a_button_each_widget_has_a_state(outputs):
    other, panel = widgets.IntSlider(), Panel("a job", stays=True)
    panel._offer()
    panel._offer()  # in place of the first one
    panel.end({})
    assert other.model_id in widgets.Widget.get_manager_state()["state"]


def test_of_a_prediction_the_guess_stands_there(outputs, monkeypatch):
    monkeypatch.setattr(frontend, "ipython_shell", lambda: SimpleNamespace(kernel=1, user_ns={}))
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    monkeypatch.setattr(record, "kept", lambda: iter(()))
    guess = predict("ring-bytes", "How <many>?", unit="x S")
    assert WIDGET in outputs[0] and "Predict: How &lt;many&gt;? (x S)" in outputs[1]["text/html"]
    guess.say(2)
    assert "Predict: How &lt;many&gt;? You said: 2 x S." in outputs[1]["text/html"]
    guess.compare(1.5)
    assert outputs == [{"text/plain": "Predict: How <many>? You said: 2 x S, compared."}, {}]


def test_of_an_explorer_the_last_picture_and_its_table_stand_there(outputs, monkeypatch):
    explorer = explore.memory()
    monkeypatch.setattr(explore.panel, "is_seen", lambda: True)
    explorer._ipython_display_()
    panel, below = outputs
    assert WIDGET in panel and panel["text/plain"].startswith(explorer.name)
    assert "<img" in below["text/html"] and "<table" in below["text/html"] and 'alt="' in below["text/html"]
    moved = explorer._widget()
    control = moved.children[0].children[len(explorer.choices) - 1]
    control.value = next(value for _, value in control.options if value != control.value)
    assert moved.children[1].value in outputs[1]["text/html"]
