"""Functions that the tests of course_lib.mini.compression run on ranks."""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from course_lib import measure
from course_lib.datasets import digit_accuracy, digit_batches
from course_lib.mini import compression
from course_lib.models import MLP, digit_mlp

SHAPES = {"vector": (13,), "matrix": (7, 9), "kernel": (4, 3, 5), "number": (1,)}
METHODS = {
    "rounded": compression.rounded,
    "top_k": partial(compression.top_k, share=0.2),
    "one_bit": compression.one_bit,
    "low_rank": compression.low_rank,
}
STEPS = 4


def gradient(shape, rank: int, step: int, dtype=torch.float64):
    draw = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(shape, generator=draw, dtype=dtype) * (1 + rank)


# What each method says, written anew


def said_by(name: str, wanted: list, memory: dict):
    """For the gradients of all ranks: the mean, and what each has said."""
    n, shape = len(wanted), wanted[0].shape
    if name == "top_k":
        said = []
        for one in wanted:
            order = sorted(range(one.numel()), key=lambda place: -abs(one.flatten()[place].item()))
            kept = torch.zeros(one.numel(), dtype=one.dtype)
            for place in order[: max(1, round(0.2 * one.numel()))]:
                kept[place] = one.flatten()[place]
            said.append(kept.view(shape))
    elif name == "one_bit":
        said = [torch.where(one >= 0, one.abs().mean(), -one.abs().mean()) for one in wanted]
    elif name == "rounded":
        said = [(one / n).bfloat16().to(one.dtype) * n for one in wanted]
    else:
        whole = sum(wanted) / n
        matrix = whole.flatten(1) if whole.ndim > 1 else whole
        if whole.ndim < 2 or 2 * sum(matrix.shape) >= matrix.numel():
            return whole, wanted
        draw = torch.Generator().manual_seed(0)
        q = memory.setdefault("Q", torch.randn(matrix.shape[1], 2, generator=draw).to(whole))
        p = torch.linalg.qr(matrix @ q).Q
        memory["Q"] = matrix.T @ p
        mean = (p @ memory["Q"].T).view(shape)
        return mean, [mean] * n
    return sum(said) / n, said


def against_one_process() -> dict:
    """Relative errors of means, over some steps, and of what is unsaid in the end; all have one mean."""
    n, rank, told = dist.get_world_size(), dist.get_rank(), {}
    for name, method in METHODS.items():
        for feedback in (True, False):
            averages = compression.ErrorFeedback(method, feedback=feedback)
            for key, shape in SHAPES.items():
                unsaid, memory, total = [torch.zeros(shape).double()] * n, {}, 0.0
                for step in range(STEPS):
                    grads = [gradient(shape, other, step) for other in range(n)]
                    given = grads[rank].clone()
                    mean = averages.average(key, given)
                    assert torch.equal(given, grads[rank]) and mean.shape == given.shape
                    assert mean.dtype == given.dtype
                    wanted = [grad + feedback * rest for grad, rest in zip(grads, unsaid)]
                    right, said = said_by(name, wanted, memory)
                    unsaid = [a - b for a, b in zip(wanted, said)]
                    error = (mean - right).norm() / right.norm()
                    told[name, feedback, key, step] = error.item()
                    every = [torch.empty_like(mean) for _ in range(n)]
                    dist.all_gather(every, mean)
                    assert all(torch.equal(mean, other) for other in every), (name, key)
                    total = total + mean - sum(grads) / n
                if feedback and name != "rounded":  # nothing is lost, it only comes later
                    rest = averages.memory[key]["unsaid"].clone()
                    dist.all_reduce(rest)
                    told[name, "kept", key] = (total + rest / n).norm().item()
    return told


def steps_of_all(shape: tuple[int, ...]) -> dict:
    """Three steps of each method, one after the other, the warm-up apart."""
    told = {}
    with measure.step():
        dist.barrier()
    for name, method in METHODS.items():
        averages = compression.ErrorFeedback(method)
        for step in range(3):
            with measure.step():
                averages.average("it", gradient(shape, dist.get_rank(), step, torch.float32))
        told[name] = averages.unsaid_bytes()
    return told


def by_hook_and_by_hand(name: str) -> float:
    """The distance of weights after some steps of DDP with several buckets, whose order changes."""
    rank, n, results = dist.get_rank(), dist.get_world_size(), []
    for by_hook in (True, False):
        torch.manual_seed(0)
        net = MLP((64, 24, 16, 10)).double()
        averages = compression.ErrorFeedback(METHODS[name])
        model = net
        if by_hook:
            model = DistributedDataParallel(net, bucket_cap_mb=0.002)
            model.register_comm_hook(averages, compression.ddp_hook)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for (images, labels), _ in zip(digit_batches(32, rank, n), range(5)):
            F.cross_entropy(model(images.double()), labels).backward()
            for p in () if by_hook else net.parameters():
                p.grad = averages.average(p, p.grad)
            optimizer.step()
            optimizer.zero_grad()
        results.append(nn.utils.parameters_to_vector(net.parameters()).detach())
    return (torch.dist(*results) / results[0].norm()).item()


def accuracies() -> dict[str, float]:
    """Test digits that are right after 110 steps: plain, and with little said, with error feedback and
    without.
    """
    rank, n, told = dist.get_rank(), dist.get_world_size(), {}
    plain = partial(compression.rounded, dtype=torch.float32)
    little = partial(compression.top_k, share=0.002)
    cases = {"plain": (plain, True), "feedback": (little, True), "without": (little, False)}
    cases["one bit"], cases["low rank"] = (compression.one_bit, True), (compression.low_rank, True)
    for name, (method, feedback) in cases.items():
        torch.manual_seed(0)
        model, averages = digit_mlp(), compression.ErrorFeedback(method, feedback=feedback)
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for epoch in range(5):
            for images, labels in digit_batches(64, rank, n, epoch=epoch):
                F.cross_entropy(model(images), labels).backward()
                for p in model.parameters():
                    p.grad = averages.average(p, p.grad)
                optimizer.step()
                optimizer.zero_grad()
        told[name] = digit_accuracy(model)
    return told


def refusals() -> list[str]:
    """What wrong arguments are told."""
    ones, told = torch.ones(3), []
    for call in (
        lambda: compression.ErrorFeedback(3),
        lambda: compression.ErrorFeedback(compression.one_bit).average([], ones),
        lambda: compression.one_bit(torch.ones(3, dtype=torch.int64), {}),
        lambda: compression.one_bit(torch.ones(0), {}),
        lambda: compression.top_k(ones, {}, share=0.0),
        lambda: compression.low_rank(torch.ones(3, 3), {}, rank=0),
        lambda: compression.rounded(ones, None),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told
