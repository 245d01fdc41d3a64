"""torch's zero bubble pipeline: two stages on each rank, dealt out in turn, and backwards in two parts.

torchrun --standalone --nproc-per-node 2 pipeline_schedules.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import pipelining
from torch.nn import functional as F

from course_lib.datasets import digit_batches, digits  # the data; the rest is PyTorch alone

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, p = dist.get_rank(), dist.get_world_size()
last, microbatches = 2 * p - 1, 8


def stage(number: int) -> nn.Module:
    """One of 2p parts of a network; each is made where it lives, and nowhere else."""
    torch.manual_seed(number)
    first, final = [nn.Flatten(), nn.Linear(64, 128)], [nn.Linear(128, 10)]
    middle = [nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*first * (number == 0), *middle, *final * (number == last)).to(device)


# a micro-batch goes twice through all ranks (of a V, ScheduleZBVZeroBubble, a rank has rank and last - rank)
modules = {number: stage(number) for number in (rank, rank + p)}
stages = [pipelining.PipelineStage(module, i, last + 1, device) for i, module in modules.items()]
schedule = pipelining.ScheduleInterleavedZeroBubble(stages, microbatches, loss_fn=F.cross_entropy)
optimizer = torch.optim.Adam([p for module in modules.values() for p in module.parameters()], lr=0.002)
for epoch in range(3):
    for images, labels in digit_batches(64, epoch=epoch):  # every rank reads the same batches
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(images.to(device))
        else:
            schedule.step(target=labels.to(device) if rank == p - 1 else None)
        optimizer.step()

parts = [{}] * p  # for a look at the test digits all stages meet on every rank: they are small
dist.all_gather_object(parts, {number: module.cpu() for number, module in modules.items()})
everything = {number: module for some in parts for number, module in some.items()}
if rank == 0:
    images, labels = digits("test")
    scores = nn.Sequential(*(everything[number] for number in range(last + 1)))(images)
    right = (scores.argmax(dim=1) == labels).float().mean().item()
    print(f"zero bubble, {p} ranks on {device.type}: {right:.0%} of the test digits are right")
dist.destroy_process_group()
