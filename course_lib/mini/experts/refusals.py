"""What mini.experts refuses, each in one sentence."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from course_lib.arguments import instance, listed, number

__all__ = [
    "other_choices",
    "other_tokens",
    "other_outputs",
    "other_experts",
    "other_numbers",
    "more_than_there_are",
]


def other_choices(name: str, chosen) -> None:
    """Choices are whole numbers, k for each token."""
    instance(name, chosen, torch.Tensor)
    if chosen.dtype != torch.int64 or chosen.ndim != 2:
        raise TypeError(f"{name}: it must be int64 [T, k], not {chosen.dtype} {list(chosen.shape)}.")


def other_tokens(
    x: torch.Tensor, chosen: torch.Tensor, num_experts: int, group: dist.ProcessGroup | None
) -> None:
    """Tokens are rows, and each has its choices, among as many experts on each rank."""
    if x.ndim != 2 or len(x) != len(chosen):
        raise ValueError(f"x is {list(x.shape)}, and must be [T, dim] with T = {len(chosen)}, as chosen is.")
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) <= num_experts:
        raise ValueError(f"chosen: experts are 0 to {num_experts - 1}, and {num_experts} drops a choice.")
    _uneven_experts(num_experts, group)


def other_outputs(outputs: torch.Tensor, weights: torch.Tensor, plan) -> None:
    """An output for each row that came, and a weight for each choice that left."""
    if outputs.ndim != 2 or len(outputs) != len(plan.by_expert):
        raise ValueError(f"outputs are {list(outputs.shape)}, and {len(plan.by_expert)} rows had come.")
    if weights.ndim != 2 or (len(plan.pairs) and int(plan.pairs.max()) >= weights.numel()):
        raise ValueError(f"weights are {list(weights.shape)}, and must be [T, k], one for each choice.")


def other_experts(name: str, experts) -> None:
    """Experts are modules, each with parameters of its own."""
    if not isinstance(experts, nn.ModuleList):
        listed(name, experts, "a list of modules", lambda one: isinstance(one, nn.Module))
    held = [p for expert in experts for p in expert.parameters()]
    if len(set(held)) < len(held):
        raise ValueError(
            f"{name}: two experts share a parameter, and the ranks would make several of it. Give each its"
            " own."
        )


def other_numbers(
    router: nn.Module,
    experts: Sequence[nn.Module],
    process_group: dist.ProcessGroup | None,
    capacity_factor: float | None,
) -> None:
    """A router with a score for each expert, and as many experts on each rank."""
    if len(experts) != router.linear.out_features:
        raise ValueError(
            f"the router chooses among {router.linear.out_features} experts, and there are {len(experts)}."
        )
    if capacity_factor is not None:
        number("capacity_factor", capacity_factor, above=True)
    _uneven_experts(len(experts), process_group)


def more_than_there_are(top_k: int, num_experts: int) -> None:
    """A token goes to an expert once."""
    if top_k > num_experts:
        raise ValueError(f"top_k={top_k}: there are {num_experts} experts to choose from.")


def _uneven_experts(num_experts: int, group: dist.ProcessGroup | None) -> None:
    """Each rank holds as many."""
    if num_experts % (ranks := dist.get_world_size(group)):
        raise ValueError(f"{num_experts} experts cannot be dealt out evenly to {ranks} ranks.")
