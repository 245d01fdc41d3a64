"""Explorers draw each of their states, with a table of the same numbers, and move by their controls."""

import itertools

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from course_lib import explore, run, theory
from course_lib.explore import links
from course_lib.plots.units import Unit

NAMES = [name for name in explore.__all__ if name != "Explorer"]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", NAMES)
def test_each_corner_is_drawn_with_a_table(name):
    explorer = getattr(explore, name)()
    assert 1 <= len(explorer.choices) <= 3
    ends = [(list(values.values())[0], list(values.values())[-1]) for values in explorer.choices.values()]
    for values in itertools.product(*ends):
        ax, table = explorer.picture(**dict(zip(explorer.choices, values)))
        assert ax.get_title(loc="left") and isinstance(table, pd.DataFrame) and len(table)
        plt.close(ax.figure)


@pytest.mark.parametrize("name", NAMES)
def test_a_move_draws_anew_and_is_kept(name):
    explorer = getattr(explore, name)()
    row, below = explorer._widget().children
    fields, before = row.children[: len(explorer.choices)], below.value
    assert len(fields) == len(explorer.choices) and 'alt="' in before and "<table" in before
    for field, control in zip(fields, explorer.choices):
        assert field.description == control and field.value == explorer.values[control]
    last = fields[-1]
    last.value = next(value for _, value in last.options if value != last.value)
    assert below.value != before and explorer.values[last.description] == last.value


def test_buttons_move_a_control_by_a_step_and_stop_at_its_ends():
    explorer = explore.memory()
    row = explorer._widget().children[0].children
    (field,) = [one for one in row if getattr(one, "description", "") == "ranks"]
    less, more = (one for one in row if (getattr(one, "tooltip", None) or "").startswith("ranks: one step"))
    values = [value for _, value in field.options]
    field.value = values[-2]
    for button, value in ((more, values[-1]), (more, values[-1]), (less, values[-2]), (less, values[-3])):
        button.click()
        assert field.value == explorer.values["ranks"] == value
    assert less.layout.order == more.layout.order == field.layout.order


def test_without_widgets_there_is_one_state_as_picture_and_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: shown.append((what, how)))
    explore.memory().at(ranks=64)._ipython_display_()
    ((bundle,), how), *more = shown
    assert not more and set(bundle) == {"text/plain", "image/png"} and how["raw"]
    assert "ranks: 64" in bundle["text/plain"] and how["metadata"]["image/png"]["alt"]


def test_what_is_no_choice_is_refused():
    explorer = explore.memory()
    with pytest.raises(ValueError, match="ranks=3: it must be one of 1, 2"):
        explorer.at(ranks=3)
    with pytest.raises(ValueError, match="a control='rank'"):
        explorer.at(rank=2)
    with pytest.raises(ValueError, match="bytes_per_s=None"):
        explore.collectives(alpha_s=1e-5)


def test_memory_is_that_of_theory_and_stands_beside_a_job():
    def train():
        import torch

        from course_lib import measure

        model = torch.nn.Linear(100, 10)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            with measure.step(model, optimizer):
                model(torch.ones(1, 100)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    job = run(train, ranks=2)
    ax, table = explore.memory(job).picture(model=8 * 10**9, ranks=8, precision="fp32")
    stage_3 = theory.zero_memory(8e9, 8, 3, "fp32")
    assert table.loc["ZeRO 3", "params"] == Unit.of(stage_3["params"]).text(stage_3["params"])
    assert table.loc["train, measured", "grads"] == "4.04 KB"
    plt.close(ax.figure)


def test_seconds_are_those_of_the_formulas():
    assert links.seconds("ring", 1e6, 4, 0, 1e9) == theory.ring_seconds("all_reduce", 1e6, 4, 0, 1e-9)
    assert links.seconds("halving and doubling", 1e6, 4, 1.0, 1e9) == pytest.approx(4 + 1.5e-3)
    assert links.seconds("star", 1e6, 4, 1.0, 1e9) == pytest.approx(2 + 6e-3)  # 2 (n-1) S at the root
    explorer = explore.collectives(alpha_s=1e-4, bytes_per_s=1e9)
    assert next(iter(explorer.choices["link"])) == "yours, measured"


def test_schedules_say_what_paper_says():
    for kind, kept in (("gpipe", ["8"] * 4), ("1f1b", ["4", "3", "2", "1"])):
        ax, table = explore.schedules().picture(kind=kind)
        assert f"bubble {theory.bubble_fraction(4, 8):.0%}" in ax.get_title(loc="left")
        assert list(table["kept at once"]) == kept
        plt.close(ax.figure)
