"""mini.zero against torch's, step by step in turn: time of a step of Adam, of a model of 10 million
parameters at a small batch.

    python tests/bench/bench_zero.py [rounds] [ranks]

Every step runs once with each, on the same ranks, and who is first changes from round to round; ratios of
medians are quoted, with the middle half of the ratios of single rounds. DDP with Adam is there for the scale.
Stage 1 is measured against ZeroRedundancyOptimizer, stage 2 against fully_shard(reshard_after_forward=False),
stage 3 against fully_shard; units are the model's Linear layers in both.
"""

import statistics
import sys
import time

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from course_lib import run
from course_lib.mini import zero
from course_lib.models import MLP

WIDTHS = (512, *[1280] * 7, 10)  # 10.5 million parameters, 42 MB
PAIRS = (
    ("stage 1", "ZeroRedundancyOptimizer"),
    ("stage 2", "fully_shard, kept"),
    ("stage 3", "fully_shard"),
    ("stage 1", "DDP"),
)


def prepare(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = MLP(WIDTHS)
    if kind.startswith("stage"):
        return zero.shard(model, int(kind[-1]), torch.optim.Adam, lr=1e-4)
    if kind.startswith("fully_shard"):
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, reshard_after_forward=kind == "fully_shard")
        fully_shard(model, reshard_after_forward=kind == "fully_shard")
    else:
        model = nn.parallel.DistributedDataParallel(model)
    if kind == "ZeroRedundancyOptimizer":
        return model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam, lr=1e-4)
    return model, torch.optim.Adam(model.parameters(), lr=1e-4)


def steps_in_turn(kinds: list[str], rounds: int) -> dict[str, list[float]]:
    x = torch.randn(8, WIDTHS[0])
    ready = {kind: prepare(kind) for kind in kinds}
    seconds = {kind: [] for kind in kinds}
    for round_ in range(rounds + 2):
        for kind in kinds if round_ % 2 else reversed(kinds):
            model, optimizer = ready[kind]
            dist.barrier()
            begin = time.perf_counter()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            dist.barrier()
            seconds[kind].append(time.perf_counter() - begin)
    return {kind: values[2:] for kind, values in seconds.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    kinds = list(dict.fromkeys(kind for pair in PAIRS for kind in pair))
    print(f"{psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}, {ranks} ranks, {rounds} rounds")
    seconds = run(steps_in_turn, kinds, rounds, ranks=ranks, backend="gloo", timeout=900).results[0]
    for kind, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {kind:24} {middle * 1e3:6.1f} ms (middle half {low * 1e3:.1f} to {high * 1e3:.1f})")
    for mine, theirs in PAIRS:
        low, _, high = statistics.quantiles([b / a for a, b in zip(seconds[mine], seconds[theirs])], n=4)
        ratio = statistics.median(seconds[theirs]) / statistics.median(seconds[mine])
        print(
            f"  {mine} is {ratio:.2f} times as fast as {theirs} (middle half of the rounds: {low:.2f} to"
            f" {high:.2f})"
        )


if __name__ == "__main__":
    main()
