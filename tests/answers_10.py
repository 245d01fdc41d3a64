"""Answers to the exercises of chapter 10, right and wrong. They stand here, and not in a test file, so that a rank need not import pytest."""
import math

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


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


# make_groups(sizes)


def make_groups(sizes):
    mine = {}
    for axis in sizes:
        for ranks in axis_groups(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine[axis] = group
    return mine


def make_groups_by_torch(sizes):
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    return {axis: mesh[axis].get_group() for axis in sizes}


def make_groups_among_members(sizes):
    """Members alone, and torch is told so."""
    own = {axis: next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks) for axis in sizes}
    return {axis: dist.new_group(ranks, use_local_synchronization=True) for axis, ranks in own.items()}


def make_groups_by_members_only(sizes):
    return {axis: dist.new_group(next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks)) for axis in sizes}


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
    return {axis: next(ranks for ranks in axis_groups(axis, sizes) if dist.get_rank() in ranks) for axis in sizes}


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
    possible = [(tp * pp, -tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}) for tp in (1, 2, 4, 8) for pp in range(1, layers + 1)
                if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9]
    return min(possible, key=lambda found: found[:2])[2]


def plan_data_parallel(numel, layers, gpus):
    return {"dp": gpus, "pp": 1, "tp": 1}


def plan_as_much_as_fits(numel, layers, gpus):
    """Right sizes by a wasteful way: it always takes a whole server."""
    tp = 8 if gpus % 8 == 0 else 1
    pp = next(pp for pp in range(1, layers + 1) if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9)
    return {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}


def plan_greedy(numel, layers, gpus):
    """The smallest tp that is enough, and a pipeline only behind a whole server: where three parts are enough, it makes four."""
    sizes = [(tp, 1) for tp in (1, 2, 4)] + [(8, pp) for pp in range(1, layers + 1) if layers % pp == 0]
    tp, pp = next((tp, pp) for tp, pp in sizes if gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9)
    return {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}


def plan_over_servers(numel, layers, gpus):
    tp = next(tp for tp in range(1, gpus + 1) if gpus % tp == 0 and 16 * numel / tp <= 40e9)
    return {"dp": gpus // tp, "pp": 1, "tp": tp}


def plan_pipeline_first(numel, layers, gpus):
    possible = [(tp * pp, tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}) for tp in (1, 2, 4, 8) for pp in range(1, layers + 1)
                if layers % pp == 0 and gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9]
    return min(possible, key=lambda found: found[:2])[2]


def plan_uneven_stages(numel, layers, gpus):
    possible = [(tp * pp, -tp, {"dp": gpus // (tp * pp), "pp": pp, "tp": tp}) for tp in (1, 2, 4, 8) for pp in range(1, layers + 1)
                if gpus % (tp * pp) == 0 and 16 * numel / (tp * pp) <= 40e9]
    return min(possible, key=lambda found: found[:2])[2]
