"""torch's fully_shard: parameters that stay from forward to backward (the messages of stage 2), and stage 3.

torchrun --standalone --nproc-per-node 2 zero_stages_2_and_3.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

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
rank, n = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh(device.type, (n,))


def train(reshard: bool) -> str:
    """Train with one of the two; return what it reached and, on a GPU, what it held at the worst moment."""
    torch.manual_seed(0)
    model = MLP((64, 256, 10)).to(device)
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)  # each layer is a unit
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)  # the root: it begins each forward
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)  # after sharding: of the shards
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for epoch in range(3):
        for images, labels in digit_batches(64, rank, n, epoch=epoch):
            F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    images, labels = digits("test")
    with torch.no_grad():  # every rank: a forward gathers
        right = (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
    peak = f", {torch.cuda.max_memory_allocated() / 1e6:.1f} MB at most" if device.type == "cuda" else ""
    return f"{right:.0%} of the test digits are right{peak}"


for reshard in (False, True):
    told = train(reshard)
    if rank == 0:
        print(f"reshard_after_forward={reshard}, {n} ranks on {device.type}: {told}")
dist.destroy_process_group()
