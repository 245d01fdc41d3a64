"""What the operating system tells of threads (Linux)."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from course_lib.ranks import threads

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc here")


def test_a_thread_that_waits_sleeps_and_one_that_works_does_not():
    end, begun = threading.Event(), threading.Barrier(3)

    def waits():
        begun.wait()
        end.wait()

    def works():
        begun.wait()
        while not end.is_set():
            sum(range(100))

    both = [threading.Thread(target=target) for target in (waits, works)]
    for thread in both:
        thread.start()
    begun.wait()
    try:
        waiting, working = (thread.native_id for thread in both)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # the one that works sleeps while another has the interpreter
            told = threads.others()
            if told[waiting][0] and not told[working][0]:
                break
        assert told[waiting][0] and not told[working][0]
        assert threading.get_native_id() not in told
    finally:
        end.set()
        for thread in both:
            thread.join()


def test_what_a_process_computes_and_waits_for_a_core():
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]  # two on one core
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            told = [threads.computed_and_waited(process.pid) for process in both]
            if all(computed > 0.3 and waited > 0.3 for computed, waited in told):
                break
            time.sleep(0.05)
        assert all(computed > 0.3 and waited > 0.3 for computed, waited in told)
        assert threads.computed_and_waited(sleeper.pid)[0] < 0.3
    finally:
        for process in (*both, sleeper):
            process.kill()
            process.wait()
    assert threads.computed_and_waited(sleeper.pid) == (0, 0)
