"""Against hot experts: how many choices each expert got, and a loss that is least where all got alike."""

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import process_group, takes
from course_lib.mini.experts.router import Routing
from course_lib.mini.experts.travel import Group

__all__ = ["load_of", "balance_loss"]


@takes(routing=Routing, group=process_group)
@torch.no_grad()
def load_of(routing: Routing, group: Group = None) -> Tensor:
    """How often each expert was chosen, by the tokens of all ranks of the group: int64 [E], the same on every
    rank. Every rank of the group must call this.
    """
    load = routing.chosen.flatten().bincount(minlength=routing.scores.shape[-1])
    dist.all_reduce(load, group=group)
    return load


@takes(routing=Routing, group=process_group)
def balance_loss(routing: Routing, group: Group = None) -> Tensor:
    """E times the sum over all experts of f P: f is the part of all choices that an expert got, P its mean
    probability. It is 1 where all get alike. Add it to the loss, times 0.01 say.

    f is that of all ranks of the group, and has no gradient; P is that of this rank's tokens. So, with as
    many tokens on every rank, the mean over the ranks is the loss of one process, and so is its gradient.
    Every rank of the group must call this.

    Source: Fedus et al. 2021, "Switch transformers", section 2.2, equations 4 to 6.
    """
    load = load_of(routing, group).to(routing.scores.dtype)
    return len(load) * (load / load.sum().clamp_min(1) * routing.scores.mean(0)).sum()
