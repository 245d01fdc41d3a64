"""A pipeline by torch: each rank has some of the layers, and Schedule1F1B runs 8 micro-batches through them.

torchrun --standalone --nproc-per-node 2 pipeline.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
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
rank, n = dist.get_rank(), dist.get_world_size()
first, last = rank == 0, rank == n - 1

torch.manual_seed(0)  # the same layers on every rank; each keeps its own
layers = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)]
mine = torch.arange(len(layers)).tensor_split(n)[rank].tolist()  # of 2 ranks: 0 and 1, 2 and 3
module = nn.Sequential(*(layers[number] for number in mine)).to(device)
optimizer = torch.optim.Adam(module.parameters(), lr=0.002)
schedule = Schedule1F1B(PipelineStage(module, rank, n, device), n_microbatches=8, loss_fn=F.cross_entropy)
for epoch in range(3):
    for images, labels in digit_batches(64, epoch=epoch):
        if first:
            schedule.step(images.to(device))
        elif last:
            schedule.step(target=labels.to(device), losses=[])
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()

images, labels = digits("test")  # of another size than a batch: so by hand, from stage to stage
with torch.no_grad():
    x = images.to(device) if first else torch.empty(len(images), 256, device=device)
    if not first:
        dist.recv(x, rank - 1)
    scores = module(x)
if last:
    right = (scores.argmax(dim=1).cpu() == labels).float().mean().item()
    print(f"{n} ranks on {device.type}, torch's Schedule1F1B: {right:.0%} of the test digits are right")
else:
    dist.send(scores.contiguous(), rank + 1)
dist.destroy_process_group()
