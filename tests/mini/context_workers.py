"""Functions that the tests of course_lib.mini.context run on ranks."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from course_lib import measure
from course_lib.measure import alive
from course_lib.mini import context
from course_lib.models import GPTScores, TinyGPT

METHODS = {"ring": context.ring_attention, "Ulysses": context.ulysses_attention}
HEADS, DIM = 12, 4  # 2, 3 and 4 ranks divide them


def whole(
    time: int, kv_heads: int = HEADS, seed: int = 1, scale: float = 1.0, dim: int = DIM
) -> list[Tensor]:
    """q, k, v and the gradient of the output, of the whole sequence, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, kv_heads, kv_heads, HEADS)
    tensors = [torch.randn(2, h, time, dim, generator=generator, dtype=torch.float64) for h in heads]
    return [scale * tensors[0], *tensors[1:]]


def apart(found: Tensor, wanted: Tensor, mine: Tensor | None = None) -> float:
    """The error of what a rank has of `wanted`, over the norm of all of it. (The first token's query has one
    key, and no gradient but rounding.)
    """
    part = wanted if mine is None else wanted[:, :, mine]
    return float((found - part).norm() / wanted.norm())


def against_one_process() -> dict[str, float]:
    """By case, the largest relative error of the output and of the three gradients."""
    n, told = dist.get_world_size(), {}
    cases = [(24, HEADS, 1.0), (24 + n + 1, HEADS, 1.0), (n, HEADS, 1.0), (25, HEADS // 12 * n, 30.0)]
    for time, kv_heads, scale in cases:
        given = whole(time, kv_heads, scale=scale)
        for causal in (True, False):
            q, k, v = (x.clone().requires_grad_() for x in given[:3])
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            out.backward(given[3])
            wanted = [out.detach(), q.grad, k.grad, v.grad]
            for order in ("zigzag", "contiguous"):
                mine = context.positions(time, order)
                for name, attention in METHODS.items():
                    q, k, v = (x[:, :, mine].clone().requires_grad_() for x in given[:3])
                    out = attention(q, k, v, causal, order, None if time % n == 0 else time)
                    out.backward(given[3][:, :, mine])
                    found = [out.detach(), q.grad, k.grad, v.grad]
                    errors = [apart(a, b, mine) for a, b in zip(found, wanted)]
                    told[f"{name}, {time} tokens, {kv_heads} heads of keys, {causal=}, {order}"] = max(errors)
    return told


def in_groups() -> float:
    """Two groups of two, with other sequences; and inputs that are no leaves, in bfloat16."""
    groups = [dist.new_group(ranks) for ranks in ([0, 2], [3, 1])]
    number = dist.get_rank() % 2
    group, given = groups[number], whole(15, seed=number)
    wanted = F.scaled_dot_product_attention(*given[:3], is_causal=True)
    mine = context.positions(15, process_group=group)
    worst = 0.0
    for attention in METHODS.values():
        q, k, v = (x[:, :, mine] for x in given[:3])
        out = attention(q, k, v, time=15, process_group=group)
        worst = max(worst, apart(out, wanted, mine))
        out = attention(*(x.bfloat16() for x in (q, k, v)), time=15, process_group=group)
        assert out.dtype == torch.bfloat16
        worst = max(worst, apart(out.double(), wanted, mine) / 1e5)
    return worst


def a_model(steps: int = 3) -> dict[str, float]:
    """A TinyGPT that is trained on sequences which no rank has whole: losses and weights of one process."""
    torch.manual_seed(0)
    alone = TinyGPT(dim=24, heads=12, context=32, vocab_size=64).double()
    tokens = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(2))
    told = {}
    models = {name: GPTScores(dim=24, heads=12, context=32, vocab_size=64).double() for name in METHODS}
    for name, model in models.items():
        model.load_state_dict(alone.state_dict())
        mine = context.positions(29)
        context.attach(model, METHODS[name], time=29)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        inputs, targets = tokens[:, :-1][:, mine], tokens[:, 1:][:, mine]
        for _ in range(steps):
            loss = context.mean_of_all(F.cross_entropy(model(inputs, mine), targets, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            for p in model.parameters():
                dist.all_reduce(p.grad)
            optimizer.step()
        told[name] = loss.detach().clone()
        dist.all_reduce(told[name])
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = alone(tokens)
        loss.backward()
        optimizer.step()
    told = {f"loss, {name}": apart(found, loss.detach()) for name, found in told.items()}
    flat = torch.nn.utils.parameters_to_vector(alone.parameters()).detach()
    for name, model in models.items():
        own = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        told[f"weights, {name}"] = apart(own, flat)
    return told


def measured(name: str, time: int, kv_heads: int, backward: bool, steps: int = 2) -> None:
    """Steps of one attention, for the ledger."""
    mine = context.positions(time)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, h, len(mine), 64, generator=generator) for h in (HEADS, kv_heads, kv_heads)]
    for _ in range(steps):
        q, k, v = (x.clone().requires_grad_(backward) for x in given)
        with measure.step():
            out = METHODS[name](q, k, v, time=time)
            if backward:
                out.sum().backward()


def most_held(name: str, own_tokens: int, dim: int = 128) -> dict[str, float]:
    """The most that a rank holds beside q, k and v, in bytes of its own keys: forward, and in all."""
    given = [torch.randn(1, HEADS, own_tokens, dim) for _ in range(3)]
    q, k, v = (x.requires_grad_() for x in given)
    with alive.Allocations() as held:
        out = METHODS[name](q, k, v)
        held.mark("forward")
        out.sum().backward()
        held.mark("backward")
    return {"forward": held.peak_bytes("", "forward") / k.nbytes, "all": held.peak_bytes() / k.nbytes}


def refusals() -> list[str]:
    ones = torch.ones
    given = ones(1, 6, 5, 4)
    calls = [
        lambda: context.ulysses_attention(given, given, given),
        lambda: context.ulysses_attention(ones(1, 8, 5, 4), ones(1, 2, 5, 4), ones(1, 2, 5, 4)),
        lambda: context.ring_attention(given, given, given, time=28),
        lambda: context.ring_attention(given, ones(1, 4, 5, 4), ones(1, 4, 5, 4)),
        lambda: context.ring_attention(given, given.double(), given.double()),
        lambda: context.ring_attention(given[0], given, given),
        lambda: context.ring_attention(given, given, given, order="striped"),
        lambda: context.positions(3),
        lambda: context.attach(torch.nn.Linear(2, 2), context.ring_attention),
    ]
    told = []
    for call in calls:
        try:
            call()
        except (ValueError, TypeError) as error:
            told.append(str(error))
    return told
