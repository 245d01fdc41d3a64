"""Several kinds of parallelism at once: the ranks form a mesh with one axis for each kind, and talk along one
axis at a time.

`sizes` describes a mesh, as a dict of axis -> size, in order. The last axis is the fastest: along it,
neighbours have neighbouring ranks. With sizes = {"dp": 2, "tp": 4}, eight ranks stand like this:

                tp 0   tp 1   tp 2   tp 3
        dp 0      0      1      2      3           a tensor parallel group is a row: [0, 1, 2, 3]
        dp 1      4      5      6      7           a data parallel group is a column: [0, 4]

A group of an axis has all ranks that differ in the coordinate of this axis alone; so the groups of one axis
are disjoint, and together they have every rank. Launchers number the ranks of one host in a row, so the fast
link inside a host serves the last axis.

Beside: `refusals` (sizes, ranks and axes that make no mesh).
Source: Narayanan et al. 2021, "Efficient large-scale language model training", section 3; torch documentation
    of DeviceMesh.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch.distributed as dist

from course_lib.arguments import fits, takes, whole
from course_lib.mini.hybrid import refusals as refuse

__all__ = ["coordinates", "axis_groups", "make_groups"]


@takes(rank=partial(whole, least=0), sizes=refuse.other_sizes)
@fits(refuse.other_ranks)
def coordinates(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where a rank stands, as a dict of axis -> coordinate.

    Errors: ValueError if there is no such rank in the mesh.
    """
    place = {}
    for axis in reversed(sizes):  # the last axis first: as the digits of a number, from the right
        rank, place[axis] = divmod(rank, sizes[axis])
    return {axis: place[axis] for axis in sizes}


@takes(sizes=refuse.other_sizes)
@fits(refuse.other_axes)
def axis_groups(axis: str, sizes: Mapping[str, int]) -> list[list[int]]:
    """Return the groups of one axis, each with its ranks in order of their coordinate; the groups are ordered
    by their first rank.

    Errors: ValueError if the mesh has no such axis.
    """
    groups: dict[tuple, list[int]] = {}
    for rank in range(math.prod(sizes.values())):
        place = coordinates(rank, sizes)
        others = tuple(place[name] for name in sizes if name != axis)
        groups.setdefault(others, []).append(rank)
    return list(groups.values())


@takes(sizes=refuse.other_sizes)
@fits(refuse.other_jobs)
def make_groups(sizes: Mapping[str, int]) -> dict[str, dist.ProcessGroup]:
    """Make the process groups of all axes and return this rank's own, as a dict of axis -> group; every rank
    must call this.

    Every rank takes part in making every group, also of those that it is no member of: that is how
    `dist.new_group` works, if it is not told use_local_synchronization. torch's init_device_mesh does the
    same, with the same numbering.

    Errors: ValueError if the mesh has another number of ranks than the job.
    """
    mine = {}
    for axis in sizes:
        for ranks in axis_groups(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine[axis] = group
    return mine
