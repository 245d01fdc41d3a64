"""A training with DDP that asks three questions by itself: who waits, what differs between ranks, and what
was counted.

torchrun --standalone --nproc-per-node 2 clinic.py
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from torch.profiler import profile

from course_lib.datasets import digit_accuracy, digit_batches  # the data and the model; the rest is PyTorch
from course_lib.models import MLP

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()

torch.manual_seed(rank)
ddp = DistributedDataParallel(MLP((64, 128, 10)).to(device))
optimizer = torch.optim.Adam(ddp.parameters(), lr=0.01)
samples = torch.zeros((), dtype=torch.int64, device=device)
fingers = [torch.zeros(1, device=device) for _ in range(n)]

for epoch in range(3):
    if dist.get_backend() == "gloo":  # who waits: after 60 s, an error that names who has not come
        dist.monitored_barrier(timeout=timedelta(seconds=60))
    for images, labels in digit_batches(64, rank, n, epoch=epoch):
        F.cross_entropy(ddp(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        samples += len(labels)
    # what differs: one number of each rank's weights
    dist.all_gather(fingers, parameters_to_vector(ddp.parameters()).detach().norm()[None])
    assert all(finger == fingers[0] for finger in fingers), f"after epoch {epoch} the ranks differ: {fingers}"

with profile() as seen:  # what was counted: samples, and the calls of one step
    F.cross_entropy(ddp(images.to(device)), labels.to(device)).backward()
calls = sum(row.count for row in seen.key_averages() if row.key == "c10d::allreduce_")
dist.all_reduce(samples)
accuracy = digit_accuracy(ddp.module.cpu())
if rank == 0:
    print(f"{n} processes agree after {samples} samples, {calls} all_reduce in a step:", end=" ")
    print(f"{accuracy:.0%} of the test digits are right")
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
