"""What trials share on the ranks, and the list by which checks load when they are used."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import on_rank_workers
import pytest
import torch

from course_lib import check, run
from course_lib.check import Judge, on_rank


def test_the_list_of_checks_is_what_the_modules_offer():
    for module, names in (check._CHECKS | check._TOOLS).items():
        assert set(importlib.import_module(f"course_lib.check.{module}").__all__) == set(names)


def test_a_rank_that_needs_on_rank_does_not_load_pandas():
    """Nor does one that is asked for a function of the tests' own workers and answers."""
    names = ["course_lib.check.on_rank"]
    for pattern in ("*workers.py", "answers_*.py"):
        names += sorted(path.stem for path in Path(__file__).parents[1].rglob(pattern))
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{'pandas', 'matplotlib', 'pytest'} & set(sys.modules))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and told.stdout == "\n" and len(names) > 18, (names, told)


def test_every_try_has_another_seed():
    assert len({Judge("x").seed for _ in range(5)}) == 5


def test_private_seeds_differ_and_a_problem_of_one_rank_is_heard_on_all():
    (seeds, problem, none), *others = run(on_rank_workers.trial, ranks=3).results
    assert len(set(seeds)) == 3 and problem == "on rank 1 it is wrong" and none == ""
    assert all(other == (seeds, problem, none) for other in others)


def test_distance():
    wanted = torch.tensor([3.0, 4.0])
    assert on_rank.apart(wanted, wanted) == 0 and abs(on_rank.apart(wanted * 1.1, wanted) - 0.1) < 1e-6
    assert on_rank.apart(None, wanted) == on_rank.apart(wanted[:1], wanted) == 1
    assert on_rank.apart(wanted * float("nan"), wanted) == float("inf")


def test_calls_are_seen_within_the_block_and_nowhere_else():
    for rank, (rows, again) in enumerate(run(on_rank_workers.calls_of_every_kind, ranks=2).results):
        assert [(row["op"], row["dtype"], row["payload_bytes"]) for row in rows] == [
            ("all_reduce", "float32", 12),
            ("recv" if rank else "send", "float64", 16),
        ]
        assert again == ["barrier"]


def test_calls_of_all_threads_are_seen_and_each_may_wait_by_its_own_row():
    assert run(on_rank_workers.calls_in_threads, ranks=1).results == [(["all_reduce"] * 2, [4, 8])]


def test_who_does_not_wait_for_a_late_rank_has_nothing_however_slow_it_is():
    assert run(on_rank_workers.one_is_late, ranks=2).results[1] == [0, 1, 0, 1]


def test_a_late_rank_comes_when_the_others_wait_for_it():
    for _ in range(2):  # a job knows nothing of who came back in another
        (late, _), (_, waited) = run(on_rank_workers.all_wait, ranks=2).results
        assert on_rank.SOON_LOOKS * on_rank.LOOK_EVERY_S <= waited - late < 50


@pytest.mark.parametrize(
    "other, comes",
    [
        ("computes, then does it", True),
        ("sleeps, then does it", True),
        ("a thread of it computes", True),
        ("waits for rank 0 in the same way", False),
        ("does nothing", False),
    ],
)
def test_whether_others_can_still_go_on_is_told_by_what_they_do_and_not_by_a_clock(other, comes):
    assert run(on_rank_workers.waits_for_another, other, ranks=2).results[0] == (comes, False)


def test_memory_outside_of_torch_is_seen_and_torchs_own_is_not():
    # not here: Python would go on counting, to the end of this process
    assert 1_100_000 <= run(on_rank_workers.holds_bytes_arrays_and_tensors, ranks=1).results[0] < 1_300_000


def test_memory_is_looked_at_again_and_again_while_threads_of_gloo_allocate():
    assert run(on_rank_workers.looks_while_gloo_calls_back, 2000, ranks=3).results == [6000] * 3


def test_a_rank_that_is_asked_where_it_is_holds_little_for_that():
    noise, sources = run(on_rank_workers.asked_where_it_is, ranks=1).results[0]
    assert noise < 300_000 and sources == 0


def test_new_tensors_are_counted_and_views_of_given_ones_are_not():
    given = torch.ones(1000)
    with on_rank.NewTensors() as new:
        given.view(10, 100).t().add_(1)
        given.detach()[:5].mul_(2)
        assert new.peak_bytes == 0
        for _ in range(3):
            view = (given + 1)[:10]  # one after the other; a view keeps the whole
        # the old one goes when the new one is there
        assert view is not None and new.peak_bytes == 4000 + 4000
        del view
        given.clone()
    assert new.peak_bytes == 8000


def test_a_factor_is_told_where_the_direction_is_the_same():
    wanted = torch.tensor([3.0, 4.0])
    assert abs(on_rank.times(3 * wanted, wanted, 1e-3) - 3) < 1e-6
    assert (
        on_rank.times(torch.tensor([4.0, 3.0]), wanted, 1e-3) is None
        and on_rank.times(wanted * float("nan"), wanted, 1e-3) is None
    )


def test_what_was_rounded_is_told_by_its_error():
    values = torch.rand(1000, dtype=torch.float64)
    for dtype, name in ((torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        assert name in on_rank.rounding(on_rank.apart(values.to(dtype).double(), values))
    assert on_rank.rounding(0.5) == "" == on_rank.rounding(1e-15) == on_rank.rounding(float("inf"))
