"""Programs that wait for ever, or stop: who waits, for whom, and is it every rank or one?"""

import datetime
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from course_lib.clinic.small import (
    RATE,
    average_gradients,
    batches,
    flat,
    loss_of,
    mine,
    one_process,
    small_model,
    trained,
)

__all__ = []  # families.py names what is here

# one rank calls, the others do not


def all_reduce_on_rank_0():
    x = torch.full((3,), dist.get_rank() + 1.0)
    if dist.get_rank() == 0:
        dist.all_reduce(x)
    return x


def all_reduce_on_every_rank():
    x = torch.full((3,), dist.get_rank() + 1.0)
    dist.all_reduce(x)
    return x


def three_threes(rank):
    return torch.full((3,), 3.0)


# one process plays all ranks


def ranks_one_after_the_other(world_size=2):
    return [_meet(rank, world_size, wait_s=1) for rank in range(world_size)]


def ranks_at_the_same_time():
    return _meet(dist.get_rank(), dist.get_world_size(), wait_s=60, meeting=_a_port())


def _meet(rank, world_size, wait_s, meeting=None):
    """How init_process_group begins: rank 0 opens a store, and waits until all others have come to it."""
    wait = datetime.timedelta(seconds=wait_s)
    options = dict(world_size=world_size, timeout=wait, wait_for_workers=True)
    if meeting is None:
        return dist.TCPStore("127.0.0.1", 0, is_master=rank == 0, **options).num_keys() > 0
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, world_size=world_size, wait_for_workers=False)
        meeting(store.port)
    else:
        store = dist.TCPStore("127.0.0.1", meeting(), is_master=False, **options)
    dist.barrier()
    return 1.0


def _a_port():
    def meeting(port=None):
        told = [port]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    return meeting


def one(rank):
    return 1.0


# an optimizer of torch's RPC framework, and arguments for somebody else: every rank stops alike


def rpc_optimizer():
    from torch.distributed.optim import DistributedOptimizer

    model = small_model()
    optimizer = DistributedOptimizer(torch.optim.SGD(model.parameters(), RATE))
    return _three_steps(model, optimizer)


def plain_optimizer():
    model = small_model()
    return _three_steps(model, torch.optim.SGD(model.parameters(), RATE))


def _three_steps(model, optimizer):
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model, mine(x), mine(y)).backward()
        average_gradients(model)
        optimizer.step()
    return flat(model)


def batch_size_of_the_dataset():
    x, y = (torch.cat(parts) for parts in zip(*batches()))
    return _epoch(TensorDataset(x, y, batch_size=8))


def batch_size_of_the_loader():
    x, y = (torch.cat(parts) for parts in zip(*batches()))
    return _epoch(DataLoader(TensorDataset(x, y), batch_size=8))


def _epoch(loader):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for x, y in loader:
        optimizer.zero_grad()
        loss_of(model, mine(x), mine(y)).backward()
        average_gradients(model)
        optimizer.step()
    return flat(model)


# a step that depends on a rank's own data


def skips_a_bad_batch():
    return _guarded(lambda bad: bad)


def skips_it_together():
    def anybody(bad):
        told = torch.tensor(float(bad))
        dist.all_reduce(told)
        return told > 0

    return _guarded(anybody)


def _guarded(skip):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for number, (x, y) in enumerate(batches()):
        x, y = mine(x).clone(), mine(y)
        if (number, dist.get_rank()) == (1, 1):
            x[0, 0] = float("nan")
        loss = loss_of(model, x, y)
        if skip(not loss.isfinite()):
            continue
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model)
        optimizer.step()
    return flat(model)


def without_the_bad_batch(rank):
    return one_process(skip=(1,))


# one rank has a batch more


def steps_of_its_own():
    return _steps(3 - dist.get_rank())


def steps_that_all_have():
    fewest = torch.tensor(3 - dist.get_rank())
    dist.all_reduce(fewest, op=dist.ReduceOp.MIN)
    return _steps(int(fewest))


def _steps(count):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for x, y in batches()[:count]:
        optimizer.zero_grad()
        loss_of(model, mine(x), mine(y)).backward()
        average_gradients(model)
        optimizer.step()
    return flat(model)


def two_steps(rank):
    return one_process(count=2)


# a collective in what rank 0 alone does


def log_line_of_rank_0():
    def average(model):
        if dist.get_rank() == 0:
            _mean_loss()
        average_gradients(model)

    return trained(average)


def barrier_of_rank_0():
    def average(model):
        average_gradients(model)
        if dist.get_rank() == 0:
            dist.barrier()

    return trained(average)


def log_line_of_all():
    def average(model):
        mean = _mean_loss()
        if dist.get_rank() == 0:
            print(f"loss {mean:.1f}")
        average_gradients(model)
        dist.barrier()

    return trained(average)


def _mean_loss():
    loss = torch.ones(1, dtype=torch.float64)
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


# evaluation by rank 0, through the wrapper


def evaluates_the_wrapper():
    return _train_and_evaluate(lambda ddp: ddp)


def evaluates_the_module():
    return _train_and_evaluate(lambda ddp: ddp.module)


def _train_and_evaluate(evaluated):
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), *small_model()).double()
    ddp = DistributedDataParallel(model)  # its buffers, the running means, travel in each forward
    for _ in range(2):
        for x, y in batches(2):
            loss_of(ddp, mine(x), mine(y)).backward()
        if dist.get_rank() == 0:
            with torch.no_grad():
                evaluated(ddp)(x)
    return flat(model)


def untouched_weights(rank):
    return flat(small_model())


# parameters that DDP waits for, or that are ready twice


class _Net(nn.Module):
    """Its second layer works twice, recomputed in backward, if `reentrant` says how."""

    def __init__(self, spare: bool, reentrant: bool | None, frozen: bool = False):
        super().__init__()
        torch.manual_seed(3)
        self.begin = nn.Linear(6, 6).double().requires_grad_(not frozen)
        self.net, self.reentrant = small_model(), reentrant
        if spare:
            self.spare = nn.Linear(2, 2).double()

    def forward(self, x):
        x = self.begin(x.requires_grad_())
        for _ in range(2):
            first = self.net[0]
            x = first(x) if self.reentrant is None else checkpoint(first, x, use_reentrant=self.reentrant)
        return self.net[2](x)


def unused_parameter():
    return _two_gradients(_Net(spare=True, reentrant=None))


def used_twice_and_recomputed():
    return _two_gradients(_Net(spare=False, reentrant=True))


def used_twice_and_nothing_before():
    """Nothing before it learns: when it is ready once, all parameters are, and DDP is done too early."""
    return _two_gradients(_Net(spare=False, reentrant=True, frozen=True))


def used_and_recomputed_without_reentry():
    return _two_gradients(_Net(spare=False, reentrant=False))


def _two_gradients(net):
    ddp = DistributedDataParallel(net)
    x, y = batches(1)[0]
    for _ in range(2):
        net.zero_grad()
        loss_of(ddp, mine(x).clone(), mine(y)).backward()
    return torch.cat([p.grad.flatten() for p in net.net.parameters()])


def gradient_of_the_twice_used(rank):
    net = _Net(spare=False, reentrant=None)
    x, y = batches(1)[0]
    loss_of(net, x, y).backward()
    return torch.cat([p.grad.flatten() for p in net.net.parameters()])


# a driver that has threads, touched before a fork


class _Driver:
    """Stands in for CUDA's: it does its work on a thread of its own, which a fork does not copy."""

    def __init__(self):
        self.thread = ThreadPoolExecutor(1)

    def double(self, x: float) -> float:
        return self.thread.submit(lambda: 2 * x).result(timeout=2)


def touched_before_the_fork():
    driver = _Driver()
    driver.double(1.0)  # "is there a GPU?", asked in the notebook
    return _in_a_fork(lambda: driver.double(21.0))


def touched_after_the_fork():
    return _in_a_fork(lambda: _Driver().double(21.0))


def _in_a_fork(work):
    here, there = multiprocessing.Pipe(duplex=False)

    def child():
        try:
            there.send(work())
        except TimeoutError:
            there.send("the driver does not answer in the fork")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    found = here.recv()
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def forty_two(rank):
    return 42.0


def whole_batches(rank) -> Tensor:
    return one_process()
