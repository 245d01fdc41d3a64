"""What the ranks of tests of mini.parameter_server and mini.local_sgd run."""

import copy

import torch
import torch.distributed as dist
from torch import nn

from course_lib import measure
from course_lib.mini import local_sgd, parameter_server

RATE, NUMEL = 0.1, 4000


def weights() -> torch.Tensor:
    return torch.linspace(-1, 1, NUMEL, dtype=torch.float64)


def pull(worker: int, number: int, params: torch.Tensor) -> torch.Tensor:
    """A gradient that depends on who makes it, on which one it is, and on the weights."""
    return params * (1 + worker / 10) - torch.full_like(params, number)


def serve(updates: int, bound: float, momentum: float = 0.0, steps: int = 1) -> dict:
    for _ in range(steps):
        params = weights().requires_grad_()
        optimizer = torch.optim.SGD([params], RATE, momentum=momentum)
        with measure.step():
            history = parameter_server.serve(params, updates, optimizer, bound)
    return {"history": history, "params": params.detach()}


def work(updates: int, bound: float, momentum: float = 0.0, steps: int = 1) -> dict:
    for _ in range(steps):
        params, given, numbers = weights(), [], iter(range(updates))

        def gradient(at: torch.Tensor) -> torch.Tensor:
            given.append(pull(dist.get_rank(), next(numbers), at))
            return given[-1]

        with measure.step():
            brought = parameter_server.work(params, gradient)
    return {"brought": brought, "given": given, "params": params}


def local_steps(every: int, outer: bool, steps: int) -> dict:
    """LocalSGD against every rank's model kept by hand, in float64; the ledger's step is one round."""
    rank, n = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    first = nn.Linear(200, 150).double()
    models = [copy.deepcopy(first) for _ in range(n)]  # of all ranks
    model = copy.deepcopy(first)
    make = lambda params: torch.optim.SGD(params, 0.7, momentum=0.9, nesterov=True)  # noqa: E731
    averager = local_sgd.LocalSGD(model.parameters(), every, 0.7 if outer else None)
    anchors = [p.detach().clone() for p in first.parameters()]
    by_hand = make(anchors)
    optimizers = [torch.optim.Adam(m.parameters(), 0.01) for m in [*models, model]]
    data = torch.randn(steps, n, 8, 200, generator=torch.Generator().manual_seed(1)).double()
    worst, averaged = 0.0, []
    for step in range(steps):
        for m, optimizer, r in zip([*models, model], optimizers, [*range(n), rank]):
            optimizer.zero_grad()
            m(data[step, r]).square().mean().backward()
            optimizer.step()
        with measure.step():
            averaged.append(averager.step())
        if (step + 1) % every == 0:
            with torch.no_grad():
                for i, same in enumerate(zip(*(m.parameters() for m in models))):
                    anchors[i].grad = anchors[i] - sum(same) / n
                if outer:
                    by_hand.step()
                for i, same in enumerate(zip(*(m.parameters() for m in models))):
                    mean = anchors[i] if outer else sum(same) / n
                    for p in same:
                        p.copy_(mean)
        worst = max(
            worst,
            *((a - b).abs().max().item() for a, b in zip(model.parameters(), models[rank].parameters())),
        )
    return {"error": worst, "averaged": averaged, "bytes": sum(p.nbytes for p in model.parameters())}


def weighted(samples: list[int]) -> dict:
    rank = dist.get_rank()
    params = [torch.full((3,), rank + 1.0).double(), torch.full((2,), -rank - 1.0).double()]
    if not samples[rank] and sum(samples):
        params = [p * float("nan") for p in params]
    total = local_sgd.weighted_average(params, samples[rank])
    return {"total": total, "values": [p.mean().item() for p in params]}


def refusals() -> list[str]:
    told, params = [], torch.zeros(3)
    sgd = torch.optim.SGD([params])
    for call in (
        lambda: parameter_server.serve(torch.zeros(2, 2), 1, sgd),
        lambda: parameter_server.serve(torch.zeros(3).long(), 1, sgd),
        lambda: parameter_server.serve(params, 1, sgd, bound=-1),
        lambda: parameter_server.work(params, None),
        lambda: local_sgd.LocalSGD([], 2),
        lambda: local_sgd.LocalSGD(params, 2),
        lambda: local_sgd.LocalSGD([params], 0),
        lambda: local_sgd.weighted_average([params], -1),
    ):
        try:
            call()
            told.append("nothing")
        except (ValueError, TypeError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told
