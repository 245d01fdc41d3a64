"""What ranks run in the tests of mini.reading."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from course_lib.mini import reading

SAMPLES, BATCH = 50, 12


def go_on(saved, steps, workers):
    """Some steps of training, and what this rank has read in each."""
    torch.set_default_device(None)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    x, y = torch.randn(SAMPLES, 6).double(), torch.randint(3, (SAMPLES,))
    ddp = DistributedDataParallel(nn.Linear(6, 3).double())
    optimizer = torch.optim.Adam(ddp.parameters(), 0.05)
    places = reading.Steps(SAMPLES, BATCH, 7, rank, ranks)
    if saved:
        ddp.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        places.load_state_dict(saved["places"])
    read = []
    loader = DataLoader(TensorDataset(x, y, torch.arange(SAMPLES)), batch_sampler=places, num_workers=workers)
    for _, (inputs, labels, numbers) in zip(range(steps), loader):
        weights = labels.double() + 1
        optimizer.zero_grad()
        losses = F.cross_entropy(ddp(inputs), labels, reduction="none")
        reading.mean_over_ranks(losses, weights).backward()
        optimizer.step()
        places.done()
        read.append(numbers.tolist())
    state = {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict()}
    return state | {"places": places.state_dict()}, read


def uneven_gradient(sizes):
    """The gradient where each rank has so many samples, and that of one process."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    x, weights = torch.randn(sum(sizes), 6).double(), torch.rand(sum(sizes)).double()
    net = nn.Linear(6, 1).double()
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    reading.mean_over_ranks(net(x[mine]).square()[:, 0], weights[mine]).backward()
    dist.all_reduce(net.weight.grad)
    found = net.weight.grad / dist.get_world_size()
    (wanted,) = torch.autograd.grad((net(x).square()[:, 0] * weights).sum() / weights.sum(), [net.weight])
    return (found - wanted).norm().item() / wanted.norm().item()


def shards(sizes, workers):
    """What each reader of this rank yields and reads."""
    torch.set_default_device(None)
    first = [sum(sizes[:shard]) for shard in range(len(sizes))]

    def read(shard, start, stop):
        return [(shard, first[shard] + i, start, stop) for i in range(start, stop)]

    data = reading.Shards(sizes, read, dist.get_rank(), dist.get_world_size())
    return [tuple(one) for one in DataLoader(data, batch_size=None, num_workers=workers)]
