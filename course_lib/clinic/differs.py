"""Programs that end, and are wrong: what differs between the ranks, and what should?"""

import copy
import shutil
import tempfile
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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

# every rank reads everything, or data of its own making


def no_sampler():
    return _read_with(lambda data: DataLoader(data, batch_size=8))


def data_of_its_own():
    def loader(data):
        torch.manual_seed(dist.get_rank())
        x = torch.randn(24, 6, dtype=torch.float64)
        return DataLoader(TensorDataset(x, torch.randint(3, (24,)), torch.arange(24)), batch_size=4)

    return _read_with(loader)


def with_a_sampler():
    return _read_with(lambda data: DataLoader(data, batch_size=4, sampler=DistributedSampler(data)))


def _read_with(make_loader):
    """Weights after one epoch, and how many samples this rank has read."""
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*batches())), torch.arange(24))
    ddp, read = DistributedDataParallel(small_model()), 0
    optimizer = torch.optim.SGD(ddp.parameters(), RATE)
    for x, y, _ in make_loader(data):
        optimizer.zero_grad()
        loss_of(ddp, x, y).backward()
        optimizer.step()
        read += len(y)
    return flat(ddp), float(read)


def in_the_samplers_order(rank):
    x, y = (torch.cat(parts) for parts in zip(*batches()))
    sampler = DistributedSampler(range(24), num_replicas=1, rank=0)
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for numbers in torch.tensor(list(sampler)).split(8):
        optimizer.zero_grad()
        loss_of(model, x[numbers], y[numbers]).backward()
        optimizer.step()
    return flat(model), 12.0


# gradients that are not averaged, not all of them, or not quite


def result_thrown_away():
    def average(model):
        for p in model.parameters():
            dist.all_reduce(p.grad.clone())

    return trained(average)


def indexed_by_ranks():
    def average(model):
        gradients = [p.grad for p in model.parameters()]
        for i in range(1, dist.get_world_size()):
            dist.all_reduce(gradients[i])
            gradients[i] /= dist.get_world_size()

    return trained(average)


def summed():
    def average(model):
        for p in model.parameters():
            dist.all_reduce(p.grad)

    return trained(average)


def nothing_shared():
    return trained(lambda model: None)


def averaged():
    return trained(average_gradients)


def whole_batches(rank):
    return one_process()


# the same rank everywhere, a name that nobody has made, an optimizer of other parameters


def everybody_is_rank_0():
    world_rank, world_size = 0, dist.get_world_size()
    return _train_as(world_rank, world_size)


def device_without_a_name():
    model = small_model().to(device)  # noqa: F821
    return flat(model)


def optimizer_of_the_old_model():
    return _train_as(dist.get_rank(), dist.get_world_size(), optimizer_first=True)


def each_its_own_rank():
    return _train_as(dist.get_rank(), dist.get_world_size())


def _train_as(rank, world_size, optimizer_first=False):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    model = copy.deepcopy(model)  # as converting, sharding or compiling a model can do
    if not optimizer_first:
        optimizer = torch.optim.SGD(model.parameters(), RATE)
    for x, y in batches():
        optimizer.zero_grad()
        model.zero_grad()
        loss_of(model, x.chunk(world_size)[rank], y.chunk(world_size)[rank]).backward()
        average_gradients(model)
        optimizer.step()
    return flat(model)


# "ZeRO": another function


def layers_dealt_out():
    layers, x = [nn.Linear(6, 6).double() for _ in range(2)], mine(batches(1)[0][0])
    _fill(layers)
    own = layers[dist.get_rank()]  # np.array_split(layers, world_size)[rank]
    return _joined(own(x))


def layers_gathered_before_use():
    layers, x = [nn.Linear(6, 6).double() for _ in range(2)], mine(batches(1)[0][0])
    _fill(layers)
    for owner, layer in enumerate(layers):
        for p in layer.parameters():
            if dist.get_rank() != owner:
                p.data.zero_()  # this rank holds no part of it
            dist.broadcast(p.data, src=owner)
        x = layer(x)
    return _joined(x)


def both_layers(rank):
    layers, x = [nn.Linear(6, 6).double() for _ in range(2)], batches(1)[0][0]
    _fill(layers)
    for layer in layers:
        x = layer(x)
    return x.detach()


def _fill(layers):
    generator = torch.Generator().manual_seed(2)
    for p in chain(*(layer.parameters() for layer in layers)):
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)


def _joined(output):
    outputs = [torch.empty_like(output) for _ in range(dist.get_world_size())]
    dist.all_gather(outputs, output.detach())
    return torch.cat(outputs)


# "model parallel": two networks, of which one learns


def half_in_the_optimizer():
    first, second = small_model(1), small_model(2)
    _train_the_sum(first, second, first.parameters())
    return {"first": flat(first), "second": flat(second)}


def each_rank_one_network():
    """The outputs are added by an all_reduce: in forward a sum over ranks, in backward each gets its part."""
    own = small_model(1 + dist.get_rank())
    optimizer = torch.optim.SGD(own.parameters(), RATE)
    for x, y in batches():
        optimizer.zero_grad()
        output = own(x)
        total = output.detach().clone()
        dist.all_reduce(total)
        F.cross_entropy(output + (total - output.detach()), y).backward()
        optimizer.step()
    return {("first", "second")[dist.get_rank()]: flat(own)}


def both_networks(rank):
    first, second = small_model(1), small_model(2)
    _train_the_sum(first, second, chain(first.parameters(), second.parameters()))
    return {"first": flat(first), "second": flat(second)}


def _train_the_sum(first, second, params):
    optimizer = torch.optim.SGD(params, RATE)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(first(x) + second(x), y).backward()
        optimizer.step()


# averages of averages, a norm of a part


def mean_of_means():
    model, (x, y) = small_model(), _uneven()
    loss_of(model, x, y).backward()
    average_gradients(model)
    return _gradient(model)


def sum_over_count():
    model, (x, y) = small_model(), _uneven()
    count = torch.tensor(len(y))
    dist.all_reduce(count)
    (F.cross_entropy(model(x), y, reduction="sum") * dist.get_world_size() / count).backward()
    average_gradients(model)
    return _gradient(model)


def _uneven():
    """Seven samples on rank 0, one on rank 1."""
    x, y = batches(1)[0]
    part = slice(0, 7) if dist.get_rank() == 0 else slice(7, 8)
    return x[part], y[part]


def _gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_of_one_process(rank):
    model = small_model()
    loss_of(model, *batches(1)[0]).backward()
    return _gradient(model)


LARGEST = 0.05  # of a gradient's norm


def own_norm_clipped():
    """Each rank holds every second gradient, as sharded optimizers do, and clips these by their own norm."""
    held = _own_gradients()
    nn.utils.clip_grad_norm_(held.values(), LARGEST)
    return {name: p.grad for name, p in held.items()}


def whole_norm_clipped():
    held = _own_gradients()
    squares = sum(p.grad.square().sum() for p in held.values())
    dist.all_reduce(squares)
    nn.utils.clip_grads_with_norm_(held.values(), LARGEST, squares.sqrt())
    return {name: p.grad for name, p in held.items()}


def _own_gradients():
    model = small_model()
    x, y = batches(1)[0]
    loss_of(model, mine(x), mine(y)).backward()
    average_gradients(model)
    named = list(model.named_parameters())
    return dict(named[dist.get_rank() :: dist.get_world_size()])


def clipped_by_one_process(rank):
    model = small_model()
    loss_of(model, *batches(1)[0]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
    return {name: p.grad for name, p in model.named_parameters()}


# what one reads after a stop: epoch 1, stopped after its first batch


def epoch_begun_again():
    sampler = DistributedSampler(range(24))
    sampler.set_epoch(1)
    return _batches_of(sampler)[:1] + _batches_of(sampler)[:2]


def epoch_forgotten():
    sampler = DistributedSampler(range(24))
    before = _batches_of(sampler)[:1]
    return before + _batches_of(sampler)[1:]


def goes_on_where_it_stopped():
    state = {"epoch": 1, "batches": 1}  # stands in the checkpoint
    sampler = DistributedSampler(range(24))
    sampler.set_epoch(state["epoch"])
    before = _batches_of(sampler)[: state["batches"]]
    return before + _batches_of(sampler)[state["batches"] :]


def _batches_of(sampler):
    return [numbers.tolist() for numbers in torch.tensor(list(sampler)).split(4)]


def epoch_1(rank):
    sampler = DistributedSampler(range(24), num_replicas=2, rank=rank)
    sampler.set_epoch(1)
    return _batches_of(sampler)


# seeds: what must be alike, and what must not


def seed_of_its_own():
    torch.manual_seed(dist.get_rank())
    return _weights_and_masks()


def one_seed_for_all():
    torch.manual_seed(0)
    return _weights_and_masks()


def alike_then_unlike():
    torch.manual_seed(0)
    return _weights_and_masks(lambda: torch.manual_seed(1000 + dist.get_rank()))


def _weights_and_masks(reseed=lambda: None):
    """The first layer's weights, and whether dropout takes the same numbers away on every rank: 0 or 1."""
    layer = nn.Linear(6, 6).double()
    reseed()
    mask = F.dropout(torch.ones(64), 0.5)
    masks = [torch.empty_like(mask) for _ in range(dist.get_world_size())]
    dist.all_gather(masks, mask)
    return layer.weight.detach(), float(all(torch.equal(mask, other) for other in masks))


def weights_of_seed_0(rank):
    torch.manual_seed(0)
    return nn.Linear(6, 6).double().weight.detach(), 0.0


# checkpoints: step 1 is complete; step 2 stops before rank 1 has written; then a single process loads


def one_file_for_all():
    def save(folder, step, shard):
        torch.save(shard, folder / "model.pt")

    return _stopped_in_step_2(save, load=lambda folder: torch.load(folder / "model.pt"))


def marker_left_valid():
    def save(folder, step, shard):
        torch.save(shard, folder / f"shard{dist.get_rank()}.pt")

    def finish(folder, step):
        (folder / "complete").touch()

    def load(folder):
        assert (folder / "complete").exists()
        return torch.cat([torch.load(path) for path in sorted(folder.glob("shard*.pt"))])

    return _stopped_in_step_2(save, load, finish)


def topology_not_asked():
    def load(folder):
        rank = 0  # of a world of 1, which was of 2 when it saved
        return torch.load(folder / "1" / f"shard{rank}.pt")

    return _stopped_in_step_2(_save_apart, load, _finish)


def a_folder_for_each_step():
    def load(folder):
        last = max(folder.glob("*/complete"))
        parts = range(int(last.read_text()))
        return torch.cat([torch.load(last.with_name(f"shard{rank}.pt")) for rank in parts])

    return _stopped_in_step_2(_save_apart, load, _finish)


def _save_apart(folder, step, shard):
    (folder / str(step)).mkdir(exist_ok=True)
    torch.save(shard, folder / str(step) / f"shard{dist.get_rank()}.pt")


def _finish(folder, step):
    (folder / str(step) / "complete").write_text(str(dist.get_world_size()))


def _stopped_in_step_2(save, load, finish=lambda folder, step: None):
    """What is loaded in the end, by rank 0 alone, and told to all; zeros where nothing is."""
    rank, told = dist.get_rank(), [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    folder = Path(told[0])
    for turn in range(dist.get_world_size()):
        if turn == rank:
            save(folder, 1, torch.full((4,), 1.0))
        dist.barrier()
    found = torch.zeros(8)
    if rank == 0:
        finish(folder, 1)
        save(folder, 2, torch.full((4,), 2.0))  # and rank 1 is killed before it saves
        loaded = load(folder)
        found[: len(loaded)] = loaded
        shutil.rmtree(folder)
    dist.broadcast(found, src=0)
    return found


def all_of_step_1(rank):
    return torch.ones(8)
