"""Train digits with DDP; bucket size, communication hook and a profiler's trace from the command line.

torchrun --standalone --nproc-per-node 2 overlap_and_speedup.py --bucket-cap-mb 0.25 --hook fp16
"""

import argparse
import os
import time
from itertools import islice

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import profile

from course_lib.datasets import digit_accuracy, digit_batches  # the data and the model; the rest is PyTorch
from course_lib.models import MLP

parser = argparse.ArgumentParser()
parser.add_argument("--bucket-cap-mb", type=float, default=25)
parser.add_argument("--hook", choices=["none", "fp16"], default="none")
parser.add_argument("--trace", help="a file for the timeline of one step, to open with ui.perfetto.dev")
args = parser.parse_args()
gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
if gpus:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)
rank, n = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = DistributedDataParallel(MLP((64, 256, 256, 10)).to(device), bucket_cap_mb=args.bucket_cap_mb)
if args.hook == "fp16":
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)


def train(batches):
    for images, labels in batches:
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if gpus:
        torch.cuda.synchronize()  # NCCL's calls return before the work is done


train(digit_batches(64, rank, n))  # warm: afterwards, DDP's buckets are in their order
with profile() as profiler:
    train(islice(digit_batches(64, rank, n, epoch=1), 1))  # one step
if args.trace and rank == 0:  # looking for a straggler, keep the traces of several ranks
    profiler.export_chrome_trace(args.trace)
data = [batch for epoch in range(2, 12) for batch in digit_batches(64, rank, n, epoch=epoch)]
begin = time.perf_counter()
train(data)
if rank == 0:
    samples_per_s = 64 * len(data) / (time.perf_counter() - begin)
    print(f"{n} rank{'s' * (n > 1)}, {dist.get_backend()}: {samples_per_s:,.0f} samples/s")
    print(f"accuracy: {digit_accuracy(model.module.cpu()):.1%} of the test digits")
dist.destroy_process_group()
