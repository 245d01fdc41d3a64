"""How long it takes to start ranks, and what an idle rank holds: `run`, multiprocessing's fork server, and
torchrun, interleaved.

    python tests/bench/bench_launch.py [rounds]

Each round starts ranks that run one all_reduce: with a warm `run`, by multiprocessing's "forkserver" that has
torch imported, and with torchrun. Quote the ratios. torchrun, which is slow, is asked in every third round of
more than 4 ranks.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from course_lib import run
from course_lib.ranks import devices

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("", "ranks", "mini")]
import workers  # noqa: E402

RANKS = (4, 8, 16, 32)
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


class ForkServer:
    """multiprocessing's, in a process of its own."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("_forkserver.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)

    def start(self, ranks: int) -> float:
        self.process.stdin.write(f"{ranks}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def torchrun(ranks: int, script: Path) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={ranks}", str(script)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environ, capture_output=True)
    return time.perf_counter() - begin


def warm(ranks: int) -> float:
    begin = time.perf_counter()
    run(workers.nothing, ranks=ranks)
    return time.perf_counter() - begin


def in_words(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    os.environ["GLOO_SOCKET_IFNAME"] = devices.loopback()
    theirs = ForkServer()
    print(f"one all_reduce, {rounds} interleaved rounds, {psutil.cpu_count()} cores; median (least to most)")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "all_reduce.py"
        script.write_text(SCRIPT)
        for ranks in RANKS:
            warm(ranks), theirs.start(2)
            taken: dict[str, list[float]] = {"run": [], "forkserver": [], "torchrun": []}
            ratios: dict[str, list[float]] = {"forkserver": [], "torchrun": []}
            for number in range(rounds):
                taken["run"].append(warm(ranks))
                taken["forkserver"].append(theirs.start(ranks))
                if ranks == RANKS[0] or number % 3 == 0:
                    taken["torchrun"].append(torchrun(ranks, script))
                    ratios["torchrun"].append(taken["torchrun"][-1] / taken["run"][-1])
                ratios["forkserver"].append(taken["forkserver"][-1] / taken["run"][-1])
            print(f"  {ranks} ranks: run, warm: {in_words(taken['run'], 3)} s")
            for name, several in ratios.items():
                print(f"    {name}: {in_words(taken[name], 2)} s, {in_words(several, 1)} times as long")
    held = run(idle_rank, ranks=RANKS[0]).results
    print(f"  an idle rank holds {max(held) / 1e6:.1f} MB of its own (PSS, the largest of {RANKS[0]} ranks)")


if __name__ == "__main__":
    main()
