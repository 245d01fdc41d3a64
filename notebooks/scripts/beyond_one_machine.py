"""DDP over several hosts: says where its ranks are, and learns handwritten digits.

On each host, with the address of one of them:
torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=ADDRESS:29500 beyond_one_machine.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib.datasets import digit_batches, digits  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)  # by its number on this host, not in the world
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()

host_of: list = [None] * world_size
dist.all_gather_object(host_of, int(os.environ["GROUP_RANK"]))  # torchrun numbers the hosts
if rank == 0:
    for host in sorted(set(host_of)):
        print(f"host {host}: ranks {[other for other in range(world_size) if host_of[other] == host]}")

torch.manual_seed(0)
model = DistributedDataParallel(MLP((64, 64, 10)).to(device))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(2):
    for images, labels in digit_batches(64, epoch=epoch):  # the whole batch, of which each rank takes a part
        x, y = images.chunk(world_size)[rank].to(device), labels.chunk(world_size)[rank].to(device)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

images, labels = digits("test")
with torch.no_grad():
    right = (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
if rank == 0:
    print(f"a world of {world_size} ranks: {right:.0%} of the test digits are right")
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
