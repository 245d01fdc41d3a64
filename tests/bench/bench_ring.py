"""mini.ring against gloo's own collectives, interleaved in one job on 4 ranks: how many times as fast.

    python tests/bench/bench_ring.py [rounds] [MB]

In each round every call runs once, in turn, between barriers; a pair is the two calls of one round. Quote the
ratio of the medians.
"""

import statistics
import sys
import time

import psutil
import torch
import torch.distributed as dist

from course_lib import run
from course_lib.mini import ring

RANKS = 4


def rounds_of_calls(rounds: int, payload_bytes: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, as rank 0 saw them."""
    size = dist.get_world_size()
    whole = torch.ones(payload_bytes // 4 // size * size)
    piece = torch.zeros(whole.numel() // size)
    calls = {
        "gloo all_reduce": lambda: dist.all_reduce(whole),
        "ring all_reduce": lambda: ring.all_reduce(whole),
        "gloo reduce_scatter": lambda: dist.reduce_scatter_tensor(piece, whole),
        "ring reduce_scatter": lambda: ring.reduce_scatter(piece, whole),
        "gloo all_gather": lambda: dist.all_gather_into_tensor(whole, piece),
        "ring all_gather": lambda: ring.all_gather(whole, piece),
    }
    seconds = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            whole.fill_(1)  # sums stay small
            dist.barrier()
            begin = time.perf_counter()
            call()
            dist.barrier()  # a collective has ended when the last rank has
            seconds[name].append(time.perf_counter() - begin)
    return {name: values[2:] for name, values in seconds.items()}  # the first two are warm-up


def main() -> None:
    rounds, megabytes = (
        int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 40), (2, 16))
    )
    seconds = run(
        rounds_of_calls, rounds, megabytes * 2**20, ranks=RANKS, backend="gloo", timeout=600
    ).results[0]
    print(
        f"{megabytes} MiB on {RANKS} ranks, {rounds} rounds, {psutil.cpu_count()} cores, load"
        f" {psutil.getloadavg()[0]:.1f}"
    )
    for op in ("all_reduce", "reduce_scatter", "all_gather"):
        theirs, ours = seconds[f"gloo {op}"], seconds[f"ring {op}"]
        low, _, high = statistics.quantiles([a / b for a, b in zip(theirs, ours)], n=4)
        print(
            f"  {op:15} gloo {statistics.median(theirs) * 1e3:6.1f} ms, ring"
            f" {statistics.median(ours) * 1e3:6.1f} ms: the ring is"
            f" {statistics.median(theirs) / statistics.median(ours):.2f} times as fast (middle half of the"
            f" pairs: {low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
