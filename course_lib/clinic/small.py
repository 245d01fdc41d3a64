"""What the programs of the clinic share: a model, batches, and the loop around the line that matters. Small,
on the CPU, in float64, so that no mistake can hide behind rounding.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["small_model", "batches", "mine", "loss_of", "flat", "average_gradients", "trained", "one_process"]

RATE = 0.5


def small_model(seed: int = 0) -> nn.Sequential:
    """Four parameters, of 63 numbers; the same on every rank that gives the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """The global batches: float64 [size, 6] and int64 [size], the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count * size,), generator=generator)
    return list(zip(x.split(size), y.split(size)))


def mine(tensor: Tensor) -> Tensor:
    """This rank's part of a global batch."""
    return tensor.tensor_split(dist.get_world_size())[dist.get_rank()]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean loss of a model over some samples."""
    return F.cross_entropy(model(x), y)


def flat(model: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def average_gradients(model: nn.Module) -> None:
    """Give every rank the mean of all ranks' gradients. Every rank must call this."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def trained(average: Callable[[nn.Module], None], seed: int = 0) -> Tensor:
    """The weights of this rank after three steps of SGD on its parts, `average(model)` after backward."""
    model = small_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model, mine(x), mine(y)).backward()
        average(model)
        optimizer.step()
    return flat(model)


def one_process(rank: int = 0, count: int = 3, rate: float = RATE, skip: tuple[int, ...] = ()) -> Tensor:
    """What every rank should have: the weights of one process after the steps over whole batches."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for number, (x, y) in enumerate(batches()[:count]):
        if number not in skip:
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
    return flat(model)
