"""Inject every fault many times and print a table: fault, injected, explained, seconds from launch to the explanation, left over.

    python tests/bench/bench_faults.py [times] [--busy]

--busy keeps every core busy with another process meanwhile.
"""
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import psutil

from course_lib import RankError, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import faults  # noqa: E402

TIMEOUT_S = 1.5
FAULTS = [                      # row of the table of faults, function, what the explanation must say, timeout
    ("1 a rank raises", faults.raises, "raised IndexError", 30),
    ("2 a rank is killed", faults.is_killed, "was killed (SIGKILL", 30),
    ("3 a rank leaves early", faults.leaves_early, "has finished without calling all_reduce", 30),
    ("4 a rank never arrives", faults.never_arrives, "waits in all_reduce; rank 1 is not there", TIMEOUT_S),
    ("5 different collectives", faults.different_collectives, "rank 0 called broadcast", 30),
    ("6 shapes differ", faults.other_shape, "rank 1 called all_reduce of float32[7]", 30),
    ("6 dtypes differ", faults.other_dtype, "rank 1 called all_reduce of float64[700]", 30),
    ("6 dtypes differ, silently", faults.silent_dtype, "No library noticed", 30),
    ("7 swapped tensors", faults.swapped, "from different lines", 30),
    ("8 a rank is stopped", faults.is_stopped, "its process was stopped (SIGSTOP)", TIMEOUT_S),
    ("8 a rank holds the lock", faults.holds_the_lock, "waits in all_reduce", TIMEOUT_S),
]


def spin() -> None:
    while True:
        pass


def leftovers() -> int:
    """Ranks and supervisors still there two seconds later (one supervisor waits for the next job)."""
    end = time.monotonic() + 2
    while True:
        servers = [p for p in psutil.Process().children() if "course_lib.ranks.server" in " ".join(p.cmdline())]
        count = sum(len(server.children(recursive=True)) for server in servers) - 1
        if count == 0 or time.monotonic() > end:
            return count
        time.sleep(0.02)


def once(fn, words, timeout) -> tuple[bool, float, int]:
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            run(fn, ranks=2, timeout=timeout)
            text = " ".join(str(warning.message) for warning in told)
        except RankError as error:
            text = str(error)
    seconds = time.monotonic() - begin
    return words in text, seconds - (timeout if timeout == TIMEOUT_S else 0), leftovers() + len(list(Path(tempfile.gettempdir()).glob("course_lib-*")))


def main() -> None:
    times = next((int(a) for a in sys.argv[1:] if a.isdigit()), 20)
    busy = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(psutil.cpu_count())] if "--busy" in sys.argv else []
    for process in busy:
        process.start()
    tempfile.tempdir = tempfile.mkdtemp()
    run(faults.addresses, ranks=2)
    print(f"{times} times each, {'every core busy' if busy else 'machine otherwise as it is'}; seconds: from the launch, or past the timeout of {TIMEOUT_S} s in rows 4 and 8")
    print(f"{'fault':28} {'injected':>8} {'explained':>9} {'median s':>9} {'max s':>6} {'left over':>9}  {'next run, max s':>15}")
    for name, fn, words, timeout in FAULTS:
        rows, next_s = [], []
        for _ in range(times):
            rows.append(once(fn, words, timeout))
            begin = time.monotonic()
            run(faults.addresses, ranks=2)
            next_s.append(time.monotonic() - begin)
        seconds = [s for _, s, _ in rows]
        print(f"{name:28} {times:8} {sum(ok for ok, _, _ in rows):9} {statistics.median(seconds):9.2f} {max(seconds):6.2f} "
              f"{sum(left for _, _, left in rows):9}  {max(next_s):15.2f}", flush=True)
    for process in busy:
        process.kill()


if __name__ == "__main__":
    main()
