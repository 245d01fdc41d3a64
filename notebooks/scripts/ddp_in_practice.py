"""DDP as one runs it: each rank its part of the data, an exact accuracy, and a checkpoint from which the
same command goes on.

torchrun --standalone --nproc-per-node 2 ddp_in_practice.py --epochs 3 --checkpoint digits.pt
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from course_lib.datasets import digits  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--checkpoint", default="digits.pt")
options = parser.parse_args()
local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
device, backend = torch.device("cpu"), {"backend": "gloo"}
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    backend = {"backend": "nccl", "device_id": device}
dist.init_process_group(**backend)
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
ddp = DistributedDataParallel(MLP((64, 256, 10)).to(device))
optimizer = torch.optim.Adam(ddp.parameters(), lr=0.01)
data, test = TensorDataset(*digits("train")), TensorDataset(*digits("test"))
loader = DataLoader(data, batch_size=32, sampler=DistributedSampler(data))
first = 0
if os.path.exists(options.checkpoint):
    saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
    ddp.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
for epoch in range(first, options.epochs):
    loader.sampler.set_epoch(epoch)
    for images, labels in loader:
        F.cross_entropy(ddp(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        content = {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(content, f"{options.checkpoint}.new")
        os.replace(f"{options.checkpoint}.new", options.checkpoint)  # never half a file
    dist.barrier()
model, right = ddp.module.eval(), torch.zeros(1, device=device)
with torch.no_grad():
    for images, labels in DataLoader(Subset(test, range(rank, len(test), ranks)), batch_size=32):
        right += (model(images.to(device)).argmax(dim=1) == labels.to(device)).sum()
dist.all_reduce(right)
if rank == 0:
    print(f"{ranks} processes, epochs {first} to {options.epochs}: {right.item() / len(test):.0%} are right")
dist.destroy_process_group()
