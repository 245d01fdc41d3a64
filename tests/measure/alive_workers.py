"""What the ranks of the allocations' test run. It stands apart because a rank that is asked for a function
loads the module around it: the tests' own would bring pandas and pytest, which the garbage collector would
look through at every mark.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from course_lib.measure import alive


def late_release() -> list[int]:
    """What is held after each of many gathers by gloo, whose inputs and outputs nobody needs."""
    n, held_after = dist.get_world_size(), []
    with alive.Allocations() as held:
        for number in range(30):
            parts = [torch.empty(10_000) for _ in range(n)]
            dist.all_gather(parts, torch.ones(10_000))
            del parts
            held.mark(f"{number}")
        held_after = [held.at(f"{number}") for number in range(30)]
    return held_after


def gathered_ahead(together: bool) -> list:
    """What `watch` notes of three layers that are units of fully_shard, or of the first two as one."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    for unit in [[model[0], model[1]], [model[2]]] if together else model:
        fully_shard(unit)
    fully_shard(model)
    model(torch.ones(2, 8)).sum().backward()
    moments = alive.watch(model, waiting=True)
    model(torch.ones(2, 8)).sum().backward()
    return list(moments)
