"""Answers to the exercises of "Beyond one machine", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import itertools
import re

import numpy as np
import torch
import torch.distributed as dist
from by_files import by_files


def stub(*arguments):
    raise NotImplementedError


# hierarchical_all_reduce(tensor, inside, between)


def hierarchical(tensor, inside, between):
    parts = list(tensor.chunk(dist.get_world_size(inside)))
    mine = torch.empty_like(parts[0])
    dist.reduce_scatter(mine, parts, group=inside)
    dist.all_reduce(mine, group=between)
    dist.all_gather(parts, mine, group=inside)


def hierarchical_flat(tensor, inside, between):
    """Right as well: by the forms with one tensor."""
    flat, k = tensor.view(-1), dist.get_world_size(inside)
    mine = flat.new_empty(flat.numel() // k)
    dist.reduce_scatter_tensor(mine, flat, group=inside)
    dist.all_reduce(mine, group=between)
    dist.all_gather_into_tensor(flat, mine, group=inside)


def hierarchical_by_all_to_all(tensor, inside, between):
    """Right as well: parts change places, and are added up by hand; between hosts in two halves."""
    flat, k = tensor.view(-1), dist.get_world_size(inside)
    turned = torch.empty_like(flat)
    dist.all_to_all_single(turned, flat, group=inside)
    mine = turned.view(k, -1).sum(0)
    works = [dist.all_reduce(half, group=between, async_op=True) for half in mine.chunk(2)]
    for work in works:
        work.wait()
    dist.all_gather(list(flat.chunk(k)), mine, group=inside)


def one_sends_for_all(tensor, inside, between):
    """Right values by a wasteful way: the chapter's first one."""
    first = dist.get_process_group_ranks(inside)[0]
    dist.all_reduce(tensor, group=inside)
    if dist.get_rank() == first:
        dist.all_reduce(tensor, group=between)
    dist.broadcast(tensor, first, group=inside)


def everyone_sends_all(tensor, inside, between):
    """Right values by a wasteful way."""
    dist.all_reduce(tensor, group=inside)
    dist.all_reduce(tensor, group=between)


def sums_all_inside(tensor, inside, between):
    """Right values; inside of a host more travels than need be."""
    dist.all_reduce(tensor, group=inside)
    parts = list(tensor.chunk(dist.get_world_size(inside)))
    mine = parts[dist.get_rank(inside)].clone()
    dist.all_reduce(mine, group=between)
    dist.all_gather(parts, mine, group=inside)


def over_all_ranks(tensor, inside, between):
    dist.all_reduce(tensor)


def with_messages(tensor, inside, between):
    """The ring of the chapter."""
    total = tensor.clone()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step in range(1, ranks):
        other = torch.empty_like(tensor)
        to, source = (rank + step) % ranks, (rank - step) % ranks
        ops = [dist.P2POp(dist.isend, tensor, to), dist.P2POp(dist.irecv, other, source)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        total += other
    tensor.copy_(total)


def forgets_between(tensor, inside, between):
    dist.all_reduce(tensor, group=inside)


def returns_it(tensor, inside, between):
    total = tensor.clone()
    hierarchical(total, inside, between)
    return total


def averages(tensor, inside, between):
    hierarchical(tensor, inside, between)
    tensor /= dist.get_world_size()


def does_not_wait(tensor, inside, between):
    parts = list(tensor.chunk(dist.get_world_size(inside)))
    mine = torch.empty_like(parts[0])
    dist.reduce_scatter(mine, parts, group=inside)
    dist.all_reduce(mine, group=between, async_op=True)
    dist.all_gather(parts, mine, group=inside)


def reads_files(tensor, inside, between):
    """Right values; numbers do not travel, and files say them."""
    tensor.copy_(sum(by_files(tensor)))


# axis_order(sizes, sends, per_host)


def leaving(order, sizes, sends, per_host):
    ranks = torch.arange(np.prod([sizes[axis] for axis in order])).view([sizes[axis] for axis in order])
    hosts, by_host = ranks // per_host, {}
    for dim, axis in enumerate(order):
        for here, there in zip(hosts.flatten().tolist(), hosts.roll(-1, dim).flatten().tolist()):
            by_host[here] = by_host.get(here, 0) + sends[axis] * (here != there)
    return max(by_host.values())


def axis_order(sizes, sends, per_host):
    return min(itertools.permutations(sizes), key=lambda order: leaving(order, sizes, sends, per_host))


def axis_order_by_numpy(sizes, sends, per_host):
    """Right as well, with numpy, from the last order to the first."""
    best, least = None, np.inf
    for order in reversed(list(itertools.permutations(sorted(sizes)))):
        host = np.arange(np.prod([sizes[a] for a in order])).reshape([sizes[a] for a in order]) // per_host
        out = np.zeros(host.max() + 1)
        for dim, axis in enumerate(order):
            away = np.roll(host, -1, dim) != host
            out += np.bincount(host[away], minlength=len(out)) * sends[axis]
        if out.max() < least:
            best, least = list(order), out.max()
    return best


def order_by_bytes(sizes, sends, per_host):
    """The rule of thumb: what sends most is last. Wrong where an axis is longer than a host."""
    return sorted(sizes, key=lambda axis: sends[axis])


def order_the_other_way(sizes, sends, per_host):
    return axis_order(sizes, sends, per_host)[::-1]


def order_as_given(sizes, sends, per_host):
    return tuple(sizes)


def order_of_two(sizes, sends, per_host):
    return axis_order(sizes, sends, per_host)[-2:]


def order_as_a_dict(sizes, sends, per_host):
    return dict(sizes)


# slurm_environment(slurm)


def slurm_environment(slurm):
    first = re.match(r"[^,\[]+(\[[^,\]-]+)?", slurm["SLURM_JOB_NODELIST"])[0]
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "MASTER_ADDR": first.replace("[", ""),
        "MASTER_PORT": str(20_000 + int(slurm["SLURM_JOB_ID"]) % 10_000),
    }


def slurm_environment_by_parts(slurm):
    """Right as well, without patterns, and it passes on what it got."""
    name, _, rest = slurm["SLURM_JOB_NODELIST"].partition("[")
    if "," in name:
        name, rest = name.split(",")[0], ""
    for end in "]-,":
        rest = rest.split(end)[0]
    port = int(slurm["SLURM_JOB_ID"][-4:]) + 20_000
    names = {"RANK": "PROCID", "LOCAL_RANK": "LOCALID", "WORLD_SIZE": "NTASKS"}
    own = {name: slurm[f"SLURM_{its}"] for name, its in names.items()}
    return {**slurm, **own, "MASTER_ADDR": name + rest, "MASTER_PORT": f"{port}"}


def environment_of_numbers(slurm):
    return {
        name: int(value) if value.isdigit() else value for name, value in slurm_environment(slurm).items()
    }


def environment_without_zeros(slurm):
    """ "gpu003" is not "gpu3"."""
    found = slurm_environment(slurm)
    found["MASTER_ADDR"] = re.sub(r"0+(\d)", r"\1", found["MASTER_ADDR"])
    return found


def environment_of_itself(slurm):
    """Each task would meet itself."""
    return slurm_environment(slurm) | {"MASTER_ADDR": "localhost"}


def environment_of_the_list(slurm):
    return slurm_environment(slurm) | {"MASTER_ADDR": slurm["SLURM_JOB_NODELIST"].split(",")[0]}


def environment_with_a_port_of_text(slurm):
    """A 2, and the last four characters: of a number with three digits that is another port."""
    return slurm_environment(slurm) | {"MASTER_PORT": "2" + slurm["SLURM_JOB_ID"][-4:]}


def environment_of_nodes(slurm):
    return slurm_environment(slurm) | {"RANK": slurm["SLURM_NODEID"]}


def environment_without_port(slurm):
    found = slurm_environment(slurm)
    del found["MASTER_PORT"]
    return found
