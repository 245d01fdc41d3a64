"""How long it takes to start ranks, and what an idle rank holds: `run` against torchrun, interleaved.

    python tests/bench/bench_launch.py [rounds]

Each round starts 4 ranks that run one all_reduce, once with a warm `run` and once with torchrun. Quote the
ratio.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from course_lib import run

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("", "ranks", "mini")]
import workers  # noqa: E402

RANKS = 4
SCRIPT = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
dist.destroy_process_group()
"""


def idle_rank() -> float:
    """Proportional set size (PSS) of this rank in bytes after one all_reduce: its own pages plus its share of
    common ones.
    """
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))
    time.sleep(0.3)
    # psutil would read the long form, and so add to what it measures
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def torchrun(script: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={RANKS}",
            str(script),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def warm() -> float:
    begin = time.perf_counter()
    run(workers.nothing, ranks=RANKS)
    return time.perf_counter() - begin


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    script = Path(__file__).with_name("_all_reduce.py")
    script.write_text(SCRIPT)
    try:
        warm()
        pairs = [(warm(), torchrun(script)) for _ in range(rounds)]
    finally:
        script.unlink()
    ratios = [theirs / ours for ours, theirs in pairs]
    ours, theirs = zip(*pairs)
    print(f"{RANKS} ranks and one all_reduce, {rounds} interleaved rounds, {psutil.cpu_count()} cores")
    print(f"  run, warm: median {statistics.median(ours):.3f} s ({min(ours):.3f} to {max(ours):.3f})")
    print(f"  torchrun:  median {statistics.median(theirs):.2f} s ({min(theirs):.2f} to {max(theirs):.2f})")
    print(
        f"  torchrun / run: median {statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})"
    )
    held = run(idle_rank, ranks=RANKS).results
    print(f"  an idle rank holds {max(held) / 1e6:.1f} MB of its own (PSS, the largest of {RANKS} ranks)")


if __name__ == "__main__":
    main()
