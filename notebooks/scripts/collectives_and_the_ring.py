"""Measure all_reduce over sizes, with the bandwidths of nccl-tests.

torchrun --standalone --nproc-per-node 2 collectives_and_the_ring.py
"""

import os
import time

import torch
import torch.distributed as dist

SIZES = [2**k for k in range(12, 25, 3)]  # bytes, 4 KiB to 16 MiB
WARM_UP, REPEATS = 3, 15

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")


def clock() -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()  # NCCL's calls return before the work is done
    return time.perf_counter()


rank, n = dist.get_rank(), dist.get_world_size()
if rank == 0:
    print(f"all_reduce on {n} ranks, {dist.get_backend()}; median of {REPEATS}")
    print("         S          time          algbw          busbw")

all_right = True
for size in SIZES:
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        tensor = torch.full((size // 4,), float(rank), device=device)
        dist.barrier()
        begin = clock()
        dist.all_reduce(tensor)
        seconds.append(clock() - begin)
    all_right = all_right and bool((tensor == n * (n - 1) / 2).all())
    slowest = torch.tensor(seconds[WARM_UP:], device=device, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # it is over when the last rank is ready
    t = slowest.median().item()
    algbw = size / t
    busbw = algbw * 2 * (n - 1) / n
    if rank == 0:
        bandwidths = f"{algbw / 1e6:10.1f} MB/s {busbw / 1e6:9.1f} MB/s"
        print(f"{size / 2**10:6.0f} KiB {t * 1e3:10.3f} ms{bandwidths}")

if rank == 0:
    print(f"every sum is right: {all_right}; busbw / algbw = {busbw / algbw if n > 1 else 0:.2f}")
dist.destroy_process_group()
