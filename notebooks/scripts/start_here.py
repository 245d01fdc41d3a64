"""Train the digits of the chapter "Start here" on ranks that torchrun starts, on GPUs or CPUs:

torchrun --standalone --nproc-per-node 2 start_here.py
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib import datasets, models  # the data and the model; the rest is PyTorch alone


def start() -> torch.device:
    """Join the process group; return this rank's device."""
    local_rank, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.device_count() < here:  # NCCL wants a GPU for each rank
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def train(device: torch.device, epochs: int = 6, batch_size: int = 64) -> DistributedDataParallel:
    torch.manual_seed(0)
    model = DistributedDataParallel(models.MLP((64, 256, 10)).to(device), gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for epoch in range(epochs):
        batches = datasets.digit_batches(batch_size, dist.get_rank(), dist.get_world_size(), epoch=epoch)
        for images, labels in batches:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@torch.no_grad()
def accuracy(model: torch.nn.Module, device: torch.device) -> float:
    model.eval()
    images, labels = datasets.digits("test")
    return (model(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()


device = start()
reached = accuracy(train(device), device)
if dist.get_rank() == 0:
    print(f"{dist.get_world_size()} ranks on {device.type}: {reached:.1%} of the test images are right")
dist.destroy_process_group()
