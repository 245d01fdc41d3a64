"""Two axes in torch's own two lines: tensor parallelism along one, fully_shard along the other.

torchrun --standalone --nproc-per-node 4 hybrid.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from course_lib.datasets import text_batches  # the data and the model; the rest is PyTorch alone
from course_lib.models import TinyGPT

BATCH, CONTEXT, STEPS, TP = 16, 32, 2, 2

local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")

tp = TP if dist.get_world_size() % TP == 0 else 1
mesh = init_device_mesh(device.type, (dist.get_world_size() // tp, tp), mesh_dim_names=("dp", "tp"))
dp_rank, dp = mesh.get_local_rank("dp"), mesh["dp"].size()

plan = {f"attention.{name}": ColwiseParallel() for name in "qkv"}
plan |= {"attention": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())}
plan |= {"attention.out": RowwiseParallel(), "mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()}

torch.manual_seed(0)  # the same weights on all ranks
model = TinyGPT(tied=False).double().to(device)
for block in model.blocks:
    parallelize_module(block, mesh["tp"], plan)
    fully_shard(block, mesh=mesh["dp"])
fully_shard(model, mesh=mesh["dp"])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # after both: of the shards

for tokens in text_batches(BATCH, CONTEXT, STEPS, dp_rank, dp):  # a row of tp gets the same tokens
    model(tokens.to(device)).backward()
    optimizer.step()
    optimizer.zero_grad()

with torch.no_grad():
    loss = model(next(text_batches(BATCH, CONTEXT, 1, seed=1)).to(device)).item()
if dist.get_rank() == 0:
    print(f"a mesh of dp {dp} x tp {tp}: loss {loss:.4f} after {STEPS} steps")
dist.destroy_process_group()
