"""ZeroRedundancyOptimizer with DDP: train two epochs, save, make everything anew, load, train a third.

torchrun --standalone --nproc-per-node 2 zero_stage_1.py
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib.datasets import digit_accuracy, digit_batches  # the data and the model; the rest is PyTorch
from course_lib.models import digit_mlp

if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()


def make():
    torch.manual_seed(0)
    model = DistributedDataParallel(digit_mlp().to(device))
    return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.003)


def train(model, optimizer, epoch):
    for images, labels in digit_batches(64, rank, n, epoch=epoch):
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()


with tempfile.TemporaryDirectory() as folder:  # in your job: one that all hosts see, and that stays
    dist.broadcast_object_list(paths := [os.path.join(folder, "checkpoint.pt")])  # rank 0's
    model, optimizer = make()
    for epoch in range(2):
        train(model, optimizer, epoch)
    optimizer.consolidate_state_dict(to=0)  # every rank calls it: all states travel to rank 0
    if rank == 0:
        torch.save([model.module.state_dict(), optimizer.state_dict()], paths[0])
    dist.barrier()

    model, optimizer = make()
    weights, states = torch.load(paths[0], map_location=device, mmap=True, weights_only=True)
    model.module.load_state_dict(weights)
    optimizer.load_state_dict(states)  # each rank keeps the states of its own parameters
    train(model, optimizer, epoch=2)

right = f"{digit_accuracy(model.module.cpu()):.0%}"
if rank == 0:
    print(f"{n} process{'es' * (n > 1)} on {device.type}, with a stop: {right} of the test digits are right")
dist.destroy_process_group()
