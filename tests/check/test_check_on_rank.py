"""What trials share on the ranks, and the list by which checks load when they are used."""

import importlib
import subprocess
import sys
import threading
import time

import numpy
import pytest
import torch

from course_lib import check, measure, run
from course_lib.check import Judge, on_rank


def test_the_list_of_checks_is_what_the_modules_offer():
    for module, names in (check._CHECKS | check._TOOLS).items():
        assert set(importlib.import_module(f"course_lib.check.{module}").__all__) == set(names)


def test_a_rank_that_needs_on_rank_does_not_load_pandas():
    code = "import sys, course_lib.check.on_rank; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_try_has_another_seed():
    assert len({Judge("x").seed for _ in range(5)}) == 5


def trial():
    seeds = on_rank.everyone(on_rank.private_seed())
    return (
        seeds,
        on_rank.first_problem("" if torch.distributed.get_rank() != 1 else "it is wrong"),
        on_rank.first_problem(""),
    )


def test_private_seeds_differ_and_a_problem_of_one_rank_is_heard_on_all():
    (seeds, problem, none), *others = run(trial, ranks=3).results
    assert len(set(seeds)) == 3 and problem == "on rank 1 it is wrong" and none == ""
    assert all(other == (seeds, problem, none) for other in others)


def test_distance():
    wanted = torch.tensor([3.0, 4.0])
    assert on_rank.apart(wanted, wanted) == 0 and abs(on_rank.apart(wanted * 1.1, wanted) - 0.1) < 1e-6
    assert on_rank.apart(None, wanted) == on_rank.apart(wanted[:1], wanted) == 1
    assert on_rank.apart(wanted * float("nan"), wanted) == float("inf")


def calls_of_every_kind():
    rank, heard = torch.distributed.get_rank(), []
    with on_rank.Calls(lambda row: heard.append(row["op"])) as calls:
        torch.distributed.all_reduce(torch.zeros(3))
        (
            torch.distributed.send(torch.zeros(2, dtype=torch.float64), 1)
            if rank == 0
            else torch.distributed.recv(torch.zeros(2, dtype=torch.float64), 0)
        )
    torch.distributed.all_reduce(torch.zeros(1))
    assert heard == [call["op"] for call in calls.rows]
    # a ledger that has no trace in this step is no hindrance
    with measure.step(), on_rank.Calls() as again:
        torch.distributed.barrier()
    return calls.rows, [call["op"] for call in again.rows]


def test_calls_are_seen_within_the_block_and_nowhere_else():
    for rank, (rows, again) in enumerate(run(calls_of_every_kind, ranks=2).results):
        assert [(row["op"], row["dtype"], row["payload_bytes"]) for row in rows] == [
            ("all_reduce", "float32", 12),
            ("recv" if rank else "send", "float64", 16),
        ]
        assert again == ["barrier"]


def calls_in_threads():
    import threading

    both, told = threading.Barrier(2), []

    def before(row):
        both.wait(60)  # both calls are under way
        told.append(row["payload_bytes"])

    with on_rank.Calls(before) as calls:
        groups = [
            torch.distributed.new_group([torch.distributed.get_rank()], use_local_synchronization=True)
            for _ in range(2)
        ]
        threads = [
            threading.Thread(
                target=torch.distributed.all_reduce, args=(torch.ones(1 + number),), kwargs={"group": group}
            )
            for number, group in enumerate(groups)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [row["op"] for row in calls.rows], sorted(told)


def test_calls_of_all_threads_are_seen_and_each_may_wait_by_its_own_row():
    assert run(calls_in_threads, ranks=1).results == [(["all_reduce"] * 2, [4, 8])]


def one_is_late():
    rank, tensor, found = torch.distributed.get_rank(), torch.zeros(1), []
    on_rank.FIRST_S = 60.0  # the late one leaves long before, because it is told
    for how in ("by a message", "by itself"):
        begin = time.monotonic()
        if rank == 0 and how == "by a message":
            with on_rank.Calls(on_rank.late(how)):
                torch.distributed.send(torch.ones(1), 1)
        elif rank == 0:
            on_rank.come_late(how, 60.0)
            torch.distributed.send(torch.ones(1), 1)
        else:
            work = torch.distributed.irecv(tensor.zero_(), 0)
            spin(1.0)  # slower than any fixed pause
            found.append(tensor.item())
            on_rank.is_back(how)
            work.wait()
            found.append(tensor.item())
        assert time.monotonic() - begin < 50
    return found


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_who_does_not_wait_for_a_late_rank_has_nothing_however_slow_it_is():
    assert run(one_is_late, ranks=2).results[1] == [0, 1, 0, 1]


def all_wait():
    begin = time.monotonic()  # one clock for all processes of a machine
    if torch.distributed.get_rank() == 0:
        on_rank.come_late("all wait", 60.0)
    torch.distributed.barrier()
    end = time.monotonic()
    on_rank.is_back("all wait")
    return begin, end


def test_a_late_rank_comes_when_the_others_wait_for_it():
    for _ in range(2):  # a job knows nothing of who came back in another
        (late, _), (_, waited) = run(all_wait, ranks=2).results
        assert on_rank.SOON_LOOKS * on_rank.LOOK_EVERY_S <= waited - late < 50


def waits_for_another(other: str) -> tuple[bool, bool]:
    """Rank 0 waits for what rank 1 does: whether it came, and whether the time was what ended it."""
    begin, store = time.monotonic(), torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        came = on_rank.wait_until(lambda: store.check(["came"]), 60.0, looks=50)
        store.set("seen", "")
    else:
        if other == "computes, then does it":
            spin(2.0)  # longer than 50 looks take
            store.set("came", "")
        elif other == "sleeps, then does it":
            time.sleep(1.0)
            store.set("came", "")
        elif other == "a thread of it computes":
            thread = threading.Thread(target=lambda: (spin(2.0), store.set("came", "")))
            thread.start()
            thread.join()
        elif other == "waits for rank 0 in the same way":
            assert not on_rank.wait_until(lambda: False, 60.0, looks=50)
        came = on_rank.wait_until(lambda: store.check(["seen"]), 60.0, looks=10_000)
    return came, time.monotonic() - begin > 50


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
    assert run(waits_for_another, other, ranks=2).results[0] == (comes, False)


def test_memory_outside_of_torch_is_seen_and_torchs_own_is_not():
    with on_rank.Unseen() as unseen:
        kept, copy, tensor = bytearray(300_000), numpy.ones(100_000), torch.ones(1_000_000)
        del kept, copy
        assert 1_100_000 <= unseen.peak() < 1_300_000
    assert tensor.sum() == 1_000_000


def asked_where_it_is():
    import linecache

    from course_lib.ranks import where

    linecache.clearcache()
    with on_rank.Unseen() as unseen:
        for _ in range(3):
            where.whereabouts()
        return unseen.peak(), len(linecache.cache)


def test_a_rank_that_is_asked_where_it_is_holds_little_for_that():
    noise, sources = run(asked_where_it_is, ranks=1).results[0]
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
