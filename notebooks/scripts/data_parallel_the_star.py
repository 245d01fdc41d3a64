"""A training that had nn.DataParallel, moved to DistributedDataParallel. "was:" and "new:" mark what changed.

torchrun --standalone --nproc-per-node 2 data_parallel_the_star.py
"""

import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from course_lib.datasets import digits  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

# new: each process finds its own GPU, and joins the others
local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)  # was: "cuda:0", the root
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")

torch.manual_seed(0)
model = MLP((64, 256, 10)).to(device)
parallel = DistributedDataParallel(model)  # was: nn.DataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

data = TensorDataset(*digits("train"))
sampler = DistributedSampler(data)  # was: shuffle=True, and the root dealt out each batch
loader = DataLoader(data, batch_size=64 // dist.get_world_size(), sampler=sampler)  # was: 64, for all GPUs
for epoch in range(3):
    sampler.set_epoch(epoch)  # new: another order in every epoch
    for images, labels in loader:
        loss = F.cross_entropy(parallel(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

model.eval()
images, labels = digits("test")
with torch.no_grad():
    right = (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
if dist.get_rank() == 0:  # new: every process would print
    print(f"{dist.get_world_size()} processes on {device.type}: {right:.0%} of the test digits are right")
dist.destroy_process_group()  # new
