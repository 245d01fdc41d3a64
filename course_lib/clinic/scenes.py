"""What a patient gets: a model and batches on each rank, and what it should learn from them."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib import theory
from course_lib.check import on_rank
from course_lib.clinic.patients import LARGEST

__all__ = ["Scene", "clipped", "of_each", "mean_over"]

RANKS, STEPS, SIZE, WORDS = 3, 5, 4, 300
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scene:
    """What one patient gets.

    Attributes:
        name: of the patient: "ada", "ben", "cleo", "dora" or "emil".
        seed: of all that is drawn.
        ranks: on how many it is seen.
    """

    name: str
    seed: int = 0
    ranks: int = RANKS

    def model(self, rank: int = 0) -> nn.Module:
        """The model that a rank begins with, in float64."""
        torch.manual_seed(self.seed + (rank if self.name == "dora" else 0))
        if self.name != "emil":
            return nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 16)).double()
        model = nn.Sequential(nn.Embedding(WORDS, 32), nn.Tanh(), nn.Linear(32, WORDS, bias=False)).double()
        model[2].weight = model[0].weight
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def batches(self, rank: int) -> list[Batch]:
        """The batches of a rank: of SIZE samples each, as many as there are steps, or fewer."""
        generator, draw = torch.Generator().manual_seed(self.seed), random.Random(self.seed)
        short, bad = draw.randrange(self.ranks), (draw.randrange(1, STEPS - 1), draw.randrange(self.ranks))
        found = []
        for step in range(STEPS):
            for other in range(self.ranks):
                if self.name == "emil":
                    x, y = (torch.randint(WORDS, (SIZE,), generator=generator) for _ in range(2))
                else:
                    x = torch.randn(SIZE, 32, generator=generator, dtype=torch.float64)
                    y = torch.randint(16, (SIZE,), generator=generator)
                if self.name == "ben" and (step, other) == bad:
                    x[0, 0] = float("nan")
                if other == rank and not (self.name == "ada" and other == short and step == STEPS - 1):
                    found.append((x, y))
        return found

    def steps(self) -> list[list[Batch]]:
        """Step by step, the batches of the ranks that have one."""
        by_rank = [self.batches(rank) for rank in range(self.ranks)]
        return [[own[step] for own in by_rank if len(own) > step] for step in range(STEPS)]

    def taught(
        self, gradient: Callable[[nn.Module, list[Batch]], list[Tensor] | None] | None = None
    ) -> Tensor:
        """The weights of one process that takes all ranks' batches of a step together; or with the gradients
        that `gradient(model, batches)` gives, for wrong ways.
        """
        model = self.model()
        optimizer = self.optimizer(model)
        for batches in self.steps():
            found = (gradient or self.right)(model, batches)
            if found is not None:
                for p, grad in zip(model.parameters(), found):
                    p.grad = grad
                optimizer.step()
        return on_rank.flat(model.parameters())

    def right(self, model: nn.Module, batches: list[Batch]) -> list[Tensor] | None:
        """The gradient of a step; None if it is left out."""
        x, y = (torch.cat(parts) for parts in zip(*batches))
        loss = F.cross_entropy(model(x), y)
        if not loss.isfinite():
            return None
        found = [*torch.autograd.grad(loss, list(model.parameters()))]
        return clipped(found) if self.name == "cleo" else found

    def bytes(self) -> float:
        """How many bytes a rank may send in all steps: an all_reduce of all gradients in each, and before
        them the weights from one rank to all others, as DDP does.
        """
        P = sum(p.nbytes for p in self.model().parameters())
        return STEPS * theory.collective_bytes("all_reduce", P, self.ranks) + (self.ranks - 1) * P


def clipped(gradients: Iterable[Tensor]) -> list[Tensor]:
    """The gradients, all made smaller alike, so that their norm together is LARGEST at most."""
    gradients = [grad.clone() for grad in gradients]
    norm = torch.cat([grad.flatten() for grad in gradients]).norm()
    return [grad * min(1.0, LARGEST / (norm.item() + 1e-6)) for grad in gradients]


def of_each(model: nn.Module, batches: list[Batch]) -> list[list[Tensor]]:
    """The gradient of each batch by itself, in their order."""
    params = list(model.parameters())
    return [[*torch.autograd.grad(F.cross_entropy(model(x), y), params)] for x, y in batches]


def mean_over(count: int, gradients: list[list[Tensor]]) -> list[Tensor]:
    """The sum of gradients, divided by a number."""
    return [sum(parts) / count for parts in zip(*gradients)]
