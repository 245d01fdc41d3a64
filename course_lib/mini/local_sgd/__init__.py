"""Local SGD: ranks train alone, and average their weights every H steps.

    LocalSGD            counts steps; after each H-th one all_reduce makes the weights of all ranks equal
    weighted_average    one round of federated averaging: each rank counts by its number of samples

Between two averages the ranks drift apart: what they compute is not synchronous SGD, unless H is 1 and the
optimizer is plain SGD. A rank sends 2 (n-1)/n S per average, so 1/H of that per step.

With an `outer_lr` this is DiLoCo: how far the average has moved away from the weights of the last round
counts as a gradient, with its sign turned, and an outer optimizer, SGD with Nesterov's momentum, takes a step
with it. Each rank's own, inner optimizer is left alone, with its states.

Beside: `refusals`.

Source: Stich 2018, "Local SGD converges fast and communicates little"; Douillard et al. 2023, "DiLoCo",
    algorithm 1; McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import process_group, takes, whole
from course_lib.mini.local_sgd import refusals as refuse

__all__ = ["LocalSGD", "weighted_average"]


class LocalSGD:
    """Call `step()` after each step of this rank's own optimizer; every rank of the group must.

    Args:
        params: the model's, equal on every rank at the beginning.
        local_steps: H.
        outer_lr: the outer optimizer's learning rate, 0.7 in the paper. None: plain average.
        outer_momentum: its momentum, 0 to 1.
        process_group: the ranks that average; None for all.
    """

    @takes(
        params=refuse.other_params,
        local_steps=whole,
        outer_lr=refuse.other_rate,
        outer_momentum=refuse.other_momentum,
        process_group=process_group,
    )
    def __init__(
        self,
        params: Iterable[Tensor],
        local_steps: int,
        outer_lr: float | None = None,
        outer_momentum: float = 0.9,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.params, self.local_steps, self.group, self.steps = list(params), local_steps, process_group, 0
        self.anchors = [p.detach().clone() for p in self.params] if outer_lr else []  # of the last round
        options = dict(lr=outer_lr, momentum=outer_momentum, nesterov=outer_momentum > 0)
        self.outer = torch.optim.SGD(self.anchors, **options) if outer_lr else None

    @torch.no_grad()
    def step(self) -> bool:
        """Count one step, and average if it was the H-th. Returns whether it was."""
        self.steps += 1
        if self.steps % self.local_steps:
            return False
        for p in self.params:
            dist.all_reduce(p, group=self.group)
            p /= dist.get_world_size(self.group)
        if self.outer:
            for p, anchor in zip(self.params, self.anchors):
                anchor.grad = anchor - p
            self.outer.step()
            for p, anchor in zip(self.params, self.anchors):
                p.copy_(anchor)
        return True


@takes(params=refuse.other_params, num_samples=refuse.other_number, group=process_group)
@torch.no_grad()
def weighted_average(
    params: Iterable[Tensor], num_samples: int, group: dist.ProcessGroup | None = None
) -> int:
    """Put the average over the ranks in the place of `params`, each rank counted by its samples. Every rank
    of the group must call this.

    Args:
        num_samples: that this rank has trained on; 0 if it took no part: its weights, whatever they are, do
            not count, and it gets the average as well. Where nobody took part, all keep what they have.

    Returns:
        The samples of all ranks.
    """
    params = list(params)
    count = torch.tensor(num_samples, device=params[0].device)
    dist.all_reduce(count, group=group)
    total = int(count)
    for p in params if total else ():
        part = p * (num_samples / total) if num_samples else torch.zeros_like(p)  # for 0 * nan is nan
        dist.all_reduce(part, group=group)
        p.copy_(part)
    return total
