"""Shards that are saved while training goes on; a job that is killed goes on from its last complete save.

KILL_AT=25 torchrun --standalone --nproc-per-node 2 --max-restarts 2 checkpoints_and_restarts.py
"""

import itertools
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import fully_shard

from course_lib.datasets import digit_batches, digits  # the data; the rest is PyTorch alone


def everything():  # on GPUs, torch.cuda.get_rng_state() as well
    weights, moments = states.get_state_dict(model, optimizer)
    return {"weights": weights, "optimizer": moments, f"random {rank}": torch.get_rng_state()}


env = os.environ
folder = env.get("SAVES", f"{tempfile.gettempdir()}/{env['TORCHELASTIC_RUN_ID']}")  # that all hosts see
on_gpus = torch.cuda.device_count() >= int(env["LOCAL_WORLD_SIZE"])
device = torch.device("cuda", int(env["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
if on_gpus:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if on_gpus else "gloo", device_id=device if on_gpus else None)
rank, n, attempt = dist.get_rank(), dist.get_world_size(), int(env["TORCHELASTIC_RESTART_COUNT"])
group, saving = dist.new_group(backend="gloo"), None  # for the thread that saves, and for nobody else
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
fully_shard(model.to(device), mesh=dist.init_device_mesh(device.type, (n,)))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
torch.manual_seed(rank)

if done := max((int(found.parent.name) for found in Path(folder).glob("*/.metadata")), default=0):
    dcp.load(old := everything(), checkpoint_id=f"{folder}/{done}")
    states.set_model_state_dict(model, old["weights"])
    states.set_optimizer_state_dict(model, optimizer, old["optimizer"])
    torch.set_rng_state(old[f"random {rank}"])
epochs = itertools.chain.from_iterable(digit_batches(48, rank, n, epoch=e) for e in itertools.count())
for step, (images, labels) in enumerate(itertools.islice(epochs, done, 40), start=done):
    nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
    if (step, attempt, rank) == (int(env.get("KILL_AT", -1)), 0, 1):
        os.kill(os.getpid(), 9)  # SIGKILL, to see it come back
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        _ = saving and saving.result()  # one at a time: a second copy would need memory, too
        saving = dcp.async_save(everything(), checkpoint_id=f"{folder}/{step + 1}", process_group=group)
_ = saving and saving.result()
right = (model.eval()(digits("test")[0].to(device)).argmax(1).cpu() == digits("test")[1]).float().mean()
if rank == 0:
    print(f"{n} processes on {device.type}, attempt {attempt + 1}: {right:.0%} of the test digits are right")
dist.destroy_process_group()
