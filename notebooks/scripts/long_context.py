"""Sequences that no rank has whole: torch's context_parallel on GPUs, mini.context on a CPU.

torchrun --standalone --nproc-per-node 2 long_context.py
"""

import os
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional as F

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
n = dist.get_world_size()


@contextmanager
def on_a_cpu(buffers, buffer_seq_dims):  # as context_parallel cuts them, in zig-zag order
    for buffer, dim in zip(buffers, buffer_seq_dims):
        mine = buffer.index_select(dim, context.positions(TIME))
        buffer.resize_(mine.shape).copy_(mine)
    yield


torch.manual_seed(0)
model = GPTScores(vocab_size=LETTERS, context=TIME, dim=32, layers=1, tied=False).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
cut = partial(context_parallel, init_device_mesh("cuda", (n,))) if device.type == "cuda" else on_a_cpu
if device.type == "cpu":
    context.attach(model, context.ring_attention)
for step in range(60):
    letters = torch.randint(LETTERS, (BATCH, TIME // 2), generator=torch.Generator().manual_seed(step))
    tokens = torch.cat([letters, letters, letters[:, :1]], 1).to(device)
    inputs, targets, places = tokens[:, :-1].clone(), tokens[:, 1:].clone(), torch.arange(TIME, device=device)
    with cut(buffers=[inputs, targets, places], buffer_seq_dims=[1, 1, 0]):  # shifted before
        scores = model(inputs, places)
        (F.cross_entropy(scores, targets, reduction="sum") / (BATCH * TIME)).backward()
        right = (scores.argmax(1) == targets)[:, places >= TIME // 2].sum()
    for p in model.parameters():
        dist.all_reduce(p.grad)  # each rank has an addend, of its tokens
    optimizer.step()
    optimizer.zero_grad()
dist.all_reduce(right)
if dist.get_rank() == 0:
    known = round(LETTERS * right.item() / (BATCH * TIME // 2))
    print(f"{n} ranks on {device.type}: {known} of {LETTERS} letters of the second half are right")
dist.destroy_process_group()
