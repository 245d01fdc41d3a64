"""How a patient is seen: it trains on ranks, and beside it stands what it should have learned."""

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from course_lib import measure
from course_lib.arguments import one_of
from course_lib.check import on_rank
from course_lib.clinic.patients import PATIENTS
from course_lib.clinic.scenes import Scene

__all__ = ["visit", "healthy", "bill"]


def visit(patient: Callable, name: str) -> Tensor:
    """On a rank: let a patient, or your mended one, train, and return the weights that it has in the end.

    It trains twice, each time inside `measure.step`: the second one is traced. Every rank must call this.

    Args:
        patient: patient(model, optimizer, batches).
        name: whose model and batches it gets: "ada", "ben", "cleo", "dora" or "emil".
    """
    scene, rank = Scene(one_of("name", name, tuple(PATIENTS))), dist.get_rank()
    on_rank.use_cpu()
    for _ in range(2):
        model = scene.model(rank)
        with measure.step():
            patient(model, scene.optimizer(model), scene.batches(rank))
    return on_rank.flat(model.parameters())


def healthy(name: str) -> Tensor:
    """The weights that every rank should have after `visit`, by one process."""
    return Scene(one_of("name", name, tuple(PATIENTS))).taught()


def bill(name: str) -> float:
    """How many bytes a rank needs to send in `visit`."""
    return Scene(one_of("name", name, tuple(PATIENTS))).bytes()
