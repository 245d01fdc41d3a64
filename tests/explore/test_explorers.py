"""Explorers draw each of their states, with a table of the same numbers, and move by their controls."""

import itertools

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from course_lib import explore, plan, run, theory
from course_lib.explore import panel
from course_lib.plots.described import in_words
from course_lib.plots.units import Unit, time_in_words

NAMES = [name for name in explore.__all__ if name != "Explorer"]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")  # of tests before, elsewhere
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left


@pytest.mark.parametrize("name", NAMES)
def test_each_corner_is_drawn_with_a_table(name):
    explorer = getattr(explore, name)()
    assert 1 <= len(explorer.choices) <= 3
    ends = [(list(values.values())[0], list(values.values())[-1]) for values in explorer.choices.values()]
    for values in itertools.product(*ends):
        ax, table = explorer.picture(**dict(zip(explorer.choices, values)))
        assert ax.get_title(loc="left") and isinstance(table, pd.DataFrame) and len(table)
        if name != "mesh":  # there boxes stand close by close
            assert not overlapping(ax.figure)
        plt.close(ax.figure)


def overlapping(figure) -> list[tuple[str, str]]:
    """Texts of a figure, as it is shown, of which one covers the other, or that the border cuts."""
    panel.laid_out(figure)
    figure.canvas.draw()
    renderer, found = figure.canvas.get_renderer(), []
    inside = {id(its) for ax in figure.axes for its in ax.texts if its.get_clip_on()}  # of blocks, in a lane
    shown = [
        (its.get_text(), its.get_window_extent(renderer))
        for its in figure.findobj(Text)
        if its.get_visible() and its.get_text().strip() and id(its) not in inside | beyond_axes(figure)
    ]
    assert len(shown) > 3
    for k, (text, box) in enumerate(shown):
        if not (box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1):
            found.append((text, "the border"))
        for other, its in shown[k + 1 :]:
            across = min(box.x1, its.x1) - max(box.x0, its.x0)
            down = min(box.y1, its.y1) - max(box.y0, its.y0)
            if across > 2 and down > 2:
                found.append((text, other))
    return found


def beyond_axes(figure) -> set[int]:
    """Labels of ticks beyond the end of their axis, which are not drawn."""
    found = set()
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high or not tick.get_visible():
                found |= {id(tick.label1), id(tick.label2)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_move_draws_anew_and_is_kept(name):
    explorer = getattr(explore, name)()
    row, below = explorer._widget().children
    fields, before = row.children[: len(explorer.choices)], below.value
    assert len(fields) == len(explorer.choices) and 'alt="' in before and "<table" in before
    for field, control in zip(fields, explorer.choices):
        assert field.description == control and field.value == explorer.values[control]
    for field, control in zip(fields, explorer.choices):
        values = [value for _, value in field.options]
        at = values.index(field.value)
        field.value = values[at + 1 if at + 1 < len(values) else at - 1]
        assert below.value != before and explorer.values[control] == field.value
        before = below.value


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
    ((picture,), how), ((table,), _) = shown
    assert set(picture) == {"text/plain", "image/png"} and how["raw"]
    assert how["metadata"]["image/png"]["alt"] == picture["text/plain"]
    assert "ranks: 64" in table["text/plain"] and "<table" in table["text/html"]


def test_what_is_no_choice_is_refused():
    explorer = explore.memory()
    with pytest.raises(ValueError, match="ranks=3: it must be one of 1, 2"):
        explorer.at(ranks=3)
    with pytest.raises(ValueError, match="a control='rank'"):
        explorer.at(rank=2)
    with pytest.raises(ValueError, match="bytes_per_s=None"):
        explore.collectives(alpha_s=1e-5)


def test_memory_is_that_of_theory_and_stands_beside_a_job_as_a_step_does():
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
    # its own step starts the explorer of overlap, and stands under the lanes on paper
    ax, table = explore.overlap(job).picture(ranks=64)
    assert table.loc["gradients", ""] == "4.04 KB" and table.loc["yours, measured", ""]
    assert [label.get_text() for label in ax.get_yticklabels()].count("yours: computes") == 1
    own = [its for its in ax.collections if its.get_linestyle()[0][1] is None]  # solid, the others dashed
    assert len(own) >= 2 and job.where in ax.texts[0].get_text().replace("\n", " ")
    plt.close(ax.figure)


def drawn(explorer, **values) -> tuple[str, pd.DataFrame]:
    ax, table = explorer.picture(**values)
    title = ax.get_title(loc="left")
    plt.close(ax.figure)
    return title, table


def test_seconds_of_an_all_reduce_are_those_of_theory():
    explorer = explore.collectives(alpha_s=1e-4, bytes_per_s=1e9)
    assert next(iter(explorer.choices["link"])) == "yours, measured"
    _, table = drawn(explorer, ranks=64, size=10**6)
    for kind in ("star", "ring", "halving-doubling", "doubling"):
        seconds = theory.all_reduce_seconds(kind, 10**6, 64, 1e-4, 1e-9)
        assert table.loc[kind, "time"] == time_in_words(seconds)
    nvlink = explorer.choices["link"]["NVLink, H100, published"]
    row = theory.published("links")["rows"][0]
    assert nvlink == pytest.approx((row["alpha_us"] / 1e6, row["gb_per_s"] * 1e9))


def test_a_step_in_buckets_is_that_of_theory():
    given = {"forward_s": 0.04, "backward_s": 0.08, "gradient_bytes": 2**20}
    explorer = explore.overlap(**given, alpha_s=1e-3, bytes_per_s=2e7)
    title, table = drawn(explorer, buckets=8, ranks=2)
    c = 8 * theory.ring_seconds("all_reduce", 2**17, 2, 1e-3, 1 / 2e7)
    step = theory.overlapped_seconds(0.04, 0.08, c, 8)
    assert title == f"8 buckets on 2 ranks: {time_in_words(step)} a step"
    numbers = table[""]
    assert numbers["all_reduces, in all"] == time_in_words(c) and numbers["step"] == time_in_words(step)
    assert numbers["of this, hidden"] == f"{theory.hidden_fraction(0.08, c, 8):.0%}"
    assert numbers["of this, hidden"] == f"{1 - (step - 0.12) / c:.0%}"
    with pytest.raises(ValueError, match="backward_s=None"):
        explore.overlap(forward_s=0.04)


def sent_on_a_mesh(**values) -> list[tuple[str, str]]:
    _, table = drawn(explore.mesh(), **values)
    (sends,) = (column for column in table if "sends" in column)
    assert ("Mixtral 8x7B" if values["also"][0] == "ep" else "Llama 3 405B") in sends
    return list(zip(table["over"], table[sends]))


def test_bytes_along_the_axes_of_a_mesh_are_those_of_theory():
    def text(nbytes) -> str:
        return Unit.of(nbytes).text(nbytes)

    layers, hidden, tokens = 126, 16384, 8192
    along_tp = layers * theory.tensor_parallel_bytes(1, tokens, hidden, 2, 2)
    gradients = theory.collective_bytes("all_reduce", 405e9, 2)  # of 2 bytes, and half of them
    assert sent_on_a_mesh(dp=2, also=("", 1), tp=2) == [("dp", text(gradients)), ("tp", text(along_tp))]
    # of two stages each sends one tensor: one its activations, the other their gradients
    activations = text(tokens * hidden * 2)
    assert sent_on_a_mesh(dp=2, also=("pp", 2), tp=1) == [("dp", text(gradients)), ("pp", activations)]
    keys = layers * theory.context_bytes("all_gather", 1, tokens, 64, 4, 128, 2, 2)
    sent = [("cp", text(gradients)), ("cp", text(keys)), ("tp", text(along_tp / 2))]
    assert sent_on_a_mesh(dp=1, also=("cp", 2), tp=2) == sent
    row = theory.published("mixtures")["rows"][0]
    experts = 32 * theory.expert_numel(4096, 14336, 8, 2)["total"]
    assert row["model"] == "Mixtral 8x7B" and sent_on_a_mesh(dp=2, also=("ep", 4), tp=1) == [
        ("edp", text(theory.collective_bytes("all_reduce", experts / 4 * 2, 2))),
        ("edp, ep", text(theory.collective_bytes("all_reduce", (row["total"] * 1e9 - experts) * 2, 8))),
        ("ep", text(32 * theory.expert_parallel_bytes(tokens, 4096, 2, 4, 2))),
    ]


def test_a_table_says_with_whom_the_first_rank_of_a_mesh_talks():
    title, table = drawn(explore.mesh(), dp=2, also=("cp", 2), tp=2)
    assert title == "dp 2 x cp 2 x tp 2"
    assert dict(zip(table["over"], table["rank 0 is with"])) == {"dp, cp": "2, 4, 6", "cp": "2", "tp": "1"}
    assert dict(zip(table["over"], table["groups"])) == {"dp, cp": 2, "cp": 4, "tp": 4}
    title, table = drawn(explore.mesh(), dp=1, also=("", 1), tp=1)
    assert title == "dp 1" and list(table["rank 0 is with"]) == ["nobody"]


def test_the_best_plans_are_those_of_the_planner_and_runs_stand_beside_them():
    layers = tuple(plan.Layer(f"{k}", ((64, 64), (64,)), 4096, 256, 256) for k in range(4))
    model = plan.Model("small", layers, batch=64)
    software = {way: {1: 1e-4, 2: 1e-4} for way in ("one process", "DDP", "fully_shard")}
    links = (plan.Link(64, 1e-4, 1e-9),)
    machine = plan.Machine("here", 2, {0: 1e9}, 1e9, links, software_s=software)
    title, table = drawn(explore.planner(machine, model, {"DDP on 2 ranks": 0.25}), ranks=2)
    plans = [its for its in plan.here((2,)) if its.way in software]
    found = plan.ranked(model, machine, plans)
    assert title == f"Best on 2 ranks: {time_in_words(found[0].cost.step_s)} a step"
    assert list(table["step"]) == [time_in_words(its.cost.step_s) for its in found] and len(found) == 2
    assert table.loc["DDP: dp 2", "measured"] == "250 ms"
    title, table = drawn(explore.planner(machine, model), ranks=4096)
    assert "no plan can" in title and "no plan can" in table.loc["no plan", "why"]


def test_the_models_of_the_planner_are_those_that_were_published():
    shapes = {row["model"]: row for row in theory.published("megatron_configurations")["rows"]}
    heads = {row["model"]: row["heads"] for row in theory.published("megatron_stages")["rows"]}
    models = explore.planner().choices["model"]
    for name, its in (("1.7", 1.7), ("7.5", 7.5), ("39", 39.1)):
        model, row = models[f"GPT, {name} billion"], shapes[its]
        assert len(model.layers) == row["layers"] and model.layers[0].heads == heads[its]
        assert model.numel / 1e9 == pytest.approx(its, abs=0.11)
    assert models["GPT, 175 billion"].numel / 1e9 == pytest.approx(174.6, abs=0.1)


def test_bars_of_the_planner_are_told_in_words_by_their_length():
    ax, table = explore.planner().picture()
    words = in_words(ax.figure)
    (best,) = (its for its in ax.collections if its.get_label() == "compute")
    lengths = [path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in best.get_paths()]
    assert len(lengths) == len(table) == 5
    assert f"compute: {min(lengths):.3g} to {max(lengths):.3g}." in words
    plt.close(ax.figure)


def test_staleness_is_that_of_theory_and_of_servers_that_ran():
    history = [(1 + k % 3, 1, 0.5 * (k + 1)) for k in range(30)]
    explorer = explore.staleness(0.02, 32, {0: history}, asleep=False)
    _, table = drawn(explorer, workers=3, slowest=4)
    asynchronous = theory.updates_per_second([0.02, 0.02, 0.08], waits=False)
    assert table.loc["no bound", "samples / s"] == f"{32 * asynchronous:,.0f}"
    assert list(table["mean staleness"]) == ["1", "1", "2"]
    assert list(table["at most"]) == ["2", "10", "no limit"]
    assert table.loc["bound 0", "samples / s, measured"] == "64"
    assert table.loc["bound 0", "staleness, measured"] == "1.00"
    assert "samples / s, measured" not in drawn(explorer, workers=3, slowest=8)[1]
    asleep = explore.staleness(0.02, 32, {0: history})
    assert drawn(asleep, workers=3, slowest=4)[1].loc["bound 0", "staleness, asleep"] == "1.00"
    assert list(drawn(explorer, workers=8, slowest=1)[1]["mean staleness"]) == ["3.5", "7", "7"]
    with pytest.raises(ValueError, match="a list of .worker, staleness, second."):
        explore.staleness(measured={0: [(1, 2)]})


def test_what_is_lost_between_saves_is_that_of_theory():
    title, table = drawn(explore.checkpoints(save_s=2.5, mtbf_s=8e6, restart_s=60), ranks=1024, interval=600)
    m = 8e6 / 1024
    for name, interval in (
        ("Young", theory.checkpoint_interval(2.5, m, "young")),
        ("Daly", theory.checkpoint_interval(2.5, m, "daly")),
        ("chosen", 600),
    ):
        assert table.loc[name, "save every"] == time_in_words(interval)
        assert table.loc[name, "useful (goodput)"] == f"{theory.goodput(interval, 2.5, m, 60):.1%}"
        shares = theory.goodput_shares(interval, 2.5, m, 60)
        for what in ("restarts", "saves", "work done again"):
            assert table.loc[name, f"in {what}"] == f"{shares[what]:.1%}"
    assert table.loc["chosen", "lost"] in title
    _, table = drawn(explore.checkpoints())  # as chapter "checkpoints and restarts" has it: 85.3%
    assert table.loc["Daly", "useful (goodput)"] == "85.3%"


def test_what_is_lost_lies_under_its_curve():
    ax, _ = explore.checkpoints().picture()
    (curve,) = (line for line in ax.lines if line.get_label() == "all that is lost")
    top = ax.collections[-1].get_paths()[0].vertices[:, 1].max()
    assert [area.get_label() for area in ax.collections] == ["restarts", "saves", "work done again"]
    assert top == pytest.approx(curve.get_ydata().max())
    plt.close(ax.figure)


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 µs"), (3.4e-6, "3.4 µs"), (0.00125, "1.25 ms"), (59, "59 s"), (5400, "1.5 h"), (86_400, "24 h")],
)
def test_times_are_told_in_a_unit_that_reads_well(seconds, words):
    assert time_in_words(seconds) == words


def test_schedules_say_what_paper_says():
    for kind, kept in (("gpipe", ["8"] * 4), ("1f1b", ["4", "3", "2", "1"])):
        ax, table = explore.schedules().picture(kind=kind)
        assert f"bubble {theory.bubble_fraction(4, 8):.0%}" in ax.get_title(loc="left")
        assert list(table["kept at once"]) == kept
        plt.close(ax.figure)


def test_interleaved_stages_say_where_they_want_other_microbatches():
    title, _ = drawn(explore.schedules(), kind="interleaved", microbatches=6)
    assert title.startswith("interleaved, 8 micro-batches (not 6: in rounds of 4): bubble")
    assert "not" not in drawn(explore.schedules(), kind="interleaved", microbatches=8)[0]


def test_a_schedule_runs_at_the_push_of_a_button_and_stands_under_the_drawn_one():
    explorer = explore.schedules().at(kind="gpipe", ranks=2, microbatches=2)
    row, below = explorer._widget().children
    button, told = row.children[-2:]
    before = below.value
    assert button.description == "run it" and "as it ran" not in before
    button.click()
    assert not told.value and "as it ran" in below.value and not button.disabled
    ax, table = explorer.picture()
    above, under = ax.figure.axes
    assert "gpipe" in above.get_title(loc="left") and "times as long" in under.get_title(loc="left")
    assert "compute sleeps" not in above.texts[0].get_text() and len(table) == 2
    # both axes are as long, in time: a forward on paper is FORWARD_S
    ms = 1e3 * explore.lists.FORWARD_S
    assert above.get_xlim()[1] * ms == pytest.approx(under.get_xlim()[1], rel=0.05)
    plt.close(ax.figure)


def test_a_schedule_that_cannot_run_says_why(monkeypatch):
    def refused(*args, **kwargs):
        raise ValueError("ranks=8 is more than this machine allows: take fewer ranks.")

    monkeypatch.setattr("course_lib.stand_ins.pipelines.run_quietly", refused)
    explorer = explore.schedules().at(ranks=8)
    row, below = explorer._widget().children
    button, told = row.children[-2:]
    button.click()
    assert (
        "Not done: ranks=8 is more than this machine allows" in told.value and "as it ran" not in below.value
    )
