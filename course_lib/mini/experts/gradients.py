"""Who averages what. A rank's experts work for the tokens of all ranks of their group, everything else for
its own:

                          after backward it is           all_reduce over
    router, attention     of its own tokens              all ranks
    an expert             the sum over its group's       the ranks that hold the same expert (with one
                          tokens                         group for all: nobody)

Both are then divided by the number of all ranks. An average of an expert over all ranks would mix different
experts; divided by the ranks that hold the same one, it would be as many times too large as its group has
ranks.
"""

import torch
import torch.distributed as dist
from torch import nn

from course_lib.arguments import process_group, takes
from course_lib.mini import experts as plain  # for its layer, when it is called
from course_lib.mini.experts.travel import Group

__all__ = ["average_gradients"]


@takes(model=nn.Module, group=process_group, same_experts=process_group)
@torch.no_grad()
def average_gradients(model: nn.Module, group: Group = None, same_experts: Group = None) -> None:
    """Make every gradient that of the mean loss over all ranks; every rank must call this, after backward.

    Args:
        model: with `Experts` anywhere in it; each rank's loss is the mean over as many tokens.
        group: the ranks that train together; None for all.
        same_experts: the ranks that hold the same experts as this one. None: no other does.
    """
    n = dist.get_world_size(group)
    of_experts = {
        p for module in model.modules() if isinstance(module, plain.Experts) for p in module.own.parameters()
    }
    for p in model.parameters():
        if p.grad is None:
            continue
        if p not in of_experts:
            dist.all_reduce(p.grad, group=group)
        elif same_experts is not None:
            dist.all_reduce(p.grad, group=same_experts)
        p.grad /= n
