"""A machine measured by its own ranks: products per second, messages, and what software takes."""

import time
from collections.abc import Sequence
from statistics import median

import psutil
import torch
import torch.distributed as dist
from torch import nn

from course_lib import theory
from course_lib.arguments import listed, one_of
from course_lib.collectives import COLLECTIVES
from course_lib.jobs import run_quietly
from course_lib.mini import ring, tensor_parallel
from course_lib.plan.facts import Link, Machine, Plan
from course_lib.plan.trials import one_of_demo, software_time
from course_lib.plan.ways import WAYS
from course_lib.ranks import devices

__all__ = ["calibrate"]

SHAPES = ((60, 256), (480, 256), (60, 16))  # rows and width of a layer, to tell three costs apart
SIZES = (2**12, 2**20)  # bytes of messages
BLOCKS = 3  # of each measurement, of which the middle one counts
OPS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "send")


def calibrate(ranks: Sequence[int], ways: Sequence[str] | None = None) -> Machine:
    """Measure this machine with so many ranks at work, (1, 2) say; for (1, 2, 4) it takes a minute or two.

    Products per second of one rank while all are busy; for each collective, in groups of all ranks and of
    two, alpha and beta of a ring; the optimizer; and for each way to train, a step of a network with next to
    no numbers in it, which is what software takes.

    Args:
        ways: of WAYS, those whose software is measured; None: all that run here.
    """
    from course_lib.plan.costs import cost
    from course_lib.plan.reading import describe
    from course_lib.plan.trials import FEW, MLP, THIN

    counts = listed("ranks", ranks, "numbers of ranks, from 1 to 8", lambda n: type(n) is int and 1 <= n <= 8)
    if ways is not None:
        for way in listed("ways", ways, "names in WAYS"):
            one_of("way", way, tuple(WAYS))
    rates, numel_s, update_s, links = {}, {}, {}, []
    for n in counts:
        rates[n], numel_s[n], update_s[n] = _computing(run_quietly(_layers, ranks=n, timeout=300).results)
        if n > 1:
            found = run_quietly(_messages, ranks=n, timeout=300).results
            links += [_link(n, op, group, [of[op, group] for of in found]) for op, group in found[0]]
    memory = psutil.virtual_memory().available / max(counts)
    machine = Machine(
        f"this machine, {devices.usable_cores()} cores, gloo",
        *(devices.usable_cores(), rates, memory, tuple(links), numel_s, update_s),
        gloo=True,
    )
    thin, software = describe(MLP(THIN), torch.rand(2, 1, 4, 4), "thin", FEW), {}
    for way in WAYS if ways is None else ways:
        for n in counts:
            mesh = WAYS[way].mesh(n)
            if mesh and (n > 1 or way == "one process"):
                plan = Plan(way, **mesh)
                if FEW % (plan.dp * plan.microbatches) == 0 and one_of_demo(plan):
                    known = cost(plan, thin, machine).step_s
                    software.setdefault(way, {})[n] = software_time(plan) - known
    return Machine(**vars(machine) | {"software_s": software})


def _layers(steps: int = 100) -> list[list[tuple[float, float]]]:
    """Seconds of four Linear and ReLU, forward and backward, and of Adam's update: for each of SHAPES, by
    step. As in a training: one after the other, for each finds in the caches what the other has left; and all
    ranks begin a step together, for it ends with the slowest.
    """
    found = []
    for rows, width in SHAPES:
        layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)))
        x = torch.rand(rows, width, requires_grad=True)
        adam = torch.optim.Adam(layers.parameters())
        found.append([])
        for step in range(steps + 2):
            dist.barrier()
            begin = time.perf_counter()
            layers(x).sum().backward()
            between = time.perf_counter()
            adam.step()
            adam.zero_grad()
            if step >= 2:
                found[-1].append((between - begin, time.perf_counter() - between))
    return found


def _computing(found: list) -> tuple[float, float, float]:
    """Products per second, seconds per parameter of a pass, of an update: of three shapes, three costs."""
    of_shapes = [[tuple(map(max, zip(*ranks))) for ranks in zip(*steps)] for steps in zip(*found)]
    (few, update), (many, _), (thin, least) = (tuple(map(median, zip(*steps))) for steps in of_shapes)
    few, many, thin = (max(seconds / 4, 1e-9) for seconds in (few, many, thin))
    (rows, width), (more, _), (_, small) = SHAPES
    product_s = max((many - few) / (3 * (more - rows) * width**2), 1e-13)
    rest = few - thin - 3 * rows * (width**2 - small**2) * product_s
    numel_s = max(0.0, rest / (width**2 + width - small**2 - small))
    update_s = (update - least) / (4 * (width**2 + width - small**2 - small))
    return 1 / product_s, numel_s, max(0.0, update_s)


def _messages(times: int = 12) -> dict[tuple[str, int], list[float]]:
    """Seconds of each collective with each of SIZES, in groups of all ranks and of two; of gloo; of the
    course's own ring ("ring ..."); and of its tensor parallelism, which copies what it sums ("tp ...").
    """
    n, rank = dist.get_world_size(), dist.get_rank()
    pairs = [dist.new_group([i, i + 1]) for i in range(0, n - 1, 2)]
    groups = {n: None} | ({2: pairs[rank // 2]} if n > 2 and n % 2 == 0 else {})
    found = {}
    for size, group in groups.items():
        for op in (*OPS, "ring all_reduce", "ring reduce_scatter", "ring all_gather", "tp all_reduce"):
            found[op, size] = [_seconds_of(op, payload, size, group, times) for payload in SIZES]
    return found


def _seconds_of(op: str, payload: int, size: int, group, times: int) -> float:
    tensor = torch.zeros(payload // 4 // size * size)
    part, mine = torch.zeros(len(tensor) // size), dist.get_rank(group)
    peer = dist.get_global_rank(group, mine ^ 1) if group else dist.get_rank() ^ 1
    calls = {
        "all_reduce": lambda: dist.all_reduce(tensor, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, tensor, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(tensor, part, group=group),
        "broadcast": lambda: dist.broadcast(tensor, group_src=0, group=group),
        "send": lambda: (dist.send if mine % 2 == 0 else dist.recv)(tensor, peer),
        "ring all_reduce": lambda: ring.all_reduce(tensor, group),
        "ring reduce_scatter": lambda: ring.reduce_scatter(part, tensor, group),
        "ring all_gather": lambda: ring.all_gather(tensor, part, group),
        "tp all_reduce": lambda: tensor_parallel.reduce_from_group(tensor, group),
    }
    if op == "send" and mine == size - 1 and size % 2:
        calls["send"] = lambda: None  # has no partner
    blocks, factor = [], torch.rand(256, 256)
    for _ in range(BLOCKS):
        calls[op]()
        dist.barrier()
        seconds = 0.0
        for _ in range(times):
            factor @ factor  # half a millisecond: between two messages ranks compute, and meet unevenly
            begin = time.perf_counter()
            calls[op]()
            seconds += time.perf_counter() - begin
        blocks.append(seconds / times)
    return median(blocks)


def _link(ranks: int, op: str, group: int, found: list[list[float]]) -> Link:
    """alpha and beta from two sizes, as the slowest rank saw them."""
    small, large = map(max, zip(*found))
    name = op.split()[-1]
    if COLLECTIVES[name].ring_steps is None:
        beta = max(large - small, 0) / (SIZES[1] - SIZES[0])
        alpha = small - SIZES[0] * beta
    else:
        steps, each = (
            theory.ring_seconds(name, size, group, *unit) for size, unit in ((1, (1, 0)), (1, (0, 1)))
        )
        beta = max(large - small, 0) / (SIZES[1] - SIZES[0]) / each
        alpha = (small - SIZES[0] * each * beta) / steps
    return Link(64, max(alpha, 0.0), beta, op, ranks, group)
