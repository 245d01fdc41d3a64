"""Ways to train one model on many ranks, as data: how each prepares model and optimizer, and what theory expects of it.

A new strategy is a function that takes a model and returns model and optimizer, and an entry in STRATEGIES. `train_digits` and
`all_reduce_seconds` are what the ranks run to compare them (see `course_lib.demo`).
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from course_lib import measure
from course_lib.datasets import digit_batches, digits
from course_lib.mini import ddp, ring
from course_lib.models import MLP

__all__ = ["Strategy", "ONE_PROCESS", "STRATEGIES", "train_digits", "all_reduce_seconds"]

WIDTHS = (64, 256, 256, 256, 256, 256, 10)        # layers of like size, so that they can be dealt out evenly
LEARNING_RATE = 4e-3


@dataclass(frozen=True)
class Strategy:
    """One way to train.

    Attributes:
        name: as tables and figures show it.
        prepare: takes the model, and returns model and optimizer as the ranks train them; every rank must call it.
        stage: what is sharded, for `theory.zero_memory`: 0 nothing, 1 the optimizer states, 2 the gradients too, 3 the parameters too.
        step_bytes: its name in `theory.step_bytes`, as textbook and NCCL do it.
        step_bytes_on_gloo: the same on gloo.
    """
    name: str
    prepare: Callable[[nn.Module], tuple[nn.Module, Optimizer]]
    stage: int
    step_bytes: str
    step_bytes_on_gloo: str


def _alone(model: nn.Module) -> tuple[nn.Module, Optimizer]:
    return model, Adam(model.parameters(), LEARNING_RATE)


def _ddp(model: nn.Module) -> tuple[nn.Module, Optimizer]:
    """Every rank has everything; gradients are averaged during backward."""
    model = DistributedDataParallel(model)
    return model, Adam(model.parameters(), LEARNING_RATE)


def _mini_ddp(model: nn.Module) -> tuple[nn.Module, Optimizer]:
    """As DDP, from scratch: the course's own hooks and buckets, on its own ring of sends and receives."""
    model = ddp.DistributedDataParallel(model, all_reduce=ring.all_reduce)
    return model, Adam(model.parameters(), LEARNING_RATE)


def _zero_1(model: nn.Module) -> tuple[nn.Module, Optimizer]:
    """As DDP, but each parameter has one owner, which alone keeps its optimizer state, updates it and broadcasts it."""
    model = DistributedDataParallel(model)
    return model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=Adam, lr=LEARNING_RATE)


def _fully_shard(model: nn.Module) -> tuple[nn.Module, Optimizer]:
    """Every rank has a slice of everything; each layer is gathered for as long as it computes."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model, Adam(model.parameters(), LEARNING_RATE)


ONE_PROCESS = Strategy("one process", _alone, 0, "data_parallel", "data_parallel")
STRATEGIES = (
    Strategy("DDP", _ddp, 0, "data_parallel", "data_parallel"),
    Strategy("mini DDP", _mini_ddp, 0, "data_parallel", "data_parallel"),
    Strategy("ZeRO-1", _zero_1, 1, "zero_redundancy_optimizer", "zero_redundancy_optimizer"),
    Strategy("fully_shard", _fully_shard, 3, "zero_3", "fully_shard_gloo"),
)


def train_digits(strategy: Strategy, epochs: int, batch_size: int = 480, seed: int = 0) -> dict[str, float]:
    """Train an MLP of 282,378 parameters on the digits and test it; every rank must call this.

    The same seed gives the same start and the same global batches, however many ranks share them.

    Args:
        batch_size: samples of all ranks together in one step.

    Returns:
        Per rank: accuracy and loss over the 355 test images, and the number of the model's parameters (numel).
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(seed)
    model = MLP(WIDTHS)
    numel = sum(parameter.numel() for parameter in model.parameters())
    model, optimizer = strategy.prepare(model)
    for epoch in range(epochs):
        for images, labels in digit_batches(batch_size, rank, world_size, epoch=epoch, seed=seed):
            with measure.step(model, optimizer, samples=len(labels)):
                # The ranks' gradients are averaged, so this is the mean over the global batch, whether its slices are equal or not.
                loss = F.cross_entropy(model(images), labels, reduction="sum") * world_size / batch_size
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    images, labels = digits("test")
    with torch.no_grad():
        scores = model(images)
    return {"accuracy": (scores.argmax(1) == labels).float().mean().item(), "loss": F.cross_entropy(scores, labels).item(), "numel": numel}


def all_reduce_seconds(payload_bytes: int, times: int = 5) -> list[float]:
    """Time so many all_reduces of a tensor of `payload_bytes`, after one that warms up; every rank must call this."""
    tensor = torch.zeros(payload_bytes // 4)
    seconds = []
    for _ in range(times + 1):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]
