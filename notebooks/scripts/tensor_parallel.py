"""torch's tensor parallelism: an MLP whose layers are cut by a plan. All ranks see the same batches.

torchrun --standalone --nproc-per-node 2 tensor_parallel.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from course_lib.datasets import digit_batches  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("tp",))

torch.manual_seed(0)  # the same on every rank: all make the whole model, and cut it
model = MLP((64, 256, 10)).double().to(device)
whole = sum(p.numel() for p in model.parameters())
plan = {"layers.0": ColwiseParallel(), "layers.2": RowwiseParallel()}
parallelize_module(model, mesh["tp"], plan)
held = sum(p.to_local().numel() for p in model.parameters())  # the second bias is whole

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
losses = []
for images, labels in digit_batches(64):  # no rank: the same samples on every rank
    losses.append(F.cross_entropy(model(images.double().to(device)), labels.to(device)))
    losses[-1].backward()
    optimizer.step()
    optimizer.zero_grad()

if dist.get_rank() == 0:
    print(
        f"{dist.get_world_size()} ranks on {device.type}, each with {held:,} of {whole:,} parameters:",
        end=" ",
    )
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} in step {len(losses)}")
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
