"""Answers to the exercises of "Hybrid parallelism", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import math
import time

import numpy as np
import torch
import torch.distributed as dist
from by_files import by_files
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


# coordinates(rank, sizes) and axis_groups(axis, sizes)


def coordinates(rank, sizes):
    place = {}
    for axis in reversed(sizes):
        rank, place[axis] = divmod(rank, sizes[axis])
    return {axis: place[axis] for axis in sizes}


def axis_groups(axis, sizes):
    groups = {}
    for rank in range(math.prod(sizes.values())):
        others = coordinates(rank, sizes)
        del others[axis]
        groups.setdefault(tuple(others.values()), []).append(rank)
    return list(groups.values())


def coordinates_first_axis_fastest(rank, sizes):
    place = {}
    for axis in sizes:
        rank, place[axis] = divmod(rank, sizes[axis])
    return place


def coordinates_of_two_axes(rank, sizes):
    first, last = list(sizes)[0], list(sizes)[-1]
    return dict(zip((first, last), divmod(rank, sizes[last])))


def groups_swapped(axis, sizes):
    """Rows for columns."""
    axes = list(sizes)
    return axis_groups(axes[-1 - axes.index(axis)], sizes)


def groups_overlapping(axis, sizes):
    """Each rank and its next neighbours."""
    count = math.prod(sizes.values())
    return [sorted((rank + i) % count for i in range(sizes[axis])) for rank in range(count)]


def groups_of_rank_0(axis, sizes):
    return axis_groups(axis, sizes)[:1]


def groups_of_all(axis, sizes):
    return [list(range(math.prod(sizes.values())))]


def coordinates_by_numpy(rank, sizes):
    """Right as well, with numpy's numbers."""
    return dict(zip(sizes, np.unravel_index(rank, tuple(sizes.values()))))


def groups_as_an_array(axis, sizes):
    """Right as well: the groups are the rows of an array."""
    ranks = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    return np.moveaxis(ranks, list(sizes).index(axis), -1).reshape(-1, sizes[axis])


def groups_as_they_come(axis, sizes):
    """Right as well: tuples, one at a time."""
    return (tuple(group) for group in axis_groups(axis, sizes))


def groups_in_the_mesh(axis, sizes):
    """The array keeps the other axes: with three of them, it is no list of groups."""
    ranks = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    return np.moveaxis(ranks, list(sizes).index(axis), -1)


def groups_of_known_axes(axis, sizes):
    """Knows the meshes of the course, and no more."""
    if not set(sizes) <= {"dp", "cp", "pp", "tp"} or list(sizes) != sorted(
        sizes, key=["dp", "cp", "pp", "tp"].index
    ):
        return groups_swapped(axis, sizes)
    return axis_groups(axis, sizes)


def groups_with_exit(axis, sizes):
    raise SystemExit(3)


# make_groups(sizes)


def make_groups(sizes):
    mine = {}
    for axis in sizes:
        for ranks in axis_groups(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine[axis] = group
    return mine


def make_groups_of_arrays(sizes):
    """Right as well: the groups of an axis are the rows of an array."""
    mine = {}
    for axis in sizes:
        for ranks in groups_as_an_array(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine[axis] = group
    return mine


def make_groups_by_torch(sizes):
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    return {axis: mesh[axis].get_group() for axis in sizes}


def make_groups_among_members(sizes):
    """Members alone, and torch is told so."""
    own = {
        axis: next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks) for axis in sizes
    }
    return {axis: dist.new_group(ranks, use_local_synchronization=True) for axis, ranks in own.items()}


def make_groups_by_members_only(sizes):
    return {
        axis: dist.new_group(next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks))
        for axis in sizes
    }


def make_groups_fewer_on_some(sizes):
    """The last rank does not make what it is not in."""
    mine = {}
    for axis in sizes:
        for ranks in axis_groups(axis, sizes):
            if dist.get_rank() < dist.get_world_size() - 1 or dist.get_rank() in ranks:
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks:
                    mine[axis] = group
    return mine


def make_groups_swapped(sizes):
    groups = make_groups(sizes)
    return dict(zip(sizes, [groups[axis] for axis in reversed(sizes)]))


def make_groups_overlapping(sizes):
    mine = {}
    for axis in sizes:
        for ranks in groups_overlapping(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() == ranks[0] or dist.get_rank() in ranks and axis not in mine:
                mine[axis] = group
    return mine


def make_groups_keeps_the_last(sizes):
    """Keeps a group that this rank is not in."""
    return {axis: [dist.new_group(ranks) for ranks in axis_groups(axis, sizes)][-1] for axis in sizes}


def make_groups_as_lists(sizes):
    return {
        axis: next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks) for axis in sizes
    }


def make_groups_none_of_one_rank(sizes):
    return {axis: group if sizes[axis] > 1 else None for axis, group in make_groups(sizes).items()}


def make_groups_all_in_one(sizes):
    return {axis: dist.group.WORLD for axis in sizes}


# average(model, groups)


def average(model, groups):
    for p in model.parameters():
        dist.all_reduce(p.grad, group=groups["dp"])
        p.grad /= dist.get_world_size(groups["dp"])


def average_flat(model, groups):
    """As a bucket."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat, group=groups["dp"])
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads])):
        grad.copy_(part.view_as(grad) / dist.get_world_size(groups["dp"]))


def average_by_messages(model, groups):
    """Right as well: a ring of sends and receives between the ranks of a column, in the group of all ranks.
    And it prints what it does.
    """
    ring = dist.get_process_group_ranks(groups["dp"])
    n, me = len(ring), ring.index(dist.get_rank())
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    pieces = list(flat.tensor_split(n))
    for step in range(2 * (n - 1)):
        give, take = pieces[(me - step) % n], pieces[(me - step - 1) % n]
        box = torch.empty_like(take)
        print("step", step, give.tolist())
        sending = dist.isend(give, ring[(me + 1) % n])
        dist.recv(box, ring[(me - 1) % n])
        sending.wait()
        take.copy_(take + box if step < n - 1 else box)
    for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
        p.grad.copy_(part.view_as(p) / n)


def average_all_at_once(model, groups):
    """Right as well: all at once, and all are waited for."""
    works = [dist.all_reduce(p.grad, group=groups["dp"], async_op=True) for p in model.parameters()]
    for work in works:
        work.wait()
    for p in model.parameters():
        p.grad = p.grad / dist.get_world_size(groups["dp"])


def average_without_waiting(model, groups):
    for p in model.parameters():
        p.grad /= dist.get_world_size(groups["dp"])
        dist.all_reduce(p.grad, group=groups["dp"], async_op=True)


def average_by_reduce_and_broadcast(model, groups):
    first = dist.get_process_group_ranks(groups["dp"])[0]
    for p in model.parameters():
        dist.reduce(p.grad, first, group=groups["dp"])
        dist.broadcast(p.grad, first, group=groups["dp"])
        p.grad /= dist.get_world_size(groups["dp"])


def average_by_reduce_scatter(model, groups):
    """As many bytes as an all_reduce in the textbook; gloo sends more."""
    n = dist.get_world_size(groups["dp"])
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    padded = F.pad(flat, (0, -flat.numel() % n))
    part = torch.empty(padded.numel() // n)
    dist.reduce_scatter_tensor(part, padded, group=groups["dp"])
    dist.all_gather_into_tensor(padded, part / n, group=groups["dp"])
    for p, mean in zip(
        model.parameters(), padded[: flat.numel()].split([p.numel() for p in model.parameters()])
    ):
        p.grad.copy_(mean.view_as(p))


def average_in_float32(model, groups):
    for p in model.parameters():
        small = p.grad.float()
        dist.all_reduce(small, group=groups["dp"])
        p.grad.copy_(small / dist.get_world_size(groups["dp"]))


def average_with_a_barrier(model, groups):
    dist.barrier()
    average(model, groups)


def average_by_files(model, groups):
    """Right gradients; nothing is sent, and files say it."""
    column = dist.get_process_group_ranks(groups["dp"])
    for p in model.parameters():
        everyones = by_files(p.grad)
        p.grad.copy_(sum(everyones[rank] for rank in column) / len(column))


def average_by_three(model, groups):
    """The size of dp is known: 3."""
    for p in model.parameters():
        dist.all_reduce(p.grad, group=groups["dp"])
        p.grad /= 3


def average_on_one_rank_of_each_column(model, groups):
    """The others lose their gradients."""
    first = dist.get_process_group_ranks(groups["dp"])[0]
    for p in model.parameters():
        dist.reduce(p.grad, first, group=groups["dp"])
        p.grad = p.grad / dist.get_world_size(groups["dp"]) if dist.get_rank() == first else None


def average_over_all(model, groups):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def average_over_tp(model, groups):
    for p in model.parameters():
        dist.all_reduce(p.grad, group=groups["tp"])
        p.grad /= dist.get_world_size(groups["tp"])


def average_sum(model, groups):
    for p in model.parameters():
        dist.all_reduce(p.grad, group=groups["dp"])


def average_divides_by_all(model, groups):
    for p in model.parameters():
        dist.all_reduce(p.grad, group=groups["dp"])
        p.grad /= dist.get_world_size()


def average_of_what_is_cut(model, groups):
    """Takes "whole on every rank of a row" for "the same on all ranks"."""
    for p in cut_and_whole(model)[0]:
        dist.all_reduce(p.grad, group=groups["dp"])
        p.grad /= dist.get_world_size(groups["dp"])


def average_nothing(model, groups):
    pass


def average_gathers(model, groups):
    """Right values by a wasteful way."""
    for p in model.parameters():
        grads = [torch.empty_like(p.grad) for _ in range(dist.get_world_size(groups["dp"]))]
        dist.all_gather(grads, p.grad, group=groups["dp"])
        p.grad.copy_(sum(grads) / len(grads))


def average_twice(model, groups):
    """Right values by a wasteful way: what is whole is averaged over tp as well."""
    average(model, groups)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if name not in getattr(module, "cut_dims", {}):
                dist.all_reduce(p.grad, group=groups["tp"])
                p.grad /= dist.get_world_size(groups["tp"])


# gradient_norm(model, groups)


def cut_and_whole(model):
    cut, whole = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            (cut if name in getattr(module, "cut_dims", {}) else whole).append(p)
    return cut, whole


def squares_of(params):
    return sum(p.grad.square().sum() for p in params)


def gradient_norm(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares, group=groups["tp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_shared(model, groups):
    """Right as well, as a tensor: each rank of a row counts its share of what is whole."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut) + squares_of(whole) / dist.get_world_size(groups["tp"])
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt()


def norm_by_numpy(model, groups):
    """Right as well: numpy's number, from the norms that torch's own tool finds; and it prints them."""
    cut, whole = (torch.nn.utils.get_total_norm([p.grad for p in params]) for params in cut_and_whole(model))
    print([p.grad for p in model.parameters()])
    squares = cut.square()
    dist.all_reduce(squares, group=groups["tp"])
    return np.hypot(squares.sqrt().numpy(), whole.numpy())


def norm_by_all_gather(model, groups):
    """Right as well: every rank gets every number, in a tensor of one."""
    cut, whole = cut_and_whole(model)
    squares = [torch.empty(1) for _ in range(dist.get_world_size(groups["tp"]))]
    dist.all_gather(squares, squares_of(cut).view(1), group=groups["tp"])
    return (sum(squares) + squares_of(whole)).sqrt()


def norm_in_float32(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut).float()
    dist.all_reduce(squares, group=groups["tp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_of_two(model, groups):
    """The size of tp is known: 2."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut) + squares_of(whole) / 2
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt().item()


def norm_of_three_rows(model, groups):
    """The size of dp is known: 3."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares)
    return (squares / 3 + squares_of(whole)).sqrt().item()


def norm_that_sleeps(model, groups):
    """Not waited for: while all ranks are in step, the sum happens to be there."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    work = dist.all_reduce(squares, group=groups["tp"], async_op=True)
    time.sleep(0.4)
    norm = (squares + squares_of(whole)).sqrt().item()
    work.wait()
    return norm


def norm_that_waits_for_the_first(model, groups):
    """The first number is waited for, the others are not."""
    cut, whole = cut_and_whole(model)
    squares, works = [p.grad.square().sum() for p in cut], []
    for square in squares:
        works.append(dist.all_reduce(square, group=groups["tp"], async_op=True))
        works[0].wait()
    time.sleep(0.2)
    norm = (sum(squares) + squares_of(whole)).sqrt().item()
    for work in works:
        work.wait()
    return norm


def norm_number_by_number(model, groups):
    """Right as well: many small messages, all waited for."""
    cut, whole = cut_and_whole(model)
    squares = [p.grad.square().sum() for p in cut]
    works = [dist.all_reduce(square, group=groups["tp"], async_op=True) for square in squares]
    for work in works:
        work.wait()
    return (sum(squares) + squares_of(whole)).sqrt()


def norm_over_dp(model, groups):
    """The right sum, over the wrong axis."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares, group=groups["dp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_on_rank_0(model, groups):
    norm = gradient_norm(model, groups)
    return norm if dist.get_rank() == 0 else None


def norm_of_this_rank(model, groups):
    return squares_of(model.parameters()).sqrt().item()


def norm_of_everything_over_tp(model, groups):
    squares = squares_of(model.parameters())
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt().item()


def norm_over_all_ranks(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares)
    return (squares + dist.get_world_size(groups["dp"]) * squares_of(whole)).sqrt().item()


def norm_squared(model, groups):
    return gradient_norm(model, groups) ** 2


def norm_of_sums(model, groups):
    """The sum of norms is not the norm of the sum."""
    cut, whole = cut_and_whole(model)
    norm = squares_of(cut).sqrt()
    dist.all_reduce(norm, group=groups["tp"])
    return (norm + squares_of(whole).sqrt()).item()


def norm_that_gathers(model, groups):
    """Right values by a wasteful way."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(whole)
    for p in cut:
        parts = [torch.empty_like(p.grad) for _ in range(dist.get_world_size(groups["tp"]))]
        dist.all_gather(parts, p.grad, group=groups["tp"])
        squares = squares + sum(part.square().sum() for part in parts)
    return squares.sqrt().item()


def norm_that_clips(model, groups):
    norm = gradient_norm(model, groups)
    for p in model.parameters():
        p.grad /= norm
    return norm


# plan(numel, layers, gpus)


def plan(numel, layers, gpus):
    possible = [
        (tp * pp, -tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp})
        for tp in (1, 2, 4, 8)
        for pp in range(1, layers + 1)
        if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9
    ]
    return min(possible, key=lambda found: found[:2])[2]


def plan_by_numpy(numel, layers, gpus):
    """Right as well, with numpy's numbers."""
    tp, pp = (sizes.ravel() for sizes in np.meshgrid([1, 2, 4, 8], np.arange(1, layers + 1)))
    fits = (layers % pp == 0) & (gpus % (tp * pp) == 0) & (16 * numel <= 40e9 * tp * pp)
    tp, pp = tp[fits], pp[fits]
    best = np.lexsort((-tp, tp * pp))[0]
    return {"dp": gpus // (tp[best] * pp[best]), "pp": pp[best], "tp": tp[best]}


def plan_in_gib(numel, layers, gpus):
    """40 GiB are more than 40 GB: right but for models that only just fit."""
    possible = [
        (tp * pp, -tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp})
        for tp in (1, 2, 4, 8)
        for pp in range(1, layers + 1)
        if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40 * 2**30
    ]
    return min(possible, key=lambda found: found[:2])[2]


def plan_data_parallel(numel, layers, gpus):
    return {"dp": gpus, "pp": 1, "tp": 1}


def plan_as_much_as_fits(numel, layers, gpus):
    """Right sizes by a wasteful way: it always takes a whole server."""
    tp = 8 if gpus % 8 == 0 else 1
    pp = next(
        pp
        for pp in range(1, layers + 1)
        if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9
    )
    return {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}


def plan_greedy(numel, layers, gpus):
    """The smallest tp that is enough, and a pipeline only behind a whole server: where three parts are
    enough, it makes four.
    """
    sizes = [(tp, 1) for tp in (1, 2, 4)] + [(8, pp) for pp in range(1, layers + 1) if layers % pp == 0]
    tp, pp = next((tp, pp) for tp, pp in sizes if gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9)
    return {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}


def plan_over_servers(numel, layers, gpus):
    tp = next(tp for tp in range(1, gpus + 1) if gpus % tp == 0 and 16 * numel / tp <= 40e9)
    return {"dp": gpus // tp, "pp": 1, "tp": tp}


def plan_pipeline_first(numel, layers, gpus):
    possible = [
        (tp * pp, tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp})
        for tp in (1, 2, 4, 8)
        for pp in range(1, layers + 1)
        if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9
    ]
    return min(possible, key=lambda found: found[:2])[2]


def plan_uneven_stages(numel, layers, gpus):
    possible = [
        (tp * pp, -tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp})
        for tp in (1, 2, 4, 8)
        for pp in range(1, layers + 1)
        if gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9
    ]
    return min(possible, key=lambda found: found[:2])[2]
