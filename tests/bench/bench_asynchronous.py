"""Parameter servers and local SGD: times beside their formulas, on a machine that does nothing else.

    python tests/bench/bench_asynchronous.py [repeats]

1. Updates per second by three workers that sleep, one of them four times as long, with several bounds: within
   15% of W / max(t) where workers wait, and of sum(1/t) where they do not.
2. The same server between hosts with a link of their own: seconds per synchronous round within 20% of
   2 W S/B, an asynchronous one from half of that up to it; a ring within 20% of 2 (n-1)/n S/B.
3. Local SGD over such links: seconds per step within 25% of compute + 2 (n-1)/n S/(B H).

Runs are interleaved; of each kind the fastest stands for it (a busy machine only adds). Exit code 1 if a
ratio is out of its range. Where linked hosts cannot be made, 2 and 3 are skipped, with the reason.
"""

import math
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from course_lib import hosts, run, theory
from course_lib.mini import local_sgd, parameter_server, ring

NUMEL, MBIT = 100_000, 50
S, B = 4 * NUMEL, MBIT * 1e6 / 8
PACES = [0.08, 0.08, 0.32]  # long beside the messages of an update, which take some milliseconds
COMPUTE_S = 0.02


def serve(updates: int, bound: float, numel: int, paces: list[float]) -> float:
    params = torch.zeros(numel)
    dist.barrier()
    begin = time.perf_counter()
    parameter_server.serve(params, updates, torch.optim.SGD([params], 0.1), bound)
    return time.perf_counter() - begin


def work(updates: int, bound: float, numel: int, paces: list[float]) -> None:
    def gradient(weights: torch.Tensor) -> torch.Tensor:
        time.sleep(paces[dist.get_rank() - 1])
        return torch.ones_like(weights)

    dist.barrier()
    parameter_server.work(torch.zeros(numel), gradient)


def in_ring(rounds: int) -> float:
    tensor = torch.ones(NUMEL)
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(rounds):
        ring.all_reduce(tensor)
    return (time.perf_counter() - begin) / rounds


def locally(local_steps: int, rounds: int) -> float:
    averager = local_sgd.LocalSGD([torch.ones(NUMEL)], local_steps)
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(local_steps * rounds):
        time.sleep(COMPUTE_S)
        averager.step()
    return (time.perf_counter() - begin) / local_steps / rounds


def best(repeats: int, tries: dict[str, Callable[[], float]]) -> dict[str, float]:
    found = {name: math.inf for name in tries}
    for _ in range(repeats):
        for name, one in tries.items():
            found[name] = min(found[name], one())
    return found


def main(repeats: int) -> int:
    roles, wrong = [serve, work, work, work], 0

    def tell(name: str, seconds: float, formula_s: float, low: float, high: float) -> bool:
        ratio = seconds / formula_s
        out = not low <= ratio <= high
        print(f"{name:34} {seconds:8.4f} s {formula_s:8.4f} s {ratio:6.3f}{'  OUT' * out}", flush=True)
        return out

    print(f"{'':34} {'fastest':>10} {'formula':>10} {'ratio':>6}")
    bounds = {"bound 0": 0, "bound 2": 2, "no bound": math.inf}
    tries = {
        name: lambda bound=bound: run(roles, 48, bound, 10, PACES).results[0] / 48
        for name, bound in bounds.items()
    }
    for name, seconds in best(repeats, tries).items():
        formula_s = 1 / theory.updates_per_second(PACES, waits=name != "no bound")
        wrong += tell(f"straggler, {name}: update", seconds, formula_s, 0.85, 1.15)

    four, three = hosts.Linked(4, mbit=MBIT), hosts.Linked(3, mbit=MBIT)
    if reason := four.missing():
        print("skipped, over links:", reason)
        return bool(wrong)
    rounds = 8
    tries = {
        name: lambda bound=bound: run(roles, 3 * rounds, bound, NUMEL, [0.0] * 3, on=four).results[0] / rounds
        for name, bound in {"synchronous": 0, "asynchronous": math.inf}.items()
    }
    tries["ring"] = lambda: max(run(in_ring, rounds, ranks=3, on=three).results)
    found = best(repeats, tries)
    server_s = theory.server_round_seconds(S, B, 3)
    wrong += tell("over a link, synchronous: round", found["synchronous"], server_s, 0.8, 1.2)
    wrong += tell("over a link, asynchronous: round", found["asynchronous"], server_s, 0.5, 1.2)
    ring_s = theory.ring_seconds("all_reduce", S, 3, 0, 1 / B)
    wrong += tell("over a link, ring: round", found["ring"], ring_s, 0.8, 1.2)

    tries = {str(h): lambda h=h: max(run(locally, h, 16 // h, ranks=4, on=four).results) for h in (1, 4, 16)}
    for name, seconds in best(repeats, tries).items():
        formula_s = COMPUTE_S + theory.local_sgd_bytes(S, 4, int(name)) / B
        wrong += tell(f"local SGD, H = {name}: step", seconds, formula_s, 0.75, 1.25)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
