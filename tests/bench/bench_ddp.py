"""mini's DistributedDataParallel against torch's, step by step in turn: time of a step, and how much
communication backward hides.

    python tests/bench/bench_ddp.py [rounds]

A step is forward, backward, optimizer, with buckets of 4 MiB in both. Every step runs once with each, on the
same ranks, and who is first changes from round to round; the ratio of the medians is quoted. Overlap is read
from the intervals of the traced step: the share of all_reduce time during which backward goes on, with a
backward that sleeps (the same on any machine) and with one that computes.
"""

import statistics
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure, run
from course_lib.mini import ddp
from course_lib.models import CNN, MLP, TinyGPT
from course_lib.record import overlap

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("", "ranks", "mini")]
import mini_workers  # noqa: E402

MODELS = {
    "MLP, 8.4 MB": (lambda: MLP((64, 1024, 1024, 1024, 10)), lambda: torch.randn(32, 64)),
    "CNN": (CNN, lambda: torch.randn(64, 1, 8, 8)),
    "TinyGPT": (TinyGPT, lambda: torch.randint(0, 256, (8, 65))),
}


def steps_in_turn(name: str, rounds: int) -> dict[str, list[float]]:
    make, batch = MODELS[name]
    x = batch()
    kinds = {}
    for kind, wrap in (("torch", nn.parallel.DistributedDataParallel), ("mine", ddp.DistributedDataParallel)):
        model = wrap(make(), bucket_cap_mb=4.0)
        kinds[kind] = model, torch.optim.SGD(model.parameters(), 0.01)
    seconds = {kind: [] for kind in kinds}
    for round_ in range(rounds + 5):
        for kind, (model, optimizer) in sorted(kinds.items(), reverse=bool(round_ % 2)):
            dist.barrier()
            begin = time.perf_counter()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            dist.barrier()
            seconds[kind].append(time.perf_counter() - begin)
    return {kind: values[5:] for kind, values in seconds.items()}


def computes(kind: str, bucket_cap_mb: float) -> None:
    torch.manual_seed(0)
    wrap = ddp.DistributedDataParallel if kind == "mine" else nn.parallel.DistributedDataParallel
    model = wrap(MLP((512, *[512] * 8, 10)), bucket_cap_mb=bucket_cap_mb)
    x = torch.randn(256, 512)
    for _ in range(3):
        with measure.step(model):
            model(x).square().mean().backward()
            model.zero_grad()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300  # fewer say little of steps of 3 ms
    print(f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}, {rounds} rounds")
    for ranks in (2, 4):
        for name in MODELS:
            seconds = run(steps_in_turn, name, rounds, ranks=ranks, backend="gloo", timeout=600).results[0]
            low, _, high = statistics.quantiles(
                [a / b for a, b in zip(seconds["mine"], seconds["torch"])], n=4
            )
            mine, theirs = (statistics.median(seconds[kind]) for kind in ("mine", "torch"))
            print(
                f"  {ranks} ranks, {name:11}: torch {theirs * 1e3:6.2f} ms, mine {mine * 1e3:6.2f} ms:"
                f" {mine / theirs:.2f} times torch's (middle half of the pairs: {low:.2f} to {high:.2f})"
            )
    for what, worker, small in (("sleeps", mini_workers.sleepy, 0.9), ("computes", computes, 2.0)):
        for kind in ("mine", "torch"):
            several, one = (
                overlap(run(worker, kind, cap, ranks=2, backend="gloo"), ("backward", "span"))[
                    "hidden"
                ].mean()
                for cap in (small, 1000.0)
            )
            print(
                f"  backward {what}, {kind:5}: {several:.0%} of all_reduce hidden with"
                f" buckets of {small} MiB, {one:.0%} with one bucket"
            )


if __name__ == "__main__":
    main()
