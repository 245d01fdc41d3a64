"""Ranks by multiprocessing's fork server, for bench_launch.py: for each number of ranks that comes in, it
starts so many, which do one all_reduce, and tells how many seconds that took.

A process of its own: a child of the fork server imports the main module again, so this one must be small.
"""

import multiprocessing
import sys
import tempfile
import time

__all__: list[str] = []


def one_rank(rank: int, ranks: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()


def start(ranks: int) -> float:
    begin, context = time.perf_counter(), multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=one_rank, args=(rank, ranks, f"{folder}/store")) for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
    assert not any(process.exitcode for process in started)
    return time.perf_counter() - begin


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["torch.distributed"])
    for line in sys.stdin:
        print(start(int(line)), flush=True)
