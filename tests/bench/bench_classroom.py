"""A class on one host: many kernels start a job of 4 ranks at the same moment, each from a process of its
own.

    python tests/bench/bench_classroom.py [learners]
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

LEARNER = """
import sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import workers
from course_lib import run
run(workers.nothing, ranks=1)                  # this kernel's fork server is up
print("ready", flush=True)
sys.stdin.readline()                           # all begin at once
begin = time.monotonic()
job = run(workers.ddp, ranks=4, timeout=300)
print(f"{time.monotonic() - begin:.2f}", flush=True)
"""


def main() -> None:
    learners = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    before = psutil.virtual_memory().available
    tests = str(Path(__file__).resolve().parents[1])
    kernels = [
        subprocess.Popen(
            [sys.executable, "-c", LEARNER, tests], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(learners)
    ]
    begin = time.monotonic()
    for kernel in kernels:
        assert kernel.stdout.readline().strip() == "ready"
    print(
        f"{learners} kernels with a fork server each were up after {time.monotonic() - begin:.0f} s and hold "
        f"{(before - psutil.virtual_memory().available) / 1e9 / learners:.2f} GB each"
    )
    for kernel in kernels:
        kernel.stdin.write("\n")
        kernel.stdin.flush()
    seconds = sorted(float(kernel.stdout.readline() or "nan") for kernel in kernels)
    succeeded = sum(kernel.wait() == 0 for kernel in kernels)
    print(
        f"{succeeded} of {learners} jobs of 4 ranks, started at once, succeeded; the last was done after"
        f" {seconds[-1]:.1f} s"
    )


if __name__ == "__main__":
    main()
