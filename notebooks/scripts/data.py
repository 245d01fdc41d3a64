"""Data for a job that goes on anywhere, with another number of processes: its place is a count of samples.

torchrun --standalone --nproc-per-node 2 data.py --until 2000 --checkpoint place.pt
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from course_lib.datasets import digits, mnist, rank_slice  # the data and the model; the rest is PyTorch alone
from course_lib.models import MLP

parser = argparse.ArgumentParser()
parser.add_argument("--mnist", help="a folder with the files of MNIST, in the place of the digits")
parser.add_argument("--until", type=int, help="train so many samples in all; four epochs if not given")
parser.add_argument("--checkpoint", default="place.pt")
options = parser.parse_args()
local_rank, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
device, backend = torch.device("cpu"), {"backend": "gloo"}
if torch.cuda.device_count() >= processes_here:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    backend = {"backend": "nccl", "device_id": device}
dist.init_process_group(**backend)
rank, ranks = dist.get_rank(), dist.get_world_size()
train, test = (mnist(options.mnist, s) if options.mnist else digits(s) for s in ("train", "test"))
samples, mine = len(train[1]), rank_slice(len(test[1]), rank, ranks)
torch.manual_seed(0)
ddp = DistributedDataParallel(MLP((train[0][0].numel(), 32, 10)).to(device))
optimizer, read = torch.optim.Adam(ddp.parameters(), lr=0.005), 0
if os.path.exists(options.checkpoint):
    saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
    ddp.module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    read = saved["read"]
first, until = read, options.until or 4 * samples
while read < until:  # the rest of an epoch
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(read // samples))
    batches = order[read % samples :].split(64)[: -(-(until - read) // 64)]
    own = [batch[rank_slice(len(batch), rank, ranks)].tolist() for batch in batches]
    loader = DataLoader(TensorDataset(*train), sampler=own, batch_size=None, num_workers=2)
    for batch, (images, labels) in zip(batches, loader):
        losses = F.cross_entropy(ddp(images.to(device)), labels.to(device), reduction="sum")
        optimizer.zero_grad()
        (losses * ranks / len(batch)).backward()
        optimizer.step()
        read += len(batch)  # when they are trained, not when workers have read them
right = (ddp.module(test[0][mine].to(device)).argmax(dim=1) == test[1][mine].to(device)).sum()
dist.all_reduce(right)
if rank == 0:  # all have read the old checkpoint by now
    content = {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "read": read}
    torch.save(content, f"{options.checkpoint}.new")
    os.replace(f"{options.checkpoint}.new", options.checkpoint)  # never half of it
    print(f"{ranks} processes, samples {first:,} to {read:,}: {right.item() / len(test[1]):.0%} are right")
dist.destroy_process_group()
