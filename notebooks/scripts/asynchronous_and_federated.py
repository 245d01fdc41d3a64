"""Local SGD with torch's own parts: the weights are averaged every 8 steps; before that, DDP for 16 steps.

torchrun --standalone --nproc-per-node 2 asynchronous_and_federated.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib.datasets import digit_accuracy, digit_batches

LOCAL_STEPS, WARM_UP = 8, 16
local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
ddp = DistributedDataParallel(model)
alone, _ = dist.new_subgroups(group_size=1)  # whose gradients are averaged after the warm-up: this rank's
state = PostLocalSGDState(process_group=None, subgroup=alone, start_localSGD_iter=WARM_UP)
ddp.register_comm_hook(state, post_localSGD_hook)
optimizer = PostLocalSGDOptimizer(
    optim=torch.optim.SGD(model.parameters(), lr=0.1),
    averager=PeriodicModelAverager(period=LOCAL_STEPS, warmup_steps=WARM_UP),
)
for epoch in range(10):
    for images, labels in digit_batches(64, rank, n, epoch=epoch):
        optimizer.zero_grad()
        F.cross_entropy(ddp(images.to(device)), labels.to(device)).backward()
        optimizer.step()
with torch.no_grad():  # the last steps were local
    for p in model.parameters():
        dist.all_reduce(p)
        p /= n
right = digit_accuracy(model.cpu())
if rank == 0:
    print(f"{n} ranks ({device.type}), weights averaged every {LOCAL_STEPS} steps: {right:.0%} are right")
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
