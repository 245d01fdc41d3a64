"""A model that is made on the meta device, trained in shards and bfloat16, saved, and resumed in a new model.

torchrun --standalone --nproc-per-node 2 fully_shard_in_practice.py
"""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from course_lib.datasets import digit_batches, digits  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
if on_gpus:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if on_gpus else "gloo", device_id=device if on_gpus else None)
rank, n, names = dist.get_rank(), dist.get_world_size(), ("model", "optimizer")
mesh = dist.init_device_mesh(device.type, (n,))  # else fully_shard takes a GPU, where one is


def sharded():
    with torch.device("meta"):
        model = MLP()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)  # parameters, reduce, output
    for module in (model.layers[0], model.layers[2], model):  # each Linear, then the whole
        fully_shard(module, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    return model, torch.optim.Adam(model.parameters(), lr=0.003)


def train(model, optimizer, epoch):
    for images, labels in digit_batches(64, rank, n, epoch=epoch):
        torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


model, optimizer = sharded()
torch.manual_seed(0)
values = MLP().state_dict() if rank == 0 else {}  # small enough for one rank
states.set_model_state_dict(model, values, options=states.StateDictOptions(True, broadcast_from_rank0=True))
train(model, optimizer, epoch=0)
folder = os.path.join(tempfile.gettempdir(), os.environ["TORCHELASTIC_RUN_ID"])  # one that all hosts see
dcp.save(dict(zip(names, states.get_state_dict(model, optimizer))), checkpoint_id=folder)
model, optimizer = sharded()  # as after a restart
dcp.load(saved := dict(zip(names, states.get_state_dict(model, optimizer))), checkpoint_id=folder)
states.set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
train(model, optimizer, epoch=1)
images, labels = digits("test")
right = (model.eval()(images.to(device)).argmax(dim=1).cpu() == labels).float().mean().item()
if rank == 0:
    print(f"{n} processes on {device.type}, saved and resumed: {right:.0%} of the test digits are right")
dist.destroy_process_group()
