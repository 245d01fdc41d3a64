"""Answers to the exercises of chapter 06, right and wrong. They stand here, and not in a test file, so that a rank need not import pytest."""
import os
import shutil

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib.mini import ring, zero


def stub(*arguments):
    raise NotImplementedError


# make_optimizer(groups)


class Untouched:
    def __init__(self, groups):
        raise NotImplementedError


def flatten(params):
    n, sizes = dist.get_world_size(), [p.numel() for p in params]
    flat = torch.zeros(-(-sum(sizes) // n) * n)
    grads = torch.zeros_like(flat)
    for p, place, grad in zip(params, flat[:sum(sizes)].split(sizes), grads[:sum(sizes)].split(sizes)):
        place.copy_(p.detach().flatten())
        p.data, p.grad = place.view_as(p), grad.view_as(p)
    return flat, grads


class Sharded:
    """One flat tensor per group, as the solution."""

    def __init__(self, groups):
        rank, n = dist.get_rank(), dist.get_world_size()
        self.parts, shards = [], []
        for group in groups:
            flat, grads = flatten([p for p in group["params"] if p.requires_grad])
            shard = flat.chunk(n)[rank]
            shard.grad = grads.chunk(n)[rank]
            self.parts.append((flat, grads, shard))
            shards.append({**group, "params": [shard]})
        self.optim = torch.optim.Adam(self.options(shards))

    def options(self, groups):
        return groups

    def combine(self, shard, grads):
        ring.reduce_scatter(shard.grad, grads)
        shard.grad /= dist.get_world_size()

    def spread(self, flat, shard):
        ring.all_gather(flat, shard)

    def step(self):
        for _, grads, shard in self.parts:
            self.combine(shard, grads)
        self.optim.step()
        for flat, _, shard in self.parts:
            self.spread(flat, shard)

    def zero_grad(self):
        for _, grads, _ in self.parts:
            grads.zero_()


class Uneven:
    """Right as well: no padding, uneven chunks, and gradients that are joined in each step."""

    def __init__(self, groups):
        rank, n = dist.get_rank(), dist.get_world_size()
        self.params = [[p for p in group["params"] if p.requires_grad] for group in groups]
        self.flats = []
        for params in self.params:
            flat = torch.cat([p.detach().flatten() for p in params])
            for p, place in zip(params, flat.split([p.numel() for p in params])):
                p.data = place.view_as(p)
            self.flats.append(flat)
        self.shards = [flat.tensor_split(n)[rank] for flat in self.flats]
        self.optim = torch.optim.Adam([{**group, "params": [shard]} for group, shard in zip(groups, self.shards)])

    def step(self):
        n = dist.get_world_size()
        for params, shard in zip(self.params, self.shards):
            grads = torch.cat([p.grad.flatten() for p in params])
            shard.grad = torch.empty_like(shard)
            ring.reduce_scatter(shard.grad, grads.tensor_split(n))
            shard.grad /= n
        self.optim.step()
        for flat, shard in zip(self.flats, self.shards):
            ring.all_gather(flat.tensor_split(n), shard)
            shard.grad = None

    def zero_grad(self):
        for p in sum(self.params, []):
            p.grad = None


def minis_zero(groups):
    module = nn.ParameterList(p for group in groups for p in group["params"])
    return zero.shard(module, 1, torch.optim.Adam, params=groups)[1]


class EachByItself(Sharded):
    """Right as well: each parameter is padded and cut by itself, so there are many small messages."""

    def __init__(self, groups):
        super().__init__([{**group, "params": [p]} for group in groups for p in group["params"] if p.requires_grad])


class GathersLists(Sharded):
    """Right as well: gloo's collectives with lists of tensors, which gloo's threads hold for a moment longer."""

    def spread(self, flat, shard):
        parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, shard)
        flat.copy_(torch.cat(parts))


class FullState(Sharded):
    """Sends what it should; but Adam has the states of everything."""

    def __init__(self, groups):
        super().__init__(groups)
        self.optim = torch.optim.Adam([{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups])

    def step(self):
        for flat, grads, shard in self.parts:
            self.combine(shard, grads)
            ring.all_gather(grads, shard.grad)
        self.optim.step()


class PlainAdam:
    """What DDP does."""

    def __init__(self, groups):
        self.params = [p for group in groups for p in group["params"] if p.requires_grad]
        self.optim = torch.optim.Adam([{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups])
        self.zero_grad = self.optim.zero_grad

    def step(self):
        for p in self.params:
            ring.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        self.optim.step()


class ForgetsGroups(Sharded):
    def options(self, groups):
        return [{**group, "lr": groups[0]["lr"]} for group in groups]


class SumsOnOneRoot(Sharded):
    """A star: the root sums all gradients, and gives the sum to everybody."""

    def combine(self, shard, grads):
        rank, n = dist.get_rank(), dist.get_world_size()
        if rank == 0:
            received = torch.empty_like(grads)
            for other in range(1, n):
                dist.recv(received, other)
                grads += received
            for other in range(1, n):
                dist.send(grads, other)
        else:
            dist.send(grads, 0)
            dist.recv(grads, 0)
        shard.grad /= n


class ReducesToRootAndScatters(Sharded):
    """A star that sends back only chunks."""

    def combine(self, shard, grads):
        rank, n = dist.get_rank(), dist.get_world_size()
        if rank == 0:
            received = torch.empty_like(grads)
            for other in range(1, n):
                dist.recv(received, other)
                grads += received
            for other in range(1, n):
                dist.send(grads.chunk(n)[other].contiguous(), other)
        else:
            dist.send(grads, 0)
            dist.recv(shard.grad, 0)
        shard.grad /= n


class AllReduceFirst(Sharded):
    def combine(self, shard, grads):
        ring.all_reduce(grads)
        shard.grad /= dist.get_world_size()


class ByGloosReduceScatter(Sharded):
    def combine(self, shard, grads):
        dist.reduce_scatter_tensor(shard.grad, grads.clone())
        shard.grad /= dist.get_world_size()


class WholeParametersToOwners:
    """As torch's ZeroRedundancyOptimizer: each parameter has one owner, which broadcasts it."""

    def __init__(self, groups):
        rank, n = dist.get_rank(), dist.get_world_size()
        self.params = [p for group in groups for p in group["params"] if p.requires_grad]
        self.owner = {p: k % n for k, p in enumerate(self.params)}
        mine = [{**group, "params": [p for p in group["params"] if self.owner.get(p) == rank]} for group in groups]
        self.optim = torch.optim.Adam([group for group in mine if group["params"]])

    def step(self):
        for p in self.params:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        self.optim.step()
        for p in self.params:
            dist.broadcast(p.detach(), self.owner[p])

    def zero_grad(self):
        for p in self.params:
            p.grad = None


class KeepsACopy(Sharded):
    """Keeps the weights of everybody a second time."""

    def __init__(self, groups):
        super().__init__(groups)
        self.copies = [flat.clone() for flat, _, _ in self.parts]


class Sums(Sharded):
    def combine(self, shard, grads):
        ring.reduce_scatter(shard.grad, grads)


class OwnGradients(Sharded):
    def combine(self, shard, grads):
        pass


class NeverGathers(Sharded):
    def spread(self, flat, shard):
        pass


class NeverZeros(Sharded):
    def zero_grad(self):
        pass


class KeepsFrozen(Sharded):
    """Frozen parameters get moments and travel, too."""

    def __init__(self, groups):
        rank, n = dist.get_rank(), dist.get_world_size()
        self.parts = []
        for group in groups:
            flat, grads = flatten(group["params"])
            shard = flat.chunk(n)[rank]
            shard.grad = grads.chunk(n)[rank]
            self.parts.append((flat, grads, shard))
        self.optim = torch.optim.Adam([{**group, "params": [shard]} for group, (_, _, shard) in zip(groups, self.parts)])


def nothing(*arguments):
    """No return."""


class UpdatesACopy(Sharded):
    """The flat tensor is not what the model uses."""

    def __init__(self, groups):
        super().__init__(groups)
        for group in groups:
            for p in group["params"]:
                p.data = p.data.clone()


# clip(grads, max_norm)


def clip(grads, max_norm):
    squares = torch.zeros((), dtype=torch.float64)
    for grad in grads:
        squares += grad.square().sum()
    dist.all_reduce(squares)
    return _scale(grads, squares.sqrt().item(), max_norm)


def _scale(grads, norm, max_norm):
    for grad in grads:
        grad *= min(1.0, max_norm / norm)
    return norm


def clip_as_torch(grads, max_norm):
    """Right as well: torch adds 1e-6 to the norm."""
    squares = sum((grad.square().sum() for grad in grads), torch.zeros((), dtype=torch.float64))
    dist.all_reduce(squares)
    for grad in grads:
        grad *= (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    return squares.sqrt()


def _local(grads):
    return torch.linalg.vector_norm(torch.tensor([grad.norm() for grad in grads], dtype=torch.float64)).item() if grads else 0.0


def clip_locally(grads, max_norm):
    return _scale(grads, _local(grads) or 1.0, max_norm) if grads else 0.0


def clip_locally_but_returns_the_norm(grads, max_norm):
    norm = clip([grad.clone() for grad in grads], max_norm)
    if grads:
        _scale(grads, _local(grads), max_norm)
    return norm


def clip_by_sum_of_norms(grads, max_norm):
    norm = torch.tensor(_local(grads), dtype=torch.float64)
    dist.all_reduce(norm)
    return _scale(grads, norm.item(), max_norm)


def clip_by_mean_of_squares(grads, max_norm):
    squares = torch.tensor(_local(grads) ** 2, dtype=torch.float64)
    dist.all_reduce(squares)
    return _scale(grads, (squares / dist.get_world_size()).sqrt().item(), max_norm)


def clip_by_gathering(grads, max_norm):
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, grads)
    norm = sum(grad.square().sum() for part in everyone for grad in part).sqrt().item()
    return _scale(grads, norm, max_norm)


def clip_tensor_by_tensor(grads, max_norm):
    squares = 0.0
    for number in range(2):
        square = grads[number].square().sum() if number < len(grads) else torch.zeros((), dtype=torch.float64)
        dist.all_reduce(square)
        squares += square.item()
    return _scale(grads, squares ** 0.5, max_norm)


def clip_that_lengthens(grads, max_norm):
    norm = clip([grad.clone() for grad in grads], max_norm)
    for grad in grads:
        grad *= max_norm / norm
    return norm


def clip_returned(grads, max_norm):
    return clip([grad.clone() for grad in grads], max_norm)


def clip_without_empty_ranks(grads, max_norm):
    return clip(grads, max_norm) if grads else 0.0


def clip_by_ring(grads, max_norm):
    squares = torch.tensor([_local(grads) ** 2], dtype=torch.float64)
    ring.all_reduce(squares)
    return _scale(grads, squares.sqrt().item(), max_norm)


def clip_and_tell(grads, max_norm):
    return f"the norm was {clip(grads, max_norm)}"


# save(root, step, shard, numel) and load(root, numel)


def own(shard):
    return {name: tensor.clone() for name, tensor in shard.items()}


def save(root, step, shard, numel):
    rank, unfinished = dist.get_rank(), root / f"{step}.unfinished"
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    torch.save(own(shard), unfinished / f"{rank}.pt")
    dist.barrier()
    if rank == 0:
        os.replace(unfinished, root / f"{step}")
    dist.barrier()


def last(root):
    return max(int(path.name) for path in root.iterdir() if path.name.isdigit())


def parts_of(folder):
    return [torch.load(path, weights_only=True) for path in sorted(folder.iterdir(), key=lambda path: int(path.stem))]


def cut(parts, numel, keep=torch.clone):
    rank, n = dist.get_rank(), dist.get_world_size()
    whole = {name: torch.cat([part[name] for part in parts])[:numel] for name in parts[0]}
    return {name: keep(F.pad(tensor, (0, -numel % n)).chunk(n)[rank]) for name, tensor in whole.items()}


def load(root, numel):
    step = last(root)
    return step, cut(parts_of(root / f"{step}"), numel)


def save_without_clone(root, step, shard, numel):
    clone, globals()["own"] = own, dict
    save(root, step, shard, numel)
    globals()["own"] = clone


def save_all_on_rank_0(root, step, shard, numel):
    rank, n, whole = dist.get_rank(), dist.get_world_size(), {}
    for name, tensor in shard.items():
        chunks = [torch.empty_like(tensor) for _ in range(n)] if rank == 0 else None
        dist.gather(tensor, chunks)
        whole[name] = torch.cat(chunks) if rank == 0 else None
    if rank == 0:
        (root / f"{step}").mkdir(exist_ok=True)
        torch.save(whole, root / f"{step}" / "0.pt")
    dist.barrier()


def save_in_place(root, step, shard, numel):
    rank = dist.get_rank()
    torch.save(own(shard) | {"step": torch.tensor(step)}, root / f"rank{rank}.pt")
    if rank == 0:
        for path in root.glob("rank*.pt"):
            if int(path.stem[4:]) >= dist.get_world_size():
                path.unlink()
    dist.barrier()


def load_in_place(root, numel):
    parts = [torch.load(path, weights_only=True) for path in sorted(root.glob("rank*.pt"))]
    step = [int(part.pop("step")) for part in parts][0]
    return step, cut(parts, numel)


def save_without_rename(root, step, shard, numel):
    folder = root / f"{step}"
    folder.mkdir(exist_ok=True)
    torch.save(own(shard), folder / f"{dist.get_rank()}.pt")
    dist.barrier()


def save_file_by_file(root, step, shard, numel):
    """Each file is renamed when it is complete; the save as a whole is not."""
    folder, rank = root / f"{step}", dist.get_rank()
    folder.mkdir(exist_ok=True)
    torch.save(own(shard), folder / f"{rank}.unfinished")
    os.replace(folder / f"{rank}.unfinished", folder / f"{rank}.pt")
    dist.barrier()


def save_that_trips(root, step, shard, numel):
    """It does not expect what a killed save has left."""
    rank, unfinished = dist.get_rank(), root / f"{step}.unfinished"
    if rank == 0:
        unfinished.mkdir()
    dist.barrier()
    torch.save(own(shard), unfinished / f"{rank}.pt")
    dist.barrier()
    if rank == 0:
        os.replace(unfinished, root / f"{step}")
    dist.barrier()


def load_with_padding(root, numel):
    step = last(root)
    parts = parts_of(root / f"{step}")
    return step, cut(parts, sum(len(part["params"]) for part in parts))


def load_views(root, numel):
    step = last(root)
    return step, cut(parts_of(root / f"{step}"), numel, keep=lambda view: view)


def load_uneven(root, numel):
    """The last rank's shard is shorter than the others."""
    step, shard = load(root, numel)
    rest = max(0, numel - dist.get_rank() * len(shard["params"]))
    return step, {name: tensor[:rest].clone() for name, tensor in shard.items()}


def load_list(root, numel):
    step, shard = load(root, numel)
    return step, list(shard.values())


def load_in_single_precision(root, numel):
    step, shard = load(root, numel)
    return step, {name: tensor.float() for name, tensor in shard.items()}


def load_that_fails(root, numel):
    raise ValueError("this is not right")
