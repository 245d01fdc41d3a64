"""One row per collective: it agrees with torch, and everything that tells of collectives reads it."""

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist

from course_lib import plots, run, theory
from course_lib.collectives import COLLECTIVES

# Operators of c10d that are no collectives.
OTHERS = {"check_for_nan", "monitored_barrier_"}
NOT_IN_2_11 = {"all_gather_single", "reduce_scatter_single"}


@pytest.mark.parametrize("row", COLLECTIVES.values(), ids=COLLECTIVES)
def test_a_row_agrees_with_torch(row):
    assert row.name in row.functions
    assert all(hasattr(dist, name) or name in NOT_IN_2_11 for name in row.functions)
    for operator, full in row.operators.items():
        if full is None:
            continue
        argument = getattr(torch.ops.c10d, operator).default._schema.arguments[full]
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
    assert row.kind == "message" or row.sent(1) == 0
    if row.busbw is not None:
        assert theory.bandwidth(row.name, 12, 1, 4) == (12, 12 * row.busbw(4))
    if row.ring_steps is not None:
        assert theory.ring_seconds(row.name, 12, 4, 1, 0) == row.ring_steps(4)


def test_no_two_collectives_look_alike():
    assert len({row.color for row in COLLECTIVES.values()}) == len(COLLECTIVES)


def test_the_rows_can_be_read_without_torch():
    code = "import sys, course_lib.collectives, course_lib.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# One more row: nothing else is told of it.
NEW = """
    from course_lib.collectives import COLLECTIVES, Collective

    COLLECTIVES["roll_call"] = Collective(
        name="roll_call",
        kind="sum",
        operators={"monitored_barrier_": 0},
        functions=("roll_call",),
        sent=lambda n: n - 1,
        busbw=lambda n: 2,
        ring_steps=lambda n: n,
        gloo="roll_call",
        sizes_may_differ=True,
        color="#123456",
    )
"""
READERS = """
    import sys, torch
    import torch.distributed as dist

    from course_lib import plots, theory
    from course_lib.measure import calls
    from course_lib.ranks import diagnose, launch, where

    assert theory.collective_bytes("roll_call", 10, 4) == theory.gloo_bytes("roll_call", 10, 4) == 30
    assert theory.bandwidth("roll_call", 10, 1, 4) == (10, 20)
    assert theory.ring_seconds("roll_call", 10, 4, 1, 0) == 4
    assert plots.COLORS["roll_call"] == "#123456"

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with calls.listen() as heard:
        dist.monitored_barrier()
    assert [(call["op"], call["algorithm_bytes"]) for call in heard] == [("roll_call", 0.0)], heard

    # a function of this name, in torch's file
    wait = compile("def roll_call(tensor): return here()", "torch/distributed/distributed_c10d.py", "exec")
    here = lambda: where._call(sys._getframe())
    exec(wait)
    assert roll_call(torch.zeros(2)) == {"op": "roll_call", "tensor": "float32[2]", "peer": None}

    call = {"op": "roll_call", "dtypes": ["float32"], "group": "0,1", "name": "0", "seq": 1, "done": True}
    states = [
        launch.RankState(rank, collectives=[call | {"sizes": [[rank]], "site": ("a.py", rank, "f")}])
        for rank in (0, 1)
    ]
    assert diagnose.disagreement(states) is None
    assert "called the same roll_call" in diagnose.suspicious_sites(states)
"""


def test_a_new_collective_is_one_row():
    code = textwrap.dedent(NEW) + textwrap.dedent(READERS)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def with_a_new_row():
    from course_lib import measure
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
