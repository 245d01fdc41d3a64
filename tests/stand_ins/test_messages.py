"""Messages that are held back come late and in order; nobody waits for that, and nothing stays changed."""

import time

import pytest
import torch
import torch.distributed as dist

from course_lib import run
from course_lib.stand_ins.messages import late_messages

T = 0.3  # seconds


def test_messages_come_late_in_their_order_and_their_sender_goes_on():
    def trial():
        rank, (real, real_send) = dist.get_rank(), (dist.isend, dist.send)
        with late_messages(T):
            dist.barrier()
            if rank == 0:
                begin = time.perf_counter()
                sending = [dist.isend(torch.full((3,), float(k)), 1) for k in range(4)]
                on = time.perf_counter()
                [work.wait() for work in sending]
                again = time.perf_counter()
                dist.send(torch.full((3,), 4.0), 1)
                found = begin, on, again, time.perf_counter()
            else:
                values, box = [], torch.empty(3)
                for _ in range(5):
                    dist.recv(box, 0)
                    values.append((box[0].item(), time.perf_counter()))
                found = values
        assert (dist.isend, dist.send) == (real, real_send)
        return found

    (begin, on, again, sent), came = run(trial, ranks=2).results
    assert [value for value, _ in came] == [0, 1, 2, 3, 4]
    first, last = came[0][1], came[4][1]  # one clock for all processes of a host
    assert begin + T <= first and on < first
    assert again + T <= last and again + T <= sent, "a send waits until it is sent"


def test_a_batch_of_messages_is_held_back_too():
    def trial():
        peer, box = 1 - dist.get_rank(), torch.empty(2)
        dist.barrier()
        begin = time.perf_counter()
        with late_messages(T):
            ops = [dist.P2POp(dist.isend, torch.full((2,), float(peer)), peer)]
            ops += [dist.P2POp(dist.irecv, box, peer)]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
        return box[0].item(), time.perf_counter() - begin

    for rank, (value, seconds) in enumerate(run(trial, ranks=2).results):
        assert value == rank and seconds >= T


def test_other_seconds_are_refused():
    with pytest.raises(ValueError, match="seconds"), late_messages(-1.0):
        pass
