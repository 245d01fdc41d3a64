"""One row per collective: it agrees with torch, and everything that tells of collectives reads it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from course_lib import measure, plots, run, theory
from course_lib.collectives import COLLECTIVES, by_function, of_kind

# Operators of c10d that are no collectives.
OTHERS = {"check_for_nan", "monitored_barrier_"}
NOT_IN_2_11 = {"all_gather_single", "reduce_scatter_single"}


@pytest.mark.parametrize("row", COLLECTIVES.values(), ids=COLLECTIVES)
def test_a_row_agrees_with_torch(row):
    assert row.name in row.functions
    assert all(hasattr(dist, name) or name in NOT_IN_2_11 for name in row.functions)
    for operator, full in row.operators.items():
        arguments = getattr(torch.ops.c10d, operator).default._schema.arguments
        names = [argument.name for argument in arguments]
        assert row.rooted == ("root_rank" in names)
        assert row.kind == ("send" if "dst" in names else "receive" if "recv" in operator else row.kind)
        if operator in row.parts:
            sizes = arguments[row.parts[operator]]
            assert sizes.name.startswith("input") and str(sizes.type) in ("List[int]", "List[Tensor]")
        if full is None:
            continue
        argument = arguments[full]
        kind = str(argument.type)
        assert kind.replace("List[", "").rstrip("]") == "Tensor", operator
        # S is what comes out, or what goes in: the larger of the two
        if row.name in ("all_gather", "scatter"):
            assert argument.name.startswith("output")
        elif row.name in ("reduce_scatter", "all_to_all", "gather"):
            assert argument.name.startswith("input")
        else:
            assert full == 0


def test_every_operator_of_torch_has_its_row():
    there = {
        name.removeprefix("c10d::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("c10d::")
    }
    listed = [operator for row in COLLECTIVES.values() for operator in row.operators]
    assert len(listed) == len(set(listed)) and there - OTHERS == set(listed)


@pytest.mark.parametrize("row", COLLECTIVES.values(), ids=COLLECTIVES)
def test_closed_forms_and_figures_know_every_row(row):
    assert theory.collective_bytes(row.name, 12, 4) == 12 * row.sent(4)
    assert plots.COLORS[row.name] == row.color and row.gloo in COLLECTIVES
    assert row.kind == "send" or row.sent(1) == 0
    if row.busbw is not None:
        assert theory.bandwidth(row.name, 12, 1, 4) == (12, 12 * row.busbw(4))
    if row.ring_steps is not None:
        assert theory.ring_seconds(row.name, 12, 4, 1, 0) == row.ring_steps(4)
    if row.tree_ways is not None:
        assert theory.tree_seconds(row.name, 12, 4, 1, 0) == 2 * row.tree_ways


def test_a_row_is_found_by_its_kind_and_by_its_functions():
    assert of_kind("send", "receive") == {"send", "recv"} and of_kind("meeting") == {"barrier"}
    assert by_function("all_to_all_single") is COLLECTIVES["all_to_all"] and by_function("wait") is None


def test_no_two_collectives_look_alike():
    assert len({row.color for row in COLLECTIVES.values()}) == len(COLLECTIVES)


def test_the_rows_can_be_read_without_torch():
    code = "import sys, course_lib.collectives, course_lib.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Parts of other sizes: what experts send each other.

COUNTS = ((0, 5, 100_000), (70_000, 1, 0), (3, 40_000, 9))  # rows that a rank sends to each


def exchange(columns: int):
    rank, dtype = dist.get_rank(), torch.float64
    out_rows, in_rows = list(COUNTS[rank]), [counts[rank] for counts in COUNTS]
    given = torch.full((sum(out_rows), columns), float(rank), dtype=dtype)
    taken = torch.empty(sum(in_rows), columns, dtype=dtype)
    for _ in range(3):
        with measure.step():
            dist.all_to_all_single(taken, given, in_rows, out_rows)
    return taken[:, 0].tolist() == [float(peer) for peer, rows in enumerate(in_rows) for _ in range(rows)]


def test_the_ledger_counts_an_all_to_all_of_parts_with_other_sizes_to_the_byte():
    job = run(exchange, 2, ranks=3)
    assert job.results == [True] * 3
    rows = job.comm.set_index("rank")
    assert rows["op"].tolist() == ["all_to_all"] * 3 and not rows["seconds"].isna().any()
    assert rows["payload_bytes"].tolist() == [16 * sum(counts) for counts in COUNTS]
    sent = [16 * (sum(counts) - counts[rank]) for rank, counts in enumerate(COUNTS)]
    assert rows["algorithm_bytes"].tolist() == sent
    if "wire bytes" not in job.absent:
        wire = job.steps[job.steps["step"] == 2].set_index("rank")["wire_bytes"]
        assert all(0 <= wire[rank] - sent[rank] < 1000 for rank in range(3)), wire.tolist()


def test_a_rank_that_brings_nothing_sends_nothing():
    def to_rank_0():
        rank = dist.get_rank()
        given, taken = torch.ones(3 * rank), torch.empty(3 - 3 * rank)
        for _ in range(2):
            with measure.step():
                dist.all_to_all_single(taken, given, [0, taken.numel()], [given.numel(), 0])

    job = run(to_rank_0, ranks=2)
    assert job.comm.set_index("rank")["algorithm_bytes"].tolist() == [0.0, 12.0]


# One more row: nothing else is told of it.
NEW = """
    from course_lib.collectives import COLLECTIVES, Collective

    COLLECTIVES["roll_call"] = Collective(
        name="roll_call",
        kind="sum",
        rooted=True,
        operators={"monitored_barrier_": 0},
        functions=("roll_call", "roll_call_object"),
        sent=lambda n: n - 1,
        busbw=lambda n: 2,
        ring_steps=lambda n: n,
        gloo="roll_call",
        sizes_may_differ=True,
        color="#123456",
    )
    COLLECTIVES["push"] = Collective(
        name="push",
        kind="send",
        operators={},
        functions=("push", "push_many"),
        sent=lambda n: 1,
        busbw=lambda n: 1,
        gloo="send",
        gloo_sent=lambda payload_bytes, n: payload_bytes + 1,
        color="#654321",
    )
    COLLECTIVES["muster"] = Collective(
        name="muster",
        kind="meeting",
        operators={},
        functions=("muster",),
        sent=lambda n: 0,
        busbw=None,
        gloo="muster",
        color="#ABCDEF",
    )
"""
THEORY = """
    from course_lib import theory

    assert theory.collective_bytes("roll_call", 10, 4) == theory.gloo_bytes("roll_call", 10, 4) == 30
    assert theory.collective_bytes("push", 10, 4) == 10 and theory.gloo_bytes("push", 10, 4) == 11
    assert theory.bandwidth("roll_call", 10, 1, 4) == (10, 20)
    assert theory.ring_seconds("roll_call", 10, 4, 1, 0) == 4
"""
TRACING = """
    import torch.distributed as dist

    from course_lib.measure import calls

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with calls.listen() as heard:
        dist.monitored_barrier()
    assert [(call["op"], call["algorithm_bytes"]) for call in heard] == [("roll_call", 0.0)], heard
"""
FIGURES_AND_READINGS = """
    import saved_job
    from matplotlib.colors import to_hex

    from course_lib import Job, calls, plots
    from course_lib.check.counted import MESSAGE_HEADER_BYTES, header_bytes

    old = saved_job.job()
    rows = old.records
    for row in rows["comm"]:
        row["op"] = {"all_reduce": "roll_call", "broadcast": "push", "barrier": "muster"}[row["op"]]
    for row in rows["timeline"]:
        row["name"] = "roll_call" if row["kind"] == "communication" else row["name"]
    job = saved_job.job()
    job.records.update(rows)

    assert calls(job).columns.tolist() == ["roll_call", "push"], "a meeting carries no data"
    assert header_bytes(job)[1] == MESSAGE_HEADER_BYTES

    def colors(ax):
        return {
            label.split(",")[0]: to_hex(container.patches[0].get_facecolor()).upper()
            for container in ax.containers
            if not (label := container.get_label()).startswith("_")
        }

    drawn = colors(plots.communication(job))
    assert drawn["roll_call"] == "#123456" and drawn["push"] == "#654321", drawn
    assert colors(plots.timeline(job))["roll_call"] == "#123456"
"""
HANGS = """
    import sys, torch

    from course_lib.ranks import diagnose, launch, where

    # functions of these names, in torch's file
    told = {}
    for function in ("roll_call_object", "push_many", "muster"):
        text = f"def {function}(tensor, dst): return where._call(sys._getframe())"
        exec(compile(text, "torch/distributed/distributed_c10d.py", "exec"))
        told[function] = locals()[function](torch.zeros(2), 1)
    tensor = "float32[2]"
    assert told["roll_call_object"] == {"op": "roll_call_object", "tensor": tensor, "peer": None}, told
    assert told["push_many"] == {"op": "push_many", "tensor": tensor, "peer": 1}, told

    def waits(*functions):
        states = [
            launch.RankState(rank, phase="running", where={"call": told[function]}, still_s=60)
            for rank, function in enumerate(functions)
        ]
        return diagnose.standstill(states)

    both = waits("push_many", "push_many")
    assert "rank 0 in push_many to rank 1 of float32[2]" in both and "A send may wait" in both, both
    assert "rank 1 in muster. A recv" in waits("roll_call_object", "muster"), "a meeting has no tensor"

    call = {"op": "roll_call", "dtypes": ["float32"], "group": "0,1", "name": "0", "seq": 1, "done": True}
    states = [
        launch.RankState(rank, collectives=[call | {"sizes": [[rank]], "site": ("a.py", rank, "f")}])
        for rank in (0, 1)
    ]
    assert diagnose.disagreement(states) is None
    assert "called the same roll_call" in diagnose.suspicious_sites(states)
"""


@pytest.mark.parametrize(
    "reader", [THEORY, TRACING, FIGURES_AND_READINGS, HANGS], ids=["theory", "tracing", "figures", "hangs"]
)
def test_a_new_collective_is_one_row(reader):
    code = textwrap.dedent(NEW) + textwrap.dedent(reader)
    path = os.pathsep.join([str(Path(__file__).parent / "record"), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert ended.returncode == 0, ended.stderr


def with_a_new_row():
    from course_lib.collectives import COLLECTIVES

    row = COLLECTIVES["barrier"]
    new = {name: getattr(row, name) for name in row.__dataclass_fields__}
    new |= {"name": "roll_call", "operators": {"monitored_barrier_": None}, "gloo": "monitored_barrier"}
    COLLECTIVES["roll_call"] = type(row)(**new)
    for _ in range(2):
        with measure.step():
            dist.monitored_barrier()


def test_the_ledger_has_a_new_row_too():
    job = run(with_a_new_row, ranks=2)
    assert job.comm["op"].tolist() == ["roll_call"] * 2 and job.comm["group"].tolist() == ["0,1"] * 2
