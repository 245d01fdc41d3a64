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

Source: Narayanan et al. 2021, "Efficient large-scale language model training", section 3; torch documentation
    of DeviceMesh.
"""

import math
from collections.abc import Mapping

import torch.distributed as dist

from course_lib.arguments import instance, whole

__all__ = ["coordinates", "axis_groups", "make_groups"]


def coordinates(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where a rank stands, as a dict of axis -> coordinate.

    Errors: ValueError if there is no such rank in the mesh.
    """
    if not 0 <= whole("rank", rank, least=0) < _count(sizes):
        raise ValueError(f"rank={rank}: a mesh of {_in_words(sizes)} has the ranks 0 to {_count(sizes) - 1}.")
    place = {}
    # the last axis first: as the digits of a number, from the right
    for axis in reversed(sizes):
        rank, place[axis] = divmod(rank, sizes[axis])
    return {axis: place[axis] for axis in sizes}


def axis_groups(axis: str, sizes: Mapping[str, int]) -> list[list[int]]:
    """Return the groups of one axis, each with its ranks in order of their coordinate; the groups are ordered
    by their first rank.

    Errors: ValueError if the mesh has no such axis.
    """
    ranks = range(_count(sizes))
    if not isinstance(axis, str) or axis not in sizes:
        raise ValueError(f"axis={axis!r}: the axes of this mesh are {', '.join(map(repr, sizes))}.")
    groups: dict[tuple, list[int]] = {}
    for rank in ranks:
        place = coordinates(rank, sizes)
        others = tuple(place[name] for name in sizes if name != axis)
        groups.setdefault(others, []).append(rank)
    return list(groups.values())


def make_groups(sizes: Mapping[str, int]) -> dict[str, dist.ProcessGroup]:
    """Make the process groups of all axes and return this rank's own, as a dict of axis -> group; every rank
    must call this.

    Every rank takes part in making every group, also of those that it is no member of: that is how
    `dist.new_group` works.

    Errors: ValueError if the mesh has another number of ranks than the job.
    """
    if _count(sizes) != dist.get_world_size():
        raise ValueError(
            f"a mesh of {_in_words(sizes)} needs {_count(sizes)} ranks, and this job has"
            f" {dist.get_world_size()}."
        )
    mine = {}
    for axis in sizes:
        for ranks in axis_groups(axis, sizes):
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine[axis] = group
    return mine


def _count(sizes: Mapping[str, int]) -> int:
    """How many ranks a mesh has."""
    return math.prod(
        whole(f"the size of {axis}", size, most=2**20)
        for axis, size in instance("sizes", sizes, Mapping, "of axis -> size").items()
    )


def _in_words(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())
