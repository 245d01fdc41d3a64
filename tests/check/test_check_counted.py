"""What checks count in a finished job."""

from dataclasses import replace

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check.counted import header_bytes, sent_bytes
from course_lib.jobs import run_quietly


def test_headers_are_no_more_than_they_are_taken_for():
    def small(op):
        for _ in range(3):
            with measure.step():
                for _ in range(20):
                    tensor = torch.ones(3, dtype=torch.float64)
                    if op == "send":
                        (
                            dist.send(tensor, 1)
                            if dist.get_rank() == 0
                            else dist.recv(tensor, 0)
                            if dist.get_rank() == 1
                            else None
                        )
                    else:
                        (
                            getattr(dist, op)(tensor, 0)
                            if op in ("broadcast", "reduce")
                            else dist.all_reduce(tensor)
                        )

    for op, most in (("send", 24), ("all_reduce", 48), ("broadcast", 48), ("reduce", 48)):
        job = run_quietly(small, op, ranks=3)
        assert (sent_bytes(job) - header_bytes(job)).max() <= 20 * most, op


def test_large_messages_are_counted_in_full_and_without_the_wire_by_their_algorithm():
    def large():
        for _ in range(3):
            with measure.step():
                dist.all_reduce(torch.ones(100_000))

    job = run_quietly(large, ranks=2)
    assert all(
        400_000 <= sent <= 400_000 + headers for sent, headers in zip(sent_bytes(job), header_bytes(job))
    )
    uncounted = replace(job, absent={"wire bytes": "nobody counts"})
    assert list(sent_bytes(uncounted)) == [400_000] * 2 and list(header_bytes(uncounted)) == [0, 0]


def test_a_rank_that_sends_in_the_last_step_alone_has_sent():
    def late():
        for step in range(3):
            with measure.step():
                if step == 2:
                    (
                        dist.send(torch.ones(100_000), 1)
                        if dist.get_rank() == 0
                        else dist.recv(torch.ones(100_000), 0)
                    )

    assert sent_bytes(run_quietly(late, ranks=2))[0] >= 400_000


def test_a_job_without_steps_has_sent_nothing():
    job = run_quietly(dist.get_rank, ranks=2)
    assert list(sent_bytes(job)) == [0, 0] == list(header_bytes(job))
