"""Capacity: how many choices of one rank an expert takes. With it every buffer has a size that is known
before, and what finds no room is dropped: the token goes past that expert, by the residual connection.

First choices find room before second ones, and among them earlier tokens before later ones.

Source: Lepikhin et al. 2020, "GShard", section 2.2 and algorithm 1; Fedus et al. 2021, section 2.2.
"""

import math

import torch
from torch import Tensor

from course_lib.mini.experts.router import Routing

__all__ = ["find_room"]


def find_room(
    routing: Routing, num_experts: int, capacity_factor: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return chosen and weights [T, k] with what finds no room dropped: its expert becomes num_experts, its
    weight 0.

    Args:
        capacity_factor: room of an expert, over k T / E, rounded up. None: room for all.
    """
    chosen, weights = routing.chosen, routing.weights
    if capacity_factor is None or not chosen.numel():
        return chosen, weights
    capacity = math.ceil(capacity_factor * chosen.numel() / num_experts)
    in_line = chosen.T.flatten()  # [k T]: all first choices, then all second ones
    order = in_line.argsort(stable=True)
    sizes = in_line.bincount(minlength=num_experts)
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    places = torch.empty_like(order)  # in the line of its expert
    places[order] = torch.arange(len(order), device=order.device) - begins
    full = (places >= capacity).view_as(chosen.T).T
    return chosen.masked_fill(full, num_experts), weights.masked_fill(full, 0.0)
