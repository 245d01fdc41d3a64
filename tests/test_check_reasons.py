"""What checks read from a job, and that ranks load nothing heavy with it."""
import subprocess
import sys

import torch
import torch.distributed as dist

from course_lib import measure
from course_lib.check.calls import Calls
from course_lib.check.reasons import rounding, sent_bytes
from course_lib.run import run_quietly


def test_headers_are_no_more_than_they_are_taken_for():
    def small(op):
        for _ in range(3):
            with measure.step():
                for _ in range(20):
                    tensor = torch.ones(3, dtype=torch.float64)
                    if op == "send":
                        dist.send(tensor, 1) if dist.get_rank() == 0 else dist.recv(tensor, 0) if dist.get_rank() == 1 else None
                    else:
                        getattr(dist, op)(tensor, 0) if op in ("broadcast", "reduce") else dist.all_reduce(tensor)

    for op, most in (("send", 24), ("all_reduce", 48), ("broadcast", 48), ("reduce", 48)):
        sent, headers = sent_bytes(run_quietly(small, op, ranks=3))
        assert sent - headers <= 20 * most, op


def test_large_messages_are_counted_in_full():
    def large():
        for _ in range(3):
            with measure.step():
                dist.all_reduce(torch.ones(100_000))

    sent, headers = sent_bytes(run_quietly(large, ranks=2))
    assert 400_000 <= sent <= 400_000 + headers


def test_a_job_without_steps_has_sent_nothing():
    assert sent_bytes(run_quietly(dist.get_rank, ranks=2)) == (0.0, 0.0)


def test_what_was_rounded_is_told_by_its_error():
    values = torch.rand(1000, dtype=torch.float64)
    for dtype, name in ((torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        error = ((values.to(dtype).double() - values).norm() / values.norm()).item()
        assert name in rounding(error)
    assert rounding(0.5) == "" == rounding(1e-15) == rounding(float("inf"))


def test_calls_are_counted_in_every_thread_and_only_in_the_block():
    def counted():
        import threading

        dist.all_reduce(torch.ones(1))
        with Calls() as calls:
            dist.all_reduce(torch.ones(1), async_op=True).wait()
            thread = threading.Thread(target=lambda: dist.all_reduce(torch.ones(1)))
            thread.start()
            thread.join()
            dist.barrier()
        dist.all_reduce(torch.ones(1))
        return calls.count

    assert run_quietly(counted, ranks=2).results == [2, 2]


def test_what_ranks_import_of_the_checks_is_light():
    """Otherwise each rank of each trial pays for pandas, which takes seconds on a busy machine."""
    code = "import sys, course_lib.check.on_rank, course_lib.check.reasons, course_lib.check.calls; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
