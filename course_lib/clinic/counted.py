"""Programs whose values may be right: what was counted, in bytes, calls, numbers held, and lines?"""

import importlib.metadata

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from course_lib.clinic.small import batches, flat, loss_of, mine, small_model
from course_lib.measure import wire
from course_lib.torch_internals import flight_records

__all__ = []  # families.py names what is here

# "model parallel"


def wrapped_in_data_parallel():
    model = _two_layers()
    held = nn.DataParallel(model).module  # "now the model is in parallel"
    return held(batches(1)[0][0]).detach(), _numbers(held) / _numbers(model)


def a_layer_on_each_rank():
    model, x = _two_layers(), batches(1)[0][0]
    own = model[dist.get_rank()]
    if dist.get_rank() == 0:
        dist.send(own(x).detach(), dst=1)
    else:
        dist.recv(x, src=0)
        x = own(x).detach()
    dist.broadcast(x, src=1)
    return x, _numbers(own) / _numbers(model)


def half_on_each_rank(rank):
    return _two_layers()(batches(1)[0][0]).detach(), 0.5


def _two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()


def _numbers(model):
    return sum(p.numel() for p in model.parameters())


# a line that is never printed


def every_2000_of_500():
    return _lines(500, every=2000)


def every_tenth_of_an_epoch():
    return _lines(500, every=500 // 10)


def _lines(count, every):
    printed = [i for i in range(count) if i % every == every - 1]
    return float(len(printed))


def ten_lines(rank):
    return 10.0


# "DDP collects the gradients on a master", "NCCL is a transport protocol", "pip install torch-distributed"


def as_it_is_said():
    return _who_sends(_star)


def installed_by_its_name():
    return importlib.metadata.version("torch-distributed")


def as_it_is():
    return _who_sends(dist.all_reduce)


def _star(tensor):
    dist.reduce(tensor, dst=0)
    dist.broadcast(tensor, src=0)


def _who_sends(all_reduce):
    """A sum; which share of all bytes this rank has sent; whether TCP carries them; and whether
    torch.distributed came with torch.
    """
    tensor = torch.full((1_000_000,), dist.get_rank() + 1.0)
    dist.barrier()
    before = wire.all_written_bytes()
    all_reduce(tensor)
    dist.barrier()
    written = torch.tensor(float(wire.all_written_bytes() - before))
    total = written.clone()
    dist.all_reduce(total)
    by_tcp = any(one.raddr for one in psutil.Process().net_connections("tcp"))
    with_torch = dist.__name__.split(".")[0] == "torch"
    return tensor[:1], (written / total).item(), float(by_tcp), float(with_torch)


def a_third_from_each(rank):
    return torch.full((1,), 6.0), 1 / 3, 1.0, 1.0


# gradients kept until the end


def kept_until_the_end():
    kept = list(map(_one_gradient, range(4)))
    return sum(kept), len(kept)


def added_at_once():
    total = _one_gradient(0)
    for number in range(1, 4):
        total += _one_gradient(number)
    return total, 1


def _one_gradient(number):
    """Of one micro-batch of this rank's part of the batch, averaged over ranks."""
    model, (x, y) = small_model(), batches(1)[0]
    x, y = mine(x)[number : number + 1], mine(y)[number : number + 1]
    parts = torch.autograd.grad(loss_of(model, x, y) / 4, list(model.parameters()))
    gradient = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()


def one_gradient_held(rank):
    model = small_model()
    loss_of(model, *batches(1)[0]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), 1


# the share of communication


def column_of_another_release():
    return _share("self_cuda_time_total", instead=0)


def column_that_is_there():
    return _share("cpu_time_total")


def _share(column, **default):
    """Whether the profile shows any time in all_reduce: 0 or 1."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        dist.all_reduce(torch.ones(1000))
    rows = [row for row in seen.key_averages() if "all_reduce" in row.key]
    assert rows, "no row has all_reduce in its name"
    return float(sum(getattr(row, column, *default.values()) for row in rows) > 0)


def some_of_it(rank):
    return 1.0


# an optimizer that claims to shard


def steps_all_and_sends_its_own():
    def make(params, rank, n):
        return torch.optim.Adam(params, lr=0.1)

    return _sharded(make)


def steps_its_own():
    def make(params, rank, n):
        return torch.optim.Adam(params[rank::n], lr=0.1)

    return _sharded(make)


def _sharded(make_optimizer):
    """Weights after two steps, and the part of all numbers for which this rank holds Adam's first moment."""
    model, n = small_model(), dist.get_world_size()
    params = list(model.parameters())
    optimizer = make_optimizer(params, dist.get_rank(), n)
    for x, y in batches(2):
        loss_of(model, x, y).backward()
        optimizer.step()
        for number, p in enumerate(params):
            dist.broadcast(p.data, src=number % n)
        model.zero_grad()
    held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    return flat(model), held / _numbers(model)


def adam_of_one_process(rank):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for x, y in batches(2):
        loss_of(model, x, y).backward()
        optimizer.step()
        model.zero_grad()
    return flat(model), sum(p.numel() for p in list(model.parameters())[rank::2]) / _numbers(model)


# a switch that made an error go away


def looks_for_unused():
    return _all_reduces(find_unused_parameters=True)


def looks_for_nothing():
    return _all_reduces()


def _all_reduces(**options):
    """The gradient of the third step, and how many all_reduces that step needed."""
    ddp = DistributedDataParallel(small_model(), **options)
    x, y = batches(1)[0]
    for _ in range(3):
        before = _count()
        ddp.zero_grad()
        F.cross_entropy(ddp(mine(x)), mine(y)).backward()
    return torch.cat([p.grad.flatten() for p in ddp.parameters()]), float(_count() - before)


def _count():
    return sum("all" in record["op"] and "reduce" in record["op"] for record in flight_records())


def one_all_reduce(rank):
    return one_gradient_held(rank)[0], 1.0
