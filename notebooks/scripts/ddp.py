"""A training with DDP that tests itself: its first gradients against one process with the whole batch.

torchrun --standalone --nproc-per-node 2 ddp.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from course_lib.datasets import digit_batches, digits  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()

torch.manual_seed(rank)  # DDP broadcasts the weights of rank 0
model = MLP((64, 256, 10)).to(device)
ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.Adam(ddp.parameters(), lr=0.01)


def gradient_error(images, labels) -> float:
    """After the first backward: this rank's gradients against one process with the whole batch."""
    loss = F.cross_entropy(model(images), labels)  # past DDP: nothing is sent
    wanted = parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))
    found = parameters_to_vector(p.grad for p in model.parameters())
    return ((found - wanted).norm() / wanted.norm()).item()


error = None
for epoch in range(3):
    for images, labels in digit_batches(64, epoch=epoch):  # the whole batch, of which each rank takes a part
        images, labels = images.to(device), labels.to(device)
        x, y = images.chunk(world_size)[rank], labels.chunk(world_size)[rank]
        F.cross_entropy(ddp(x), y).backward()
        if error is None:
            error = gradient_error(images, labels)
        optimizer.step()
        optimizer.zero_grad()

model.eval()
images, labels = digits("test")
with torch.no_grad():
    right = (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
if rank == 0:
    print(f"{world_size} process{'es' * (world_size > 1)} on {device.type}:", end=" ")
    print(f"gradients of one process: {error < 1e-4};", end=" ")
    print(f"{right:.0%} of the test digits are right")
dist.destroy_process_group()
