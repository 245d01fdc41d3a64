"""A parameter server: one rank holds the weights, all others work for it.

    serve   rank 0: takes a gradient from whoever comes first, applies it, and gives that worker new weights
    work    the others: take weights, give back a gradient, until they are sent home

What has happened to the weights since a worker took them is the **staleness** of its gradient. The server may
let a worker wait before it gives it weights: so that nobody is more than `bound` gradients ahead of the
slowest. With a bound of 0 all begin from the same weights, and one round of SGD is one synchronous step (of
the sum of the gradients); with an infinite bound nobody ever waits.

Both talk by messages [numel + 1]: weights, or a gradient, and behind them the number of updates that the
weights have seen: their version, which a gradient brings back. A version of -1 sends the worker home. Per
update one message comes in and one goes out, so all bytes pass through the server's one link.

Beside: `refusals`.

Source: Li et al. 2014, "Scaling distributed machine learning with the parameter server", sections 2 and 3; Ho
    et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server", section 2.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import at_least_0, function, process_group, takes, whole
from course_lib.mini.parameter_server import refusals as refuse

__all__ = ["serve", "work"]


@takes(
    params=refuse.other_weights,
    updates=partial(whole, least=0),
    optimizer=torch.optim.Optimizer,
    bound=at_least_0,
    group=process_group,
)
def serve(
    params: Tensor,
    updates: int,
    optimizer: torch.optim.Optimizer,
    bound: float = float("inf"),
    group: dist.ProcessGroup | None = None,
) -> list[tuple[int, int]]:
    """Apply so many gradients to params [numel], in place; for rank 0 of the group, while the others `work`.

    Args:
        params: a leaf, float32 or float64, on every rank as large.
        updates: how many gradients are applied; those of a round that is not complete, too.
        optimizer: of `params` alone; it takes one step for each gradient.
        bound: how many gradients a worker may be ahead of the slowest when it begins another; 0 to infinity.

    Returns:
        For each update which rank it came from, and its staleness: how many updates were made since.
    """
    message = params.new_empty(params.numel() + 1)
    clocks = dict.fromkeys(range(1, dist.get_world_size(group)), 0)  # gradients that each has brought
    waiting, given, history = list(clocks), 0, []

    def give(worker: int, version: float) -> None:
        weights = torch.cat([params.detach(), params.new_tensor([version])])
        dist.send(weights, group=group, group_dst=worker)

    for version in range(updates if clocks else 0):
        for worker in list(waiting):
            if given < updates and clocks[worker] <= min(clocks.values()) + bound:
                give(worker, version)
                waiting.remove(worker)
                given += 1
        source = dist.recv(message, group=group)  # from whoever comes first
        worker = dist.get_group_rank(group or dist.group.WORLD, source)
        history.append((worker, version - int(message[-1])))
        params.grad = message[:-1].clone()
        optimizer.step()
        clocks[worker] += 1
        waiting.append(worker)
    for worker in clocks:
        give(worker, -1)
    return history


@takes(params=refuse.other_weights, gradient=function, group=process_group)
def work(params: Tensor, gradient: Callable[[Tensor], Tensor], group: dist.ProcessGroup | None = None) -> int:
    """Bring gradients to rank 0 of the group, which must `serve`, until it sends this rank home.

    Args:
        params: [numel], as the server's; at the end they are the server's last ones.
        gradient: gets weights [numel], and returns the gradient [numel] there, of the next batch.

    Returns:
        How many gradients it has brought.
    """
    message, brought = params.new_empty(params.numel() + 1), 0
    while True:
        dist.recv(message, group=group, group_src=0)
        if message[-1] < 0:
            params.detach().copy_(message[:-1])
            return brought
        message[:-1] = refuse.other_gradient(gradient(message[:-1].clone()), params)
        dist.send(message, group=group, group_dst=0)
        brought += 1
