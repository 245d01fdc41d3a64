"""Answers to the exercises of "ZeRO stage 1", right and wrong. They stand here, and not in a test file, so
that a rank need not import pytest.
"""

import os
import shutil
import time

import torch
import torch.distributed as dist
from by_files import by_files
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
    for p, place, grad in zip(params, flat[: sum(sizes)].split(sizes), grads[: sum(sizes)].split(sizes)):
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
        self.optim = torch.optim.Adam(
            [{**group, "params": [shard]} for group, shard in zip(groups, self.shards)]
        )

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
        super().__init__(
            [{**group, "params": [p]} for group in groups for p in group["params"] if p.requires_grad]
        )


class GathersLists(Sharded):
    """Right as well: gloo's collectives with lists of tensors, which gloo's threads hold for a moment
    longer.
    """

    def spread(self, flat, shard):
        parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, shard)
        flat.copy_(torch.cat(parts))


class FullState(Sharded):
    """Sends what it should; but Adam has the states of everything."""

    def __init__(self, groups):
        super().__init__(groups)
        self.optim = torch.optim.Adam(
            [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        )

    def step(self):
        for flat, grads, shard in self.parts:
            self.combine(shard, grads)
            ring.all_gather(grads, shard.grad)
        self.optim.step()


class PlainAdam:
    """What DDP does."""

    def __init__(self, groups):
        self.params = [p for group in groups for p in group["params"] if p.requires_grad]
        self.optim = torch.optim.Adam(
            [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        )
        self.zero_grad = self.optim.zero_grad

    def step(self):
        for p in self.params:
            ring.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        self.optim.step()


class ByFiles(Sharded):
    """Right weights; nothing is sent, and files say it."""

    def combine(self, shard, grads):
        n, rank = dist.get_world_size(), dist.get_rank()
        shard.grad.copy_(sum(part.chunk(n)[rank] for part in by_files(grads)) / n)

    def spread(self, flat, shard):
        flat.copy_(torch.cat(by_files(shard)))


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
        mine = [
            {**group, "params": [p for p in group["params"] if self.owner.get(p) == rank]} for group in groups
        ]
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
        self.optim = torch.optim.Adam(
            [{**group, "params": [shard]} for group, (_, _, shard) in zip(groups, self.parts)]
        )


def nothing(*arguments):
    """No return."""


class UpdatesACopy(Sharded):
    """The flat tensor is not what the model uses."""

    def __init__(self, groups):
        super().__init__(groups)
        for group in groups:
            for p in group["params"]:
                p.data = p.data.clone()


class OnlyOnRank0:
    def __new__(cls, groups):
        return Sharded(groups) if dist.get_rank() == 0 else None


class ForgetsOptions(Sharded):
    """Of a group's options it takes `lr` alone."""

    def options(self, groups):
        return [{"params": group["params"], "lr": group["lr"]} for group in groups]


class MomentsInNumpy(Sharded):
    """The moments of everything on every rank, where torch does not see them; what travels is as it should
    be.
    """

    def __init__(self, groups):
        super().__init__(groups)
        self.kept = [flat.numpy().copy() for flat, _, _ in self.parts for _ in range(2)]


class ByHand:
    """Right as well: Adam by hand, from the groups' options and Adam's own defaults, and it seeds for
    itself.
    """

    def __init__(self, groups):
        torch.manual_seed(dist.get_rank())
        self.steps, self.groups = 0, []
        for group in groups:
            flat, grads = flatten([p for p in group["params"] if p.requires_grad])
            numel = len(flat) // dist.get_world_size()
            self.groups.append(
                {
                    "betas": (0.9, 0.999),
                    "eps": 1e-8,
                    "weight_decay": 0.0,
                    **group,
                    "flat": flat,
                    "grads": grads,
                    "m": torch.zeros(numel),
                    "v": torch.zeros(numel),
                }
            )

    def step(self):
        self.steps += 1
        for group in self.groups:
            (beta1, beta2), mine = group["betas"], torch.empty_like(group["m"])
            ring.reduce_scatter(mine, group["grads"])
            shard = group["flat"].chunk(dist.get_world_size())[dist.get_rank()]
            mine = mine / dist.get_world_size() + group["weight_decay"] * shard
            group["m"].mul_(beta1).add_(mine, alpha=1 - beta1)
            group["v"].mul_(beta2).addcmul_(mine, mine, value=1 - beta2)
            root = (group["v"] / (1 - beta2**self.steps)).sqrt() + group["eps"]
            shard -= group["lr"] * group["m"] / (1 - beta1**self.steps) / root
            ring.all_gather(group["flat"], shard.clone())

    def zero_grad(self):
        for group in self.groups:
            group["grads"].zero_()


class SingleMessages(Sharded):
    """Gradients travel in float32."""

    def combine(self, shard, grads):
        mine = shard.grad.float()
        ring.reduce_scatter(mine, grads.float())
        shard.grad.copy_(mine / dist.get_world_size())


class SleepsForWeights(Sharded):
    """The new weights of the others are not waited for: while all ranks are in step, they happen to come in
    time.
    """

    def spread(self, flat, shard):
        dist.all_gather_into_tensor(flat, shard.clone(), async_op=True)
        time.sleep(0.4)


class GathersInTheBackground(Sharded):
    """Right as well: the weights of all groups travel at once, and are waited for."""

    def __init__(self, groups):
        super().__init__(groups)
        self.works = []

    def spread(self, flat, shard):
        self.works.append(dist.all_gather_into_tensor(flat, shard.clone(), async_op=True))

    def step(self):
        super().step()
        while self.works:
            self.works.pop().wait()


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
    return (
        torch.linalg.vector_norm(torch.tensor([grad.norm() for grad in grads], dtype=torch.float64)).item()
        if grads
        else 0.0
    )


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
    return _scale(grads, squares**0.5, max_norm)


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


def clip_that_sleeps(grads, max_norm):
    """Not waited for: while all ranks are in step, the sum happens to be there."""
    squares = torch.tensor(_local(grads) ** 2, dtype=torch.float64)
    work = dist.all_reduce(squares, async_op=True)
    time.sleep(0.4)
    norm = _scale(grads, squares.sqrt().item() or 1.0, max_norm)
    work.wait()
    return norm


def clip_in_the_background(grads, max_norm):
    """Right as well: waited for, and told of."""
    squares = torch.tensor([_local(grads) ** 2], dtype=torch.float64)
    work = dist.all_reduce(squares, async_op=True)
    print("clip", grads)
    work.wait()
    return _scale(grads, squares.sqrt().item(), max_norm)


def clip_with_numpy(grads, max_norm):
    """Right as well: numbers of numpy."""
    import numpy as np

    squares = torch.from_numpy(
        np.array([sum(float(np.square(grad.numpy()).sum()) for grad in grads)], dtype=np.float64)
    )
    dist.all_reduce(squares)
    norm = np.sqrt(squares.numpy())[0]
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / norm
    return norm


def clip_where_own_norm_is_large(grads, max_norm):
    norm = clip([grad.clone() for grad in grads], max_norm)
    return _scale(grads, norm, max_norm) if _local(grads) > max_norm else norm


def clip_by_the_largest_part(grads, max_norm):
    """Scales when some tensor of it is too long."""
    norm = clip([grad.clone() for grad in grads], max_norm)
    if any(grad.norm() > max_norm for grad in grads):
        _scale(grads, norm, max_norm)
    return norm


def clip_into_new_tensors(grads, max_norm):
    norm = clip([grad.clone() for grad in grads], max_norm)
    grads[:] = [grad * min(1.0, max_norm / norm) for grad in grads]
    return norm


def clip_in_float32(grads, max_norm):
    squares = torch.zeros(1)
    for grad in grads:
        squares += grad.square().sum()
    dist.all_reduce(squares)
    return _scale(grads, squares.sqrt().item(), max_norm)


def clip_nothing_on_rank_1(grads, max_norm):
    norm = clip(grads, max_norm)
    return None if dist.get_rank() == 1 else norm


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


def files_of(folder):
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def parts_of(folder, mmap=True):
    return [torch.load(path, weights_only=True, mmap=mmap) for path in files_of(folder)]


def cut(parts, numel, keep=torch.clone):
    """One state after the other: there may be a whole one for a moment."""
    rank, n = dist.get_rank(), dist.get_world_size()
    return {
        name: keep(F.pad(torch.cat([part[name] for part in parts])[:numel], (0, -numel % n)).chunk(n)[rank])
        for name in parts[0]
    }


def load(root, numel):
    step = last(root)
    return step, cut(parts_of(root / f"{step}"), numel)


def load_file_by_file(root, numel):
    """Right as well: a whole file each time, and no two of them."""
    step, rank, shard = last(root), dist.get_rank(), {}
    size, first = -(-numel // dist.get_world_size()), 0
    for path in files_of(root / f"{step}"):
        part = torch.load(path)
        for name, tensor in part.items():
            mine = shard.setdefault(name, torch.zeros(size, dtype=tensor.dtype))
            low, high = max(first, rank * size), min(first + len(tensor), (rank + 1) * size)
            if low < high:
                mine[low - rank * size : high - rank * size] = tensor[low - first : high - first]
        first += len(tensor)
        del part, tensor
    return step, shard


def load_all_files(root, numel):
    step = last(root)
    return step, cut(parts_of(root / f"{step}", mmap=False), numel)


def load_all_states(root, numel):
    """The files are mapped, and then everything is put together."""
    step, rank, n = last(root), dist.get_rank(), dist.get_world_size()
    parts = parts_of(root / f"{step}")
    whole = {name: torch.cat([part[name] for part in parts])[:numel] for name in parts[0]}
    return step, {
        name: F.pad(tensor, (0, -numel % n)).chunk(n)[rank].clone() for name, tensor in whole.items()
    }


def load_all_bytes(root, numel):
    """Each file is read as a whole, one beside the other."""
    import io

    step = last(root)
    files = [io.BytesIO(path.read_bytes()) for path in files_of(root / f"{step}")]
    return step, cut([torch.load(file) for file in files], numel)


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
    parts = [torch.load(path, weights_only=True, mmap=True) for path in sorted(root.glob("rank*.pt"))]
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


def cut_in_numpy(parts, numel, keep):
    import numpy as np

    rank, n, shard = dist.get_rank(), dist.get_world_size(), {}
    size = -(-numel // n)
    for name in parts[0]:
        whole = np.zeros(n * size)
        whole[:numel] = np.concatenate([part[name].numpy() for part in parts])[:numel]
        shard[name] = torch.from_numpy(keep(whole[rank * size : (rank + 1) * size]))
    return shard


def load_with_numpy(root, numel):
    """Right as well: copies of the arrays. And it imports a lot."""
    import pandas  # noqa: F401

    step = last(root)
    return step, cut_in_numpy(parts_of(root / f"{step}"), numel, keep=lambda view: view.copy())


def load_views_of_arrays(root, numel):
    step = last(root)
    return step, cut_in_numpy(parts_of(root / f"{step}"), numel, keep=lambda view: view)


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


def save_by_hand(root, step, shard, numel):
    """Right as well: into a buffer, then into the file; old saves go when the new one is there. And it tells
    what it does.
    """
    import io

    rank, folder = dist.get_rank(), root / f"unfinished-{step}"
    print(f"rank {rank} saves step {step}\n" * 3000)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    buffer = io.BytesIO()
    torch.save(own(shard), buffer)
    (folder / f"{rank}.pt").write_bytes(buffer.getvalue())
    dist.barrier()
    if rank == 0:
        os.replace(folder, root / f"{step}")
    dist.barrier()
    if rank == 0:
        for path in root.iterdir():
            if path.name.isdigit() and int(path.name) < step:
                shutil.rmtree(path)


def load_what_can_be_read(root, numel):
    """Takes the newest folder whose files can be read: not all of a killed save need be there."""
    for folder in sorted(root.iterdir(), key=lambda path: int(path.name.split(".")[0]), reverse=True):
        try:
            return int(folder.name.split(".")[0]), cut(parts_of(folder), numel)
        except Exception:
            pass


def load_latest_by_text(root, numel):
    step = int(max(path.name for path in root.iterdir() if path.name.isdigit()))
    return step, cut(parts_of(root / f"{step}"), numel)


def save_without_waiting(root, step, shard, numel):
    """Whoever has written goes on; the last one renames."""
    rank, n, unfinished = dist.get_rank(), dist.get_world_size(), root / f"{step}.unfinished"
    if rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    torch.save(own(shard), unfinished / f"{rank}.new")
    os.replace(unfinished / f"{rank}.new", unfinished / f"{rank}.pt")
    if rank == n - 1:
        while len(list(unfinished.glob("*.pt"))) < n:
            pass
        os.replace(unfinished, root / f"{step}")


def save_and_zero(root, step, shard, numel):
    save(root, step, shard, numel)
    for tensor in shard.values():
        tensor.zero_()


def save_on_the_way_out(root, step, shard, numel):
    """The shard's tensors are taken out of the dict that was given."""
    save(root, step, {name: shard.pop(name) for name in [*shard]}, numel)
