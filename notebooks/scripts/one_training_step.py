"""Micro-batches, a loss with weights and one clip, on any number of ranks: the weights of one process.

torchrun --standalone --nproc-per-node 2 notebooks/scripts/one_training_step.py
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from course_lib.datasets import digit_accuracy, digit_batches, rank_slice
from course_lib.models import digit_mlp


def gradients(model, images, labels, micro_batch_size=16):
    """Leave in `.grad` the gradient of the mean over the known labels (not -100) of all ranks."""
    total = (labels != -100).sum()
    dist.all_reduce(total)  # how many labels all ranks know together
    parts = list(zip(images.split(micro_batch_size), labels.split(micro_batch_size)))
    for number, (x, y) in enumerate(parts, start=1):
        # DDP talks to the other ranks in the last backward alone
        with contextlib.nullcontext() if number == len(parts) else model.no_sync():
            loss = F.cross_entropy(model(x), y, reduction="sum") / total
            (loss * dist.get_world_size()).backward()  # because DDP divides by it


gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
if gpus:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)

torch.manual_seed(0)
alone = digit_mlp().to(device)  # one process: it sees whole batches, and talks to nobody
model = DistributedDataParallel(digit_mlp().to(device), gradient_as_bucket_view=True)
model.module.load_state_dict(alone.state_dict())
optimizer = torch.optim.SGD([*model.parameters(), *alone.parameters()], lr=0.3)
for epoch in range(6):
    for images, labels in digit_batches(100, epoch=epoch):
        labels[images.mean(dim=(1, 2, 3)) > 0.32] = -100  # the darkest images have no label
        images, labels = images.to(device), labels.to(device)
        mine = rank_slice(len(labels), dist.get_rank(), dist.get_world_size())
        gradients(model, images[mine], labels[mine])
        F.cross_entropy(alone(images), labels).backward()
        for network in (model, alone):
            clip_grad_norm_(network.parameters(), 0.5)  # once, when the gradient is whole
        optimizer.step()
        optimizer.zero_grad()

if dist.get_rank() == 0:
    found, wanted = (parameters_to_vector(network.parameters()) for network in (model, alone))
    apart = (found - wanted).norm() / wanted.norm()
    print(f"{dist.get_world_size()} ranks, {dist.get_backend()}: weights {apart:.0e} apart")
    print(f"accuracy {digit_accuracy(model.module.cpu()):.3f}, one process {digit_accuracy(alone.cpu()):.3f}")
dist.destroy_process_group()
