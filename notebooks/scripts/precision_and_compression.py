"""Digits with DDP, autocast to bfloat16, and gradients that are compressed: in float16, then by PowerSGD.

torchrun --standalone --nproc-per-node 2 precision_and_compression.py
"""

import os
import time

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib.datasets import digit_batches, digits
from course_lib.models import digit_mlp

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
rank, n = dist.get_rank(), dist.get_world_size()


def train(hook, state):
    torch.manual_seed(0)  # the same start on every rank
    model = DistributedDataParallel(digit_mlp().to(device))
    model.register_comm_hook(state, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    begin = time.perf_counter()
    for epoch in range(5):
        for images, labels in digit_batches(64, rank, n, epoch=epoch):
            with torch.autocast(device.type, torch.bfloat16):  # float16 would need a GradScaler
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()  # float32 gradients; the hook compresses them
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - begin
    images, labels = digits("test")
    with torch.no_grad():
        right = (model.module(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
    if rank == 0:
        print(f"{hook.__name__}: {right:.0%} of the test digits are right, {seconds:.1f} s ({device.type})")


train(default_hooks.fp16_compress_hook, None)
# from the third step on: DDP changes its buckets after the first. The default is the 1,000th
state = powerSGD_hook.PowerSGDState(None, 2, start_powerSGD_iter=2, min_compression_rate=1)
train(powerSGD_hook.powerSGD_hook, state)
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
