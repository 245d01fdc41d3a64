"""The figures say what the ledger says: artists are read, not pixels, from jobs that are made of records."""

import json
import re
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text

from course_lib import plots
from course_lib.collectives import COLLECTIVES
from course_lib.ranks import devices
from course_lib.record import Job, Sweep


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")  # of tests before, elsewhere
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def make_job(ranks: int = 2, step_s: float = 0.1, **changes) -> Job:
    """A job with 1 MB of all_reduce, some all_gather, and different memory and wire bytes on each rank."""
    steps, comm, memory, timeline = [], [], [], []
    for rank in range(ranks):
        for step, (phase, wire) in enumerate(
            [("warm-up", 9e9), ("traced", 1_600_000), ("timed", 1_500_000), ("timed", 1_400_000)]
        ):
            steps.append(
                {
                    "rank": rank,
                    "step": step,
                    "phase": phase,
                    "seconds": step_s if phase == "timed" else None,
                    "samples": 8,
                    "wire_bytes": int(wire * (1 + rank)),
                }
            )
        for op, payload in (("all_reduce", 400_000), ("all_reduce", 600_000), ("all_gather", 500_000)):
            comm.append(
                {
                    "rank": rank,
                    "op": op,
                    "dtype": "float32",
                    "payload_bytes": payload,
                    "algorithm_bytes": payload * 0.75,
                    "group_size": ranks,
                    "group": "0,1",
                    "start_s": 0.0,
                    "seconds": 0.01,
                }
            )
        memory += [
            {"rank": rank, "category": category, "bytes": count}
            for category, count in {
                "params": 4000,
                "grads": 4000,
                "optimizer_states": 8000 + rank,
                "activations": 500,
                "buffers": 0,
                "peak": 30_000_000,
            }.items()
        ]
        timeline += [
            {"rank": rank, "kind": kind, "name": name, "start_s": start, "seconds": seconds}
            for kind, name, start, seconds in [
                ("forward", "forward", 0.0, 0.010),
                ("span", "F0", 0.010, 0.010),
                ("span", "B12", 0.015, 0.010),
                ("span", "load 3", 0.030, 0.005),
                ("communication", "all_reduce", 0.040, 0.010),
            ]
        ]
    records = {"steps": steps, "comm": comm, "memory": memory, "timeline": timeline, "seconds": [1.0] * ranks}
    return replace(
        Job(
            "train",
            ranks,
            "gloo",
            "cpu",
            "2 cores, a processor",
            1.0,
            [None] * ranks,
            [""] * ranks,
            {},
            records,
        ),
        **changes,
    )


def make_sweep(times: dict[int, list[float]], **changes) -> Sweep:
    repeats = len(next(iter(times.values())))
    return Sweep(
        "train", tuple(make_job(n, times[n][i], **changes) for i in range(repeats) for n in times), repeats
    )


def without(job: Job, *tables: str) -> Job:
    return replace(job, records={**job.records, **dict.fromkeys(tables, [])})


def bars(ax, label: str) -> list[float]:
    """Heights of all bars whose legend entry begins with `label`."""
    return [
        patch.get_height()
        for container in ax.containers
        if str(container.get_label()).startswith(label)
        for patch in container
    ]


def pieces(ax, label: str) -> list[tuple]:
    """(rank, left, width) of a timeline's pieces, in ms."""
    return [
        (round(patch.get_y() + patch.get_height() / 2), round(patch.get_x(), 6), round(patch.get_width(), 6))
        for container in ax.containers
        if container.get_label() == label
        for patch in container
    ]


def texts(ax) -> str:
    legend = [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []
    return "\n".join(
        [text.get_text() for text in ax.texts]
        + legend
        + [ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()]
    )


DRAW = {
    "communication": lambda **k: plots.communication(make_job(), **k),
    "memory": lambda **k: plots.memory(make_job(), **k),
    "timeline": lambda **k: plots.timeline(make_job(), **k),
    "speedup": lambda **k: plots.speedup(make_sweep({1: [0.2], 2: [0.1]}), **k),
    "alive": lambda **k: plots.alive(MOMENTS, "train: layers", make_job().where, **k),
}


@pytest.mark.parametrize("name", DRAW)
def test_axes_in_axes_out(name):
    figure, ax = plt.subplots()
    assert DRAW[name](ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    new = DRAW[name]()
    assert new is not ax and len(plt.get_fignums()) == 2


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_says_where_it_was_measured_and_fits_on_its_paper(name):
    ax = DRAW[name]()
    assert "2 ranks, gloo on CPU (2 cores, a processor)" in texts(ax)
    assert ax.get_title(loc="left").startswith("train: ")
    assert any(part.get_xlabel() for part in (ax, *ax.child_axes))
    ax.figure.draw_without_rendering()
    paper, drawn = ax.figure.bbox, ax.figure.get_tightbbox().transformed(ax.figure.dpi_scale_trans)
    assert drawn.x0 >= paper.x0 and drawn.x1 <= paper.x1 and drawn.y0 >= paper.y0 and drawn.y1 <= paper.y1


@pytest.mark.parametrize("name", DRAW)
def test_figures_are_light_with_dark_ink_in_a_dark_setting_too(name):
    with plt.style.context("dark_background"):
        _, given = plt.subplots()
        for ax in (DRAW[name](), DRAW[name](ax=given)):
            assert {to_hex(part.get_facecolor()) for part in (ax.figure, ax, *ax.child_axes)} == {"#ffffff"}
            words = [text for text in ax.findobj(Text) if text.get_text() not in ("", "F0", "B12", "load 3")]
            assert len(words) > 8
            assert all(sum(matplotlib.colors.to_rgb(text.get_color())) < 1.5 for text in words)


# -- what is absent, and what a learner changes


def test_a_changed_table_changes_no_figure():
    job = make_job()
    before = [
        bars(plots.communication(job), "all_reduce"),
        bars(plots.memory(job), "params"),
        pieces(plots.timeline(job), "forward"),
        repr(job),
    ]
    for name, column in (
        ("comm", "payload_bytes"),
        ("comm", "algorithm_bytes"),
        ("memory", "bytes"),
        ("timeline", "start_s"),
        ("steps", "seconds"),
    ):
        table = getattr(job, name)
        table[column] = 0
        table.loc[len(table)] = table.loc[0]
    assert (job.comm["payload_bytes"] > 0).all() and len(job.steps) == 8
    assert before == [
        bars(plots.communication(job), "all_reduce"),
        bars(plots.memory(job), "params"),
        pieces(plots.timeline(job), "forward"),
        repr(job),
    ]


def test_figures_say_what_could_not_be_measured():
    absent = {
        "collectives": "a call could not be looked into",
        "activations": "torch.func keeps them",
        "timeline": "another profiler ran in the traced step",
    }
    job = without(make_job(absent=absent), "comm", "timeline")
    assert "not measured: a call could not be looked into" in texts(plots.communication(job))
    assert "activations are not drawn: torch.func keeps them" in " ".join(texts(plots.memory(job)).split())
    with pytest.raises(ValueError, match="train has no timeline: another profiler ran in the traced step"):
        plots.timeline(job)
    with pytest.raises(ValueError, match="train could not count its memory: torch.func keeps them"):
        plots.memory(without(job, "memory"))


# -- communication


def test_communication_stacks_the_ledgers_bytes():
    ax = plots.communication(make_job())
    # payload of ranks 0 and 1, then algorithm
    assert bars(ax, "all_reduce") == [1_000_000, 1_000_000, 750_000, 750_000]
    assert bars(ax, "all_gather") == [500_000, 500_000, 375_000, 375_000]
    # median over traced and timed steps
    assert bars(ax, "wire") == [1_500_000, 3_000_000]
    bottoms = [patch.get_y() for c in ax.containers if c.get_label().startswith("all_gather") for patch in c]
    assert bottoms == [1_000_000, 1_000_000, 750_000, 750_000]
    assert "all_reduce, 2 calls" in texts(ax) and "all_gather, 1 call" in texts(ax)
    assert ax.get_ylabel() == "MB per step" and ax.yaxis.get_major_formatter()(1_500_000, 0) == "1.5"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1"] * 3
    assert {
        to_hex(p.get_facecolor()).upper()
        for c in ax.containers
        if c.get_label().startswith("all_reduce")
        for p in c
    } == {plots.COLORS["all_reduce"]}


@pytest.mark.parametrize("theory, levels", [(1_125_000, [1_125_000] * 4), ([1e6, 2e6], [1e6, 2e6] * 2)])
def test_communication_theory_lies_over_algorithm_and_wire(theory, levels):
    ax = plots.communication(make_job(), theory)
    lines = [collection for collection in ax.collections if isinstance(collection, LineCollection)]
    assert [segment[0][1] for line in lines for segment in line.get_segments()] == levels
    # algorithm, wire
    drawn = [p for c in ax.containers for p in c if c.get_label().startswith(("all_gather", "wire"))][2:]
    for segment, bar in zip((s for line in lines for s in line.get_segments()), drawn, strict=True):
        assert segment[0][0] < bar.get_x() and segment[1][0] > bar.get_x() + bar.get_width()
    assert f"{(1.5e6 + 3e6) / sum(levels[:2]):.2f} \u00d7 theory" in texts(ax)
    # dashed
    assert all(line.get_linestyle()[0][1] is not None for line in lines)


def test_communication_says_what_is_absent_and_why():
    ax = plots.communication(make_job(absent={"wire bytes": "NCCL passes the counters by"}), theory=1e6)
    assert not bars(ax, "wire")
    assert "not measured: NCCL passes the counters by" in texts(ax).replace("\n", " ")


def test_communication_without_any_collective():
    ax = plots.communication(without(make_job(1), "comm"))
    assert "this step asked for no collective" in texts(ax) and bars(ax, "wire") == [1_500_000]


# -- memory


def test_memory_stacks_categories_and_prints_totals():
    ax = plots.memory(make_job())
    assert bars(ax, "params") == bars(ax, "grads") == [4000, 4000]
    assert bars(ax, "optimizer_states") == [8000, 8001] and bars(ax, "activations") == [500, 500]
    # none there, so none in the legend
    assert not bars(ax, "buffers")
    tops = {c.get_label(): c[0].get_y() + c[0].get_height() for c in ax.containers}
    assert tops == {"params": 4000, "grads": 8000, "optimizer_states": 16000, "activations": 16500}
    assert texts(ax).count("16.5 KB") == 2 and ax.get_ylabel() == "memory (KB)"
    # it does not ruin the scale
    note = "not drawn: at its peak the whole process had grown by 30.0 MB"
    assert note in texts(ax) and ax.get_xlabel() == "rank" and ax.get_ylim()[1] < 20_000


@pytest.mark.parametrize(
    "theory",
    [
        {"grads": 3000, "params": 4000, "optimizer_states": 3000},
        [{"params": 4000, "grads": 3000, "optimizer_states": 3000}] * 2,
    ],
)
def test_memory_theory_is_an_outline(theory):
    ax = plots.memory(make_job(), theory)
    outlines = next(c for c in ax.containers if c.get_label().startswith("theory"))
    assert [(p.get_y(), p.get_height(), p.get_fill()) for p in outlines] == [(0, 10_000, False)] * 2
    levels = [s[0][1] for c in ax.collections for s in c.get_segments()]
    # params below grads, however they were given
    assert levels == [4000, 4000, 7000, 7000]
    assert f"measured: {32001 / 20000:.2f} \u00d7 theory" in texts(ax)


def test_memory_of_two_jobs_beside_each_other_keeps_the_notes_apart():
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", width_ratios=(2, 3))
    for ax in axes:
        plots.memory(make_job(), ax=ax)
    axes[0].get_legend().remove()
    figure.canvas.draw()
    notes = [text for ax in axes for text in ax.texts if text.get_text().startswith("not drawn")]
    left, right = (note.get_window_extent() for note in notes)
    assert left.x0 >= 0 and left.x1 + 20 < right.x0


def test_memory_draws_a_peak_that_is_near():
    job = make_job()
    rows = [{**row, "bytes": 20_000} if row["category"] == "peak" else row for row in job.records["memory"]]
    ax = plots.memory(replace(job, records={**job.records, "memory": rows}))
    assert [s[0][1] for c in ax.collections for s in c.get_segments()] == [20_000, 20_000] and ax.get_ylim()[
        1
    ] > 20_000
    assert "\npeak" in texts(ax)


# -- timeline


def test_timeline_has_every_piece_at_its_place_in_ms():
    ax = plots.timeline(make_job())
    assert pieces(ax, "forward") == [(0, 0, 10), (0, 10, 10), (1, 0, 10), (1, 10, 10)]  # F0 is a forward
    assert pieces(ax, "backward") == [(0, 15, 10), (1, 15, 10)]
    assert pieces(ax, "load") == [(0, 30, 5), (1, 30, 5)]
    assert pieces(ax, "all_reduce") == [(0, 40, 10), (1, 40, 10)]
    height = {c.get_label(): c[0].get_height() for c in ax.containers}
    assert height["all_reduce"] < height["forward"] == height["load"]
    assert ax.get_xlim() == (0, 50) and "ms" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert low > high  # rank 0 on top
    # 0 to 25 ms (F0 and B12 overlap) and 30 to 35 ms, of 50 ms
    lanes = [[f"rank {rank} computes, 60%", "communicates"] for rank in (0, 1)]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == sum(lanes, [])


def test_timeline_colours_a_pipelines_spans_by_their_kind_and_no_others():
    job = make_job(ranks=1)
    spans = [
        {"rank": 0, "kind": "span", "name": name, "start_s": i / 100, "seconds": 0.01}
        for i, name in enumerate(("F0", "F3@5", "B1@5", "F0@"))
    ]
    ax = plots.timeline(replace(job, records={**job.records, "timeline": spans}))
    assert [left for _, left, _ in pieces(ax, "forward")] == [0, 10]
    assert [left for _, left, _ in pieces(ax, "backward")] == [20]
    assert len(pieces(ax, "F0@")) == 1


def test_timeline_says_why_there_is_no_communication():
    job = make_job(absent={"collective times": "the call says nothing of the transfer"})
    assert "communication is not drawn: the call says nothing" in texts(plots.timeline(job)).replace(
        "\n", " "
    )


def make_pipeline(chunks: int = 1, forward_s: float = 0.02, sends: int | None = None) -> Job:
    """Two ranks, two micro-batches through `2 * chunks` stages; each rank sends as many messages as it makes,
    or `sends`.
    """
    job, stages = make_job(), 2 * chunks
    spans, made = [], [0, 0]
    for number, op in enumerate("FB"):
        for stage in range(stages) if op == "F" else reversed(range(stages)):
            for k in range(2):
                at = ((number * stages + (stage if op == "F" else stages - 1 - stage)) * 2 + k) * 0.1
                name = f"{op}{k}" + (f"@{stage}" if chunks > 1 else "")
                row = {"rank": stage % 2, "kind": "span", "name": name, "start_s": at, "seconds": forward_s}
                spans.append(row)
                made[stage % 2] += 0 <= stage + (1 if op == "F" else -1) < stages
    row = {**job.records["comm"][0], "op": "send"}
    comm = [{**row, "rank": rank} for rank in range(2) for _ in range(made[rank] if sends is None else sends)]
    recv = {"rank": 0, "kind": "communication", "name": "recv", "start_s": 0.0, "seconds": 0.4}
    return replace(job, records={**job.records, "timeline": [*spans, recv], "comm": comm})


def arrows(ax) -> list[tuple]:
    """(x, rank) -> (x, rank) of a timeline's messages, in ms."""
    lines = [line for c in ax.collections if c.get_label() == "message" for line in c.get_segments()]
    return [tuple((round(float(x)), round(float(y))) for x, y in line) for line in lines]


def test_timeline_joins_the_blocks_of_a_pipeline_by_their_messages_in_place_of_lanes():
    ax = plots.timeline(make_pipeline())
    # F0 and F1 go down when they end, B0 and B1 come back up
    down, up = [((20, 0), (200, 1)), ((120, 0), (300, 1))], [((420, 1), (600, 0)), ((520, 1), (700, 0))]
    assert sorted(arrows(ax)) == sorted(down + up)
    assert not pieces(ax, "recv") and "communicates" not in texts(ax)


def test_timeline_keeps_its_lanes_where_messages_are_not_those_of_the_blocks():
    ax = plots.timeline(make_pipeline(sends=3))
    assert not arrows(ax) and pieces(ax, "recv")


def test_timeline_draws_the_second_stage_of_a_rank_paler():
    ax = plots.timeline(make_pipeline(chunks=2))
    looks = {c.get_label(): c[0].get_facecolor()[:3] for c in ax.containers}
    for op in ("forward", "backward"):
        assert sum(looks[f"{op}, stage 2 of a rank"]) > sum(looks[op]) + 0.3
    assert len(arrows(ax)) == 2 * 2 * 3, "also from the last rank back to the first"


def test_timeline_letters_all_blocks_of_a_kind_or_none():
    def letters(job):
        return [text.get_text() for text in plots.timeline(job).texts if text.get_text()[0] in "FB01"]

    assert sorted(letters(make_pipeline(forward_s=0.09))) == sorted(["F0", "F1", "B0", "B1"] * 2)
    assert sorted(letters(make_pipeline(forward_s=0.02))) == ["0", "0", "0", "0", "1", "1", "1", "1"]
    assert plots.timeline(make_pipeline(), until_s=2.0).get_xlim() == (0, 2000)
    assert plots.timeline(make_pipeline(), until_s=0.1).get_xlim() == (0, pytest.approx(720))
    job = make_pipeline(forward_s=0.09)
    job.records["timeline"][0]["seconds"] = 0.001  # a forward that is too short for any letter
    assert sorted(letters(job)) == sorted(["B0", "B1"] * 2)


# -- speed-up


def test_speedup_shows_every_job_and_the_median():
    # weak scaling: 8 samples on each rank
    sweep = make_sweep({1: [0.4, 0.4, 0.4], 2: [0.4, 0.5, 0.8], 4: [0.4, 0.4, 0.2]})
    ax = plots.speedup(sweep, {"half": lambda n: n / 2}, scaling="weak")
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["one job each"].get_ydata()) == list(sweep.table["speedup"]) and len(sweep.table) == 9
    assert list(lines["median (efficiency in %)"].get_xdata()) == [1, 2, 4]
    assert lines["median (efficiency in %)"].get_ydata() == pytest.approx([1, 1.6, 4])
    assert list(lines["ideal: n ranks, n times"].get_ydata()) == [1, 2, 3, 4]
    assert list(lines["half (modelled)"].get_ydata()) == [0.5, 1, 1.5, 2]
    assert (
        lines["half (modelled)"].get_linestyle() == "--"
        and lines["median (efficiency in %)"].get_linestyle() == "-"
    )
    assert "1.60 (80%)" in texts(ax) and "4.00 (100%)" in texts(ax)
    assert (
        "weak scaling" in ax.get_title(loc="left")
        and "1, 2, 4 ranks" in texts(ax)
        and "3 repeats" in texts(ax)
    )


def test_speedup_says_how_many_threads_a_rank_computes_with():
    sweep = make_sweep({1: [0.2], 2: [0.1]})
    for job in sweep.jobs:
        job.records["threads"] = [1] * job.ranks
    assert "1 thread each" in texts(plots.speedup(sweep))
    assert "thread" not in texts(plots.speedup(sweep, sleeps=True)) + texts(DRAW["speedup"]())


def test_speedup_does_not_guess_the_kind_of_scaling():
    assert "scaling" not in texts(DRAW["speedup"]())
    with pytest.raises(ValueError, match="'strong', 'weak', None"):
        DRAW["speedup"](scaling="big")


@pytest.mark.parametrize(
    "hardware, device, marked_from",
    [
        ("2 cores, a processor", "cpu", [2]),
        ("1 core, a processor", "cpu", [1]),
        ("3 cores, a processor", "cpu", []),
        ("a processor", "cpu", []),
        ("2 cores, a processor", "cuda", []),
    ],
)
def test_speedup_marks_more_ranks_than_the_jobs_own_machine_has_cores(hardware, device, marked_from):
    ax = plots.speedup(make_sweep({1: [0.1], 3: [0.1]}, hardware=hardware, device=device))
    assert [patch.get_x() for patch in ax.patches] == marked_from
    assert ("more ranks than cores" in texts(ax)) == bool(marked_from)


def test_the_hardware_of_a_job_on_the_cpu_begins_with_its_cores():
    assert re.match(rf"{devices.usable_cores()} cores?, ", devices.cpu_name())


def test_speedup_of_compute_that_sleeps_says_so_and_looks_so():
    sweep = make_sweep({1: [0.1], 3: [0.1]}, hardware="2 cores, a processor")
    asleep, awake = plots.speedup(sweep, sleeps=True), plots.speedup(sweep)
    # sleeping ranks need no core
    assert "compute sleeps" in texts(asleep) and "more ranks than cores" not in texts(asleep)
    assert "compute sleeps" not in texts(awake) and "more ranks than cores" in texts(awake)
    styles = [
        next(line.get_linestyle() for line in ax.lines if line.get_label() == "median (efficiency in %)")
        for ax in (asleep, awake)
    ]
    assert styles == ["-.", "-"]


@pytest.mark.parametrize("ranks", [(2,), (2, 4), (1, 2, 4, 8, 16, 32)])
def test_speedup_of_other_ranges(ranks):
    ax = plots.speedup(make_sweep({n: [0.1, 0.2] for n in ranks}))
    assert [int(tick.get_text()) for tick in ax.get_xticklabels()] == list(ranks)
    assert f"({ranks[0]} ranks count as {ranks[0]})" in ax.get_ylabel() or ranks[0] == 1


# -- which layers are alive

MOMENTS = [("F0", [8, 0]), ("F1", [8, 80]), ("B1", [0, 80])]


def test_alive_has_one_bar_per_layer_that_is_alive_and_the_bytes_of_all_above():
    above, below = plots.alive(MOMENTS, "train", "1 rank").child_axes
    assert list(above.lines[0].get_ydata()) == [8, 88, 80] and above.get_ylabel() == "full parameters (bytes)"
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in below.lines] == [
        ([0], [0]),
        ([1, 2], [1, 1]),
    ], "a dot where a layer works"
    params = [bar for bar in below.patches if to_hex(bar.get_facecolor()).upper() == plots.COLORS["params"]]
    middles = sorted((round(bar.get_x() + 0.45), round(bar.get_y() + 0.42)) for bar in params)
    assert middles == [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert [label.get_text() for label in below.get_xticklabels()] == ["F0", "F1", "B1"]
    assert below.get_ylim() == (1.5, -0.5), "layer 0 is on top"


def test_alive_draws_what_waits_lightly_and_says_so():
    moments = [("F0", [8, 0], [0, 0]), ("B1", [0, 8], [8, 0]), ("B0", [8, 0], [0, 0])]
    above, below = plots.alive(moments, "train", "1 rank").child_axes
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["gathered, waiting"]
    light = [bar for bar in below.patches if bar.get_alpha() and bar.get_alpha() < 1]
    assert [(round(bar.get_x() + bar.get_width() / 2), round(bar.get_y() + 0.42)) for bar in light] == [
        (1, 0)
    ]
    assert plots.alive([moment[:2] for moment in moments], "", "").child_axes[0].get_legend() is None


def test_alive_has_one_scale_for_all_runs_of_a_model():
    few = [("F0", [8, 0]), ("F1", [0, 80]), ("B1", [0, 80])]
    scales = [plots.alive(moments, "", "").child_axes[0].get_ylim() for moments in (MOMENTS, few)]
    assert scales == [(0, pytest.approx(1.1 * 88))] * 2


@pytest.mark.parametrize("moments", [[], "F0", [("F0", 8)], [("F0", [8]), ("F1", [8, 8])], [("F", [8])]])
def test_alive_refuses_what_is_no_list_of_moments(moments):
    with pytest.raises(ValueError, match="^moments"):
        plots.alive(moments, "", "")
    assert not plt.get_fignums()


# -- jobs that cannot be drawn, and jobs from a file


@pytest.mark.parametrize("draw", [plots.communication, plots.memory, plots.timeline])
def test_a_job_without_steps_is_told_to_use_measure_step(draw):
    with pytest.raises(ValueError, match="measure.step"):
        draw(without(make_job(), "steps", "comm", "memory", "timeline"))
    only_warm_up = [row for row in make_job().records["steps"] if row["phase"] == "warm-up"]
    with pytest.raises(ValueError, match="at least two steps"):
        draw(replace(make_job(), records={"steps": only_warm_up}))
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: plots.memory(without(make_job(), "memory")), r"measure.step\(model, optimizer\)"),
        (lambda: plots.timeline(without(make_job(), "timeline")), "empty timeline"),
        (lambda: plots.communication(make_job(), theory=[1, 2, 3]), "each of the 2 ranks"),
        (lambda: plots.memory(make_job(), theory=[{"params": 1}]), "each of the 2 ranks"),
        (lambda: plots.memory(make_job(), theory={"weights": 1}), "unknown category 'weights'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and not plt.get_fignums()


def test_a_job_from_a_file_is_drawn_like_the_job_itself(tmp_path):
    job = make_job()
    job.save(tmp_path / "job.json")
    loaded = Job.load(tmp_path / "job.json")
    assert json.loads((tmp_path / "job.json").read_text())["records"]["steps"]
    for draw in (plots.communication, plots.memory, plots.timeline):
        first, second = draw(job), draw(loaded)
        assert texts(first) == texts(second)
        assert [p.get_height() for c in first.containers for p in c] == [
            p.get_height() for c in second.containers for p in c
        ]


@pytest.mark.parametrize("ranks", [1, 3, 8, 16])
@pytest.mark.parametrize("draw", [plots.communication, plots.memory, plots.timeline])
def test_many_ranks_and_long_names_stay_on_the_paper(draw, ranks):
    ax = draw(
        make_job(ranks, label="a job with a name that nobody could call short, and then some more words")
    )
    ax.figure.draw_without_rendering()
    box = ax.figure.get_tightbbox().transformed(ax.figure.dpi_scale_trans)
    assert box.x0 >= 0 and box.x1 <= ax.figure.bbox.x1 and box.y0 >= 0 and box.y1 <= ax.figure.bbox.y1


@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("draw", [plots.communication, plots.memory, plots.timeline])
def test_ranks_stand_there_with_their_roles(draw, ranks):
    roles = ["serve", *["work"] * (ranks - 1)]
    ax = draw(make_job(ranks, roles=roles))
    ax.figure.draw_without_rendering()
    box = ax.figure.get_tightbbox().transformed(ax.figure.dpi_scale_trans)
    assert box.x0 >= 0 and box.x1 <= ax.figure.bbox.x1 and box.y0 >= 0 and box.y1 <= ax.figure.bbox.y1
    axis = ax.yaxis if draw is plots.timeline else ax.xaxis
    marks = [mark for mark in axis.get_ticklabels() if mark.get_text() != "communicates"]
    words = [mark.get_text().replace("\n", ", ") for mark in marks]
    if draw is plots.timeline:
        assert words == [f"rank {rank}, {role}: computes, 60%" for rank, role in enumerate(roles)]
    else:
        assert set(words) <= {f"{rank}, {role}" for rank, role in enumerate(roles)} and "0, serve" in words
        assert all(
            before.get_window_extent().x1 < after.get_window_extent().x0
            for before, after in zip(marks, marks[1:])
        )


def test_the_styles_never_look_alike_and_every_op_has_a_color():
    assert (
        len(
            {
                str(style["linestyle"])
                for style in (plots.MEASURED, plots.SLEEPS, plots.MODELLED, plots.PUBLISHED)
            }
        )
        == 4
    )
    assert plots.PUBLISHED["markerfacecolor"] == "none"
    assert set(COLLECTIVES) <= set(plots.COLORS)
    ax = plots.panel("Own figure", make_job().where, xlabel="n", ylabel="s")
    for style in (plots.MEASURED, plots.SLEEPS, plots.MODELLED, plots.PUBLISHED):
        ax.plot([1, 2], [1, 2], **style)
