"""Measure a machine for the calculator: products per second of a rank while all are busy, and all_reduce.

torchrun --standalone --nproc-per-node 2 choosing_a_strategy.py
python -m course_lib.plan model.yaml machine.json --ranks 64
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if on_gpu := torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()


def seconds_of(work, times=15):
    """The median, of the slowest rank."""
    taken = []
    for _ in range(times):
        dist.barrier()
        begin = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    slowest = torch.tensor(taken, device=device, dtype=torch.float32)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.median().item()


size, dtype = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
matrix = torch.randn(size, size, device=device, dtype=dtype)
products_per_s = size**3 / seconds_of(lambda: matrix @ matrix)
small, large = (torch.zeros(count, device=device) for count in (2**10, 2**22))
few_s, many_s = (seconds_of(lambda tensor=tensor: dist.all_reduce(tensor)) for tensor in (small, large))
steps, sent = 2 * (n - 1), 2 * (n - 1) / n * (large.nbytes - small.nbytes)  # of a ring
link = {"span": 2**20, "alpha_s": few_s / (steps or 1), "beta_s": max(many_s - few_s, 0) / (sent or 1)}
machine = {
    "name": f"{n} ranks ({device.type})",
    "cores": n,
    "products_per_s": products_per_s,
    "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else 4e9,
    "links": [link] if steps else [],
}
if rank == 0:
    Path("machine.json").write_text(json.dumps(machine, indent=1))
    took = f"an all_reduce of {large.nbytes / 1e6:.0f} MB takes {many_s * 1e3:.1f} ms" if steps else "no link"
    print(f"machine.json has {n} ranks: {products_per_s / 1e9:.1f} 10^9 products/s each, {took}")
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
