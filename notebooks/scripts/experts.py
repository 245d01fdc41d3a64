"""Experts over all ranks: a small mixture learns the digits, top-2 of 8, kept even by a bias.

torchrun --standalone --nproc-per-node 2 experts.py
"""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib.datasets import digit_batches, digits
from course_lib.mini.experts import Experts, Router, average_gradients, load_of  # torch has none in public

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()


class DigitMixture(nn.Module):
    def __init__(self, dim: int = 64, count: int = 8):
        super().__init__()
        self.first, self.last = nn.Linear(64, dim), nn.Linear(dim, 10)
        router = Router(dim, count, top_k=2)
        all = [nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, dim)) for _ in range(count)]
        self.layer = Experts(router, all)  # a rank keeps count / n of them

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images.flatten(1)).relu()
        return self.last(x + self.layer(x))


torch.manual_seed(0)  # the same start on every rank
with device:
    model = DigitMixture()
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
begin = time.perf_counter()
for epoch in range(5):
    for images, labels in digit_batches(128, rank, n, epoch=epoch):
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        average_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        model.layer.router.rebalance(load_of(model.layer.routing), speed=0.02)
seconds = time.perf_counter() - begin
images, labels = digits("test")
with torch.no_grad():  # every rank: tokens travel
    right = (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
if rank == 0:
    print(f"{seconds:.1f} s on {n} ranks ({device.type}): {right:.0%} of the test digits are right")
dist.destroy_process_group()
