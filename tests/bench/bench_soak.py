"""Many jobs in one kernel, a third of them failing in random ways: what grows?

python tests/bench/bench_soak.py [jobs]
"""

import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import psutil

from course_lib import RankError, run

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("", "ranks", "mini")]
import faults  # noqa: E402
import workers  # noqa: E402

FAILING = [
    (faults.raises, {}),
    (faults.is_killed, {}),
    (faults.exits, {}),
    (faults.vanishes, {}),
    (faults.crashes, {}),
    (faults.other_shape, {}),
    (faults.leaves_early, {}),
    (faults.never_arrives, {"timeout": 0.5}),
    (faults.is_stopped, {"timeout": 0.5}),
]


def state() -> dict[str, float]:
    kernel = psutil.Process()
    (server,) = [p for p in kernel.children() if "course_lib.ranks.server" in " ".join(p.cmdline())]
    end = time.monotonic() + 2
    while len(server.children(recursive=True)) > 1 and time.monotonic() < end:
        time.sleep(0.02)
    return {
        "kernel MB": kernel.memory_info().rss / 1e6,
        "kernel files": kernel.num_fds(),
        "kernel threads": kernel.num_threads(),
        "server MB": server.memory_info().rss / 1e6,
        "server files": server.num_fds(),
        "processes": len(kernel.children(recursive=True)),
        "temporary files": len(list(Path(tempfile.gettempdir()).glob("course_lib-*"))),
    }


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    tempfile.tempdir = tempfile.mkdtemp()
    chance = random.Random(0)
    failed = 0
    warnings.simplefilter("ignore")
    rows = []
    for number in range(jobs + 1):
        if number % (jobs // 6) == 0:
            rows.append((number, failed, state()))
            if number == 0:
                print("   jobs failed  " + "  ".join(f"{name:>15}" for name in rows[0][2]))
            print(
                f"{number:7} {failed:6}  " + "  ".join(f"{value:15.1f}" for value in rows[-1][2].values()),
                flush=True,
            )
        try:
            if chance.random() < 1 / 3:
                fn, options = chance.choice(FAILING)
                run(fn, ranks=2, **options)
            else:
                run(chance.choice([workers.nothing, workers.ddp]), ranks=2)
        except RankError:
            failed += 1


if __name__ == "__main__":
    run(workers.nothing)
    main()
