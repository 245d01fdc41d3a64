"""What mini.hybrid refuses, each in one sentence."""

import math
from collections.abc import Mapping

import torch.distributed as dist

from course_lib.arguments import instance, whole

__all__ = ["other_sizes", "other_ranks", "other_axes", "other_jobs", "mesh_in_words"]


def other_sizes(name: str, sizes) -> None:
    """What is no dict of axis -> size."""
    for axis, size in instance(name, sizes, Mapping, "of axis -> size").items():
        whole(f"the size of {axis}", size, most=2**20)


def other_ranks(rank: int, sizes: Mapping[str, int]) -> None:
    """A rank that has no place in the mesh."""
    count = math.prod(sizes.values())
    if rank >= count:
        raise ValueError(f"rank={rank}: a mesh of {mesh_in_words(sizes)} has the ranks 0 to {count - 1}.")


def other_axes(axis: str, sizes: Mapping[str, int]) -> None:
    """An axis that the mesh has not got."""
    if not isinstance(axis, str) or axis not in sizes:
        raise ValueError(f"axis={axis!r}: the axes of this mesh are {', '.join(map(repr, sizes))}.")


def other_jobs(sizes: Mapping[str, int]) -> None:
    """A job with another number of ranks than the mesh."""
    count, world_size = math.prod(sizes.values()), dist.get_world_size()
    if count != world_size:
        raise ValueError(
            f"a mesh of {mesh_in_words(sizes)} needs {count} ranks, and this job has {world_size}."
        )


def mesh_in_words(sizes: Mapping[str, int]) -> str:
    """The axes of a mesh with their sizes, for a sentence: "dp 2 x tp 4"."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())
