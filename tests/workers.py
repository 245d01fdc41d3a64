"""Functions that tests run on ranks. They stand here, and not in a test file, so that a rank need not import pytest."""
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure


class Net(nn.Module):
    """Five layers of odd sizes; the last is tied to the first, one is frozen, one buffer."""

    def __init__(self, width: int = 301):
        super().__init__()
        self.first = nn.Linear(64, width, bias=False)
        self.middle = nn.Linear(width, 127)
        self.frozen = nn.Linear(127, 33).requires_grad_(False)
        self.back = nn.Linear(33, width)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, x):
        hidden = F.relu(self.middle(F.relu(self.first(x))))
        return F.linear(self.back(F.relu(self.frozen(hidden))), self.first.weight.t())


def sizes(model: nn.Module) -> dict:
    """Bytes of the model's distinct parameters: all, and those that learn; and how many tensors learn."""
    params = list(model.parameters())
    learn = [p for p in params if p.requires_grad]
    return {"params": sum(p.nbytes for p in params), "grads": sum(p.nbytes for p in learn), "learning": len(learn),
            "shapes": [tuple(p.shape) for p in params], "learns": [p.requires_grad for p in params]}


def train(model, optimizer, steps: int = 4, accumulate: int = 1, inputs: int = 64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        with measure.step(model, optimizer, samples=8 * accumulate):
            for micro in range(accumulate):
                x = torch.randn(8, inputs, generator=generator, dtype=dtype)
                if micro < accumulate - 1:
                    with model.no_sync():
                        model(x).square().mean().backward()
                else:
                    model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def ddp(hook=None, accumulate=1, zero=False, bucket_view=False, steps=4, width=301):
    torch.manual_seed(0)
    net = Net(width)
    told = sizes(net)
    model = DistributedDataParallel(net, gradient_as_bucket_view=bucket_view)
    if hook == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    learn = [p for p in model.parameters() if p.requires_grad]
    optimizer = ZeroRedundancyOptimizer(learn, optimizer_class=torch.optim.Adam) if zero else torch.optim.Adam(learn)
    train(model, optimizer, accumulate=accumulate, steps=steps)
    if zero:
        mine = {p for p in learn if p in optimizer.state}
        told["mine"] = [tuple(p.shape) for p in mine]
    return told


def sharded(per_layer: bool = True, reshard: bool = True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 333), nn.ReLU(), nn.Linear(333, 10))
    net[2].bias.requires_grad_(False)
    told = sizes(net)
    if per_layer:
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, reshard_after_forward=reshard)
    fully_shard(net, reshard_after_forward=reshard)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    train(net, optimizer)
    return told


class TwoLayers(nn.Module):
    def __init__(self, inputs=64, hidden=512):
        super().__init__()
        self.up, self.down = nn.Linear(inputs, hidden), nn.Linear(hidden, inputs)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


def tensor_parallel():
    torch.manual_seed(0)
    net = nn.Sequential(TwoLayers(), TwoLayers())
    told = sizes(net)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        with measure.step(net, optimizer, samples=256):
            net(torch.ones(256, 64, requires_grad=True)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return told


def torch_pipeline(num_microbatches: int = 4):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
    torch.manual_seed(0)
    rank, size = dist.get_rank(), dist.get_world_size()
    net = nn.Linear(256, 256)
    stage = PipelineStage(net, rank, size, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, num_microbatches, loss_fn=lambda out, target: (out - target).square().mean())
    x, target = torch.randn(64, 256), torch.zeros(64, 256)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        with measure.step(net, optimizer):
            if rank == 0:
                schedule.step(x)
            elif rank == size - 1:
                schedule.step(target=target)
            else:
                schedule.step()
            optimizer.step()
            optimizer.zero_grad()


def send_receive(numel: int = 100_000):
    """A ring shift with isend and irecv, then a plain send and recv between ranks 0 and 1, in float64."""
    rank, size = dist.get_rank(), dist.get_world_size()
    x, y = torch.ones(numel, dtype=torch.float64), torch.empty(numel, dtype=torch.float64)
    for _ in range(3):
        with measure.step():
            for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, (rank + 1) % size), dist.P2POp(dist.irecv, y, (rank - 1) % size)]):
                work.wait()
            if rank == 0:
                dist.send(x, 1)
            elif rank == 1:
                dist.recv(y, 0)


def collective(op: str, nbytes: int, dtype=torch.float32):
    """One collective over a full tensor of about nbytes (a multiple of the ranks where the operation needs it)."""
    size, rank = dist.get_world_size(), dist.get_rank()
    numel = nbytes // dtype.itemsize
    shard = -(-numel // size)
    whole, part = torch.ones(shard * size, dtype=dtype), torch.ones(shard, dtype=dtype)
    odd = torch.ones(numel, dtype=dtype)
    pieces = list(whole.chunk(size))
    calls = {
        "all_reduce": lambda: dist.all_reduce(odd),
        "all_gather": lambda: dist.all_gather(pieces, part),
        "reduce_scatter": lambda: dist.reduce_scatter(part, pieces),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(whole), whole),
        "broadcast": lambda: dist.broadcast(odd, 0),
        "reduce": lambda: dist.reduce(odd, 0),
        "gather": lambda: dist.gather(part, pieces if rank == 0 else None, 0),
        "scatter": lambda: dist.scatter(part, pieces if rank == 0 else None, 0),
        "barrier": lambda: dist.barrier(),
    }
    for _ in range(3):
        with measure.step():
            calls[op]()


def nothing():
    dist.all_reduce(torch.ones(1))


def groups():
    """An all_reduce in each pair of a 2 x 2 mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    x = torch.ones(1000)
    for _ in range(2):
        with measure.step():
            dist.all_reduce(x, group=mesh.get_group("dp"))
            dist.all_reduce(x, group=mesh.get_group("tp"))
            dist.all_reduce(x)


def sleeper(seconds: float):
    time.sleep(seconds)
    return dist.get_rank()
