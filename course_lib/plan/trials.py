"""Plans that run: the trainings of course_lib.demo, on this machine, measured."""

import time
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib.arguments import instance, whole
from course_lib.demo import strategies as demo
from course_lib.jobs import run_quietly
from course_lib.measure.alive import Allocations
from course_lib.models import MLP
from course_lib.plan.facts import Plan
from course_lib.plan.ways import WAYS
from course_lib.record import Job

__all__ = ["run_plan", "software_time", "peak", "one_of_demo"]

THIN = (16, 16, 16, 16, 16, 16, 10)  # as many layers as the demo's network, with next to nothing in them
FEW = 16  # samples


def one_of_demo(plan: Plan) -> demo.Strategy:
    """The demo's strategy of a plan.

    Errors: ValueError where the demo has none, or not on this mesh.
    """
    instance("plan", plan, Plan)
    found = [its for its in (demo.ONE_PROCESS, *demo.STRATEGIES) if its.name == plan.way]
    mesh = WAYS[plan.way].mesh(plan.ranks)
    if not found or not mesh or Plan(plan.way, **mesh) != plan:
        raise ValueError(f"{plan}: course_lib.demo does not train so.")
    return found[0]


def run_plan(plan: Plan, epochs: int = 4) -> Job:
    """Train the digits by a plan, and return the job, to be read as any other."""
    strategy = one_of_demo(plan)
    return run_quietly(
        demo.train_digits, strategy, whole("epochs", epochs), ranks=plan.ranks, label=str(plan), timeout=300
    )


def software_time(plan: Plan, steps: int = 24) -> float:
    """Seconds of a step of a plan whose network has next to no numbers: what it takes in Python and to call.
    The median over the steps, of the slowest rank.
    """
    strategy = one_of_demo(plan)
    job = run_quietly(_thin_steps, strategy, steps, ranks=plan.ranks, label=str(plan), timeout=300)
    return median(map(max, zip(*job.results)))


def peak(plan: Plan) -> list[int]:
    """The most bytes of tensors that a rank has at any moment of a step, whoever holds them: one number for
    each rank. It is measured in a run of its own, which is slow.
    """
    return run_quietly(_peak, one_of_demo(plan), ranks=plan.ranks, label=str(plan), timeout=300).results


def _steps(strategy: demo.Strategy, network: nn.Module, samples: int, side: int = 8):
    """A function that makes one step of a strategy with random images; every rank must call this."""
    torch.manual_seed(0)
    training = strategy.prepare(network)
    size = samples // training.places
    images, labels = torch.rand(size, 1, side, side), torch.randint(10, (size,))

    def backward(images, labels):
        loss = F.cross_entropy(training.model(images), labels, reduction="sum")
        (loss * training.places / samples).backward()

    def step():
        (training.backward or backward)(images, labels)
        training.optimizer.step()
        training.optimizer.zero_grad()

    return step


def _thin_steps(strategy: demo.Strategy, steps: int) -> list[float]:
    step, seconds = _steps(strategy, MLP(THIN), FEW, side=4), []
    for _ in range(steps + 2):
        dist.barrier()
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def _peak(strategy: demo.Strategy) -> int:
    with Allocations() as made:
        step = _steps(strategy, strategy.network(), demo.BATCH_SIZE)
        step()
        step()
        made.mark("begin")
        step()
        made.mark("end")
    return made.peak_bytes("begin", "end")
