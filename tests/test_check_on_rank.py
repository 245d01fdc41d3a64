"""What trials share on the ranks, and the list by which checks load when they are used."""
import importlib
import subprocess
import sys

import numpy
import torch

from course_lib import check, run
from course_lib.check import Judge, on_rank


def test_the_list_of_checks_is_what_the_modules_offer():
    for module, names in check._CHECKS.items():
        assert set(importlib.import_module(f"course_lib.check.{module}").__all__) == set(names)


def test_a_rank_that_needs_on_rank_does_not_load_pandas():
    code = "import sys, course_lib.check.on_rank; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_try_has_another_seed():
    assert len({Judge("x").seed for _ in range(5)}) == 5


def trial():
    seeds = on_rank.everyone(on_rank.private_seed())
    return seeds, on_rank.first_problem("" if torch.distributed.get_rank() != 1 else "it is wrong"), on_rank.first_problem("")


def test_private_seeds_differ_and_a_problem_of_one_rank_is_heard_on_all():
    (seeds, problem, none), *others = run(trial, ranks=3).results
    assert len(set(seeds)) == 3 and problem == "on rank 1 it is wrong" and none == ""
    assert all(other == (seeds, problem, none) for other in others)


def test_distance():
    wanted = torch.tensor([3.0, 4.0])
    assert on_rank.apart(wanted, wanted) == 0 and abs(on_rank.apart(wanted * 1.1, wanted) - 0.1) < 1e-6
    assert on_rank.apart(None, wanted) == on_rank.apart(wanted[:1], wanted) == 1
    assert on_rank.apart(wanted * float("nan"), wanted) == float("inf")


def test_memory_outside_of_torch_is_seen_and_torchs_own_is_not():
    with on_rank.Unseen() as unseen:
        kept, copy, tensor = bytearray(300_000), numpy.ones(100_000), torch.ones(1_000_000)
        assert 1_100_000 <= unseen.bytes() < 1_200_000
        del kept, copy
        assert unseen.bytes() < 100_000
    assert tensor.sum() == 1_000_000
