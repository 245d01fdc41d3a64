"""What the ranks of the tests of `check.on_rank` run. It stands apart because a rank that is asked for a
function loads the module around it: the tests' own would bring pandas and pytest into each.
"""

import linecache
import threading
import time

import numpy
import torch

from course_lib import measure, torch_internals
from course_lib.check import on_rank
from course_lib.ranks import where


def trial():
    seeds = on_rank.everyone(on_rank.private_seed())
    return (
        seeds,
        on_rank.first_problem("" if torch.distributed.get_rank() != 1 else "it is wrong"),
        on_rank.first_problem(""),
    )


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


def calls_in_threads():
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


def one_is_late():
    rank, tensor, found = torch.distributed.get_rank(), torch.zeros(1), []
    for how in ("by a message", "by itself"):
        begin = time.monotonic()
        if rank == 0 and how == "by a message":
            # it leaves long before, because it is told
            with on_rank.Calls(on_rank.late(how, [60.0])):
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


def all_wait():
    begin = time.monotonic()  # one clock for all processes of a machine
    if torch.distributed.get_rank() == 0:
        on_rank.come_late("all wait", 60.0)
    torch.distributed.barrier()
    end = time.monotonic()
    on_rank.is_back("all wait")
    return begin, end


def waits_for_another(other: str) -> tuple[bool, bool]:
    """Rank 0 waits for what rank 1 does: whether it came, and whether the time was what ended it."""
    begin, store = time.monotonic(), torch_internals.default_store()
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


def asked_where_it_is():
    linecache.clearcache()
    with on_rank.Unseen() as unseen:
        for _ in range(3):
            where.whereabouts()
        return unseen.peak(), len(linecache.cache)


def holds_bytes_arrays_and_tensors():
    with on_rank.Unseen() as unseen:
        kept, copy, tensor = bytearray(300_000), numpy.ones(100_000), torch.ones(1_000_000)
        del kept, copy
        assert tensor.sum() == 1_000_000
        return unseen.peak()


def looks_while_gloo_calls_back(rounds):
    """Python's own function in a thread of gloo: the thread allocates before it has the interpreter."""
    total = 0
    for _ in range(rounds):
        one = torch.ones(1)
        with on_rank.Unseen():
            done = torch.distributed.all_reduce(one, async_op=True).get_future().then(lambda future: None)
        done.wait()
        total += int(one)
    return total
