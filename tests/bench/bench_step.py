"""What `measure.step` costs in timed steps: the same loop with and without it, interleaved in one job.

    python tests/bench/bench_step.py [rounds]

Every round trains the same model for some steps bare and some measured, on the same ranks; the ratio of
medians is quoted.
"""

import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure, run

STEPS = 12


def paired(rounds: int) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(32, 512)

    def train() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def bare() -> float:
        begin = time.perf_counter()
        train()
        return time.perf_counter() - begin

    def measured() -> float:
        with measure.step(model, optimizer, samples=32):
            train()
        return measure._ledger.steps[-1]["seconds"]

    for _ in range(3):  # warm-up and the traced step
        measured()
    pairs = []
    for _ in range(rounds):
        first, second = [], []
        for _ in range(STEPS):  # step by step in turn: a change of load hits both alike
            first.append(bare())
            second.append(measured())
        pairs.append((statistics.median(first), statistics.median(second)))
    dist.barrier()
    return pairs


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    pairs = run(paired, rounds, ranks=2, timeout=300).results[0]
    ratios = [measured / bare for bare, measured in pairs]
    print(
        f"measured step / bare step on 2 ranks: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}; {rounds} rounds of {STEPS} steps each, in turn)"
    )


if __name__ == "__main__":
    main()
