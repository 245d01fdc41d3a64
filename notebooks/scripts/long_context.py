"""Sequences that no rank has whole: torch's context_parallel on GPUs, mini.context on a CPU.

torchrun --standalone --nproc-per-node 2 long_context.py
"""

import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib.mini import context  # for a CPU; on GPUs the model alone is the course's
from course_lib.models import GPTScores

TIME, LETTERS, BATCH = 32, 16, 32
local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
mesh = init_device_mesh(device.type, (dist.get_world_size(),))

torch.manual_seed(0)
model = GPTScores(vocab_size=LETTERS, context=TIME, dim=32, layers=1, tied=False).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
if device.type == "cpu":  # where context_parallel has no kernel
    context.attach(model, context.ring_attention)
model = DistributedDataParallel(model)
for step in range(100):
    half = torch.randint(LETTERS, (BATCH, TIME // 2), generator=torch.Generator().manual_seed(step))
    tokens = torch.cat([half, half, half[:, :1]], 1).to(device)
    # shifted while the sequence is whole, then cut
    inputs, targets, places = tokens[:, :-1].clone(), tokens[:, 1:].clone(), torch.arange(TIME, device=device)
    if device.type == "cuda":
        cut = context_parallel(mesh, buffers=[inputs, targets, places], buffer_seq_dims=[1, 1, 0])
    else:
        cut, mine = nullcontext(), context.positions(TIME)
        inputs, targets, places = inputs[:, mine], targets[:, mine], places[mine]
    with cut:
        late = places >= TIME // 2  # the same number on each rank: so DDP's mean of means is right
        scores, targets = model(inputs, places)[:, :, late], targets[:, late]
        F.cross_entropy(scores, targets).backward()
        right = (scores.argmax(1) == targets).sum()
    optimizer.step()
    optimizer.zero_grad()
dist.all_reduce(right)
if dist.get_rank() == 0:
    known = round(LETTERS * right.item() / (BATCH * TIME // 2))
    print(
        f"{processes_here} ranks on {device.type}: {known} of {LETTERS} letters of the second half are right"
    )
dist.barrier()  # nobody leaves while another still works
dist.destroy_process_group()
