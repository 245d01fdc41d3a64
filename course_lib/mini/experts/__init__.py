"""Experts: in the place of one network stand E of them, a router sends each token to k of them, and the
experts live on different ranks. Each rank brings T tokens of its own, and holds E / n of the experts:

    sort        a row for each token and choice, in the order of the experts
    dispatch    all_to_all: the rows of all ranks come to those that hold their experts
    combine     all_to_all back, then for each token the weighted sum over its choices

The parts have other sizes in every step, so a small all_to_all tells the sizes first. In backward gradients
take the same two ways, the other way round. With even routing a rank sends 4 k T (n-1)/n rows in all. Nothing
is dropped or padded, unless a capacity is asked for. After backward an expert's gradient is the sum over the
tokens of all ranks: see `gradients`.

Beside: `travel` (the all_to_all, forward and backward), `router` (which experts, with which weights),
`balance` (a loss, or a bias, against hot experts), `capacity` (which choices find room), `gradients` (who
averages what), `refusals`.

Source: Shazeer et al. 2017, "Outrageously large neural networks", sections 2 and 3.1; Lepikhin et al. 2020,
    "GShard", section 2.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import fits, process_group, takes, whole
from course_lib.mini.experts import refusals as refuse
from course_lib.mini.experts.balance import balance_loss, load_of
from course_lib.mini.experts.capacity import find_room
from course_lib.mini.experts.gradients import average_gradients
from course_lib.mini.experts.router import Router, Routing
from course_lib.mini.experts.travel import Group, exchange, exchange_sizes
from course_lib.mini.first_rank import copy_from_first_rank

__all__ = ["Experts", "Router", "Routing", "Plan", "dispatch", "combine"]
__all__ += ["balance_loss", "load_of", "average_gradients"]


@dataclass(frozen=True)
class Plan:
    """Which rows went where."""

    pairs: Tensor  # int64 [rows that left]: of which token and choice each is, as token * k + choice
    sent: list[int]  # rows to each rank
    received: list[int]  # rows from each rank
    by_expert: Tensor  # int64 [rows that came]: their order by expert
    sizes: list[int]  # rows for each of this rank's experts


@takes(x=Tensor, chosen=refuse.other_choices, num_experts=whole, group=process_group)
@fits(refuse.other_tokens)
def dispatch(x: Tensor, chosen: Tensor, num_experts: int, group: Group = None) -> tuple[Tensor, Plan]:
    """Send x [T, dim] to the experts chosen, int64 [T, k], of which rank r holds number r num_experts / n and
    up. (Number num_experts: this choice is dropped.) Every rank of the group must call this.

    Returns:
        The rows [rows, dim] for this rank's experts, one expert after the other; the plan that brings them
        back.
    """
    n, k = dist.get_world_size(group), chosen.shape[1]
    own = num_experts // n
    leaving = chosen.flatten().bincount(minlength=num_experts)[:num_experts]  # [E]
    pairs = chosen.flatten().argsort(stable=True)[: int(leaving.sum())]  # by expert, and so by rank
    coming = exchange_sizes(leaving, group)  # [n, E / n]: from each rank, for each own expert
    sent, received = leaving.view(n, own).sum(1).tolist(), coming.sum(1).tolist()
    rows = exchange(x[pairs // k], sent, received, group)
    its_expert = torch.arange(own, device=x.device).repeat(n).repeat_interleave(coming.flatten())
    by_expert = its_expert.argsort(stable=True)
    return rows[by_expert], Plan(pairs, sent, received, by_expert, coming.sum(0).tolist())


@takes(outputs=Tensor, weights=Tensor, plan=Plan, group=process_group)
@fits(refuse.other_outputs)
def combine(outputs: Tensor, weights: Tensor, plan: Plan, group: Group = None) -> Tensor:
    """Bring outputs [rows, dim] back: [T, dim], sums with weights [T, k]. Every rank must call this."""
    as_they_came = torch.empty_like(outputs).index_copy(0, plan.by_expert, outputs)
    back = exchange(as_they_came, plan.received, plan.sent, group)
    of_pairs = back.new_zeros(weights.numel(), back.shape[1]).index_copy(0, plan.pairs, back)
    return (weights.unsqueeze(-1) * of_pairs.view(*weights.shape, back.shape[1])).sum(1)


class Experts(nn.Module):
    """A router and its experts, of which this rank holds 1/n: [..., dim] in, [..., dim] out. Every rank of
    the group must make it, and call it.

    Args:
        router: chooses; on every rank the same.
        experts: all of them, [rows, dim] in and out. A rank keeps its own, with the values of the first one.
        process_group: the ranks over which the experts are spread; None for all.
        capacity_factor: room of an expert for one rank's choices, over k T / E. None: nothing is dropped.

    After a forward, `routing` has what the router said, and `dropped` how many choices found no room.
    """

    @takes(router=Router, experts=refuse.other_experts, process_group=process_group)
    @fits(refuse.other_numbers)
    def __init__(
        self,
        router: Router,
        experts: Sequence[nn.Module],
        process_group: Group = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        own = len(experts) // dist.get_world_size(process_group)
        first = dist.get_rank(process_group) * own
        self.router, self.own = router, nn.ModuleList(experts[first : first + own])
        self.group, self.num_experts, self.capacity_factor = process_group, len(experts), capacity_factor
        copy_from_first_rank([p for one in (router, *experts) for p in one.parameters()], process_group)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [T, dim]
        self.routing = self.router(tokens)
        chosen, weights = find_room(self.routing, self.num_experts, self.capacity_factor)
        self.dropped = int((chosen == self.num_experts).sum()) if self.capacity_factor else 0
        rows, plan = dispatch(tokens, chosen, self.num_experts, self.group)
        outputs = torch.cat([expert(its) for expert, its in zip(self.own, rows.split(plan.sizes))])
        return combine(outputs, weights, plan, self.group).view_as(x)
