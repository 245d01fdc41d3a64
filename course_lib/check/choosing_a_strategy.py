"""Checks of the chapter "Choosing a strategy": what a forward computes and keeps, a link's two numbers from
measurements of which some are disturbed, the bytes of a mesh before it runs.
"""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from course_lib import measure, theory, torch_internals
from course_lib.check import on_rank
from course_lib.check.counted import header_bytes
from course_lib.check.judge import Judge, exercise
from course_lib.mini import hybrid, tensor_parallel
from course_lib.mini.ddp import DistributedDataParallel
from course_lib.models import MLP
from course_lib.record import sent

__all__ = ["forward_counts", "link_of_measurements", "bytes_by_axis"]

NEAR = 0.05  # relative, of alpha and beta
AS_RUN = 0.01  # relative, of bytes


@exercise(
    params="params: each parameter once, whoever else uses it",
    products="products: of every Linear each time that it works, for one sample",
    kept="kept_bytes: what autograd keeps for one sample, each memory once, without parameters",
    calm="one forward, and the network is left as it was: no hooks, no gradients",
)
def forward_counts(judge: Judge, answer: Callable) -> None:
    """`answer(network, x)` is a dict of params, products and kept_bytes, found by one forward."""

    def counted(answer, seed):
        on_rank.use_cpu()
        draw = random.Random(seed)

        class Twice(nn.Module):
            """One layer that works twice."""

            def __init__(self, width):
                super().__init__()
                self.layer = nn.Linear(width, width)

            def forward(self, x):
                return self.layer(self.layer(x).relu())

        class Tied(nn.Module):
            """Two layers with one weight, and a frozen one."""

            def __init__(self, width):
                super().__init__()
                self.one, self.two = nn.Linear(width, width), nn.Linear(width, width, bias=False)
                self.two.weight = self.one.weight
                self.frozen = nn.Linear(width, width).requires_grad_(False)

            def forward(self, x):
                return self.frozen(self.two(self.one(x).relu()))

        def case(kind):
            widths = [draw.choice([8, 12, 20, 36, 44]) for _ in range(4)]
            samples = draw.randint(3, 9)
            layers = [nn.Linear(*pair) for pair in zip(widths[:-1], widths[1:])]
            odd = {"plain": nn.ReLU, "twice": Twice, "tied": Tied}[kind]
            middle = odd() if kind == "plain" else odd(widths[2])
            net = nn.Sequential(layers[0], nn.ReLU(), layers[1], middle, layers[2])
            calls, works = [0], [0]
            net.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
            x, kept = torch.randn(samples, widths[0]), {}
            own = {p.untyped_storage().data_ptr() for p in net.parameters()}

            def keep(tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage, storage.nbytes()
                return tensor

            hooks = []
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    size = layer.in_features * layer.out_features
                    hooks.append(
                        layer.register_forward_hook(
                            lambda *_, size=size: works.__setitem__(0, works[0] + size)
                        )
                    )
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                net(x)
            for hook in hooks:
                hook.remove()
            wanted = {
                "params": sum(p.numel() for p in net.parameters()),
                "products": works[0],
                "kept_bytes": sum(size for _, size in kept.values()) / samples,
            }
            kept.clear()
            calls[0] = 0
            before = list(map(torch_internals.hooks_around_forward, net.modules()))
            found = answer(net, x)
            after = list(map(torch_internals.hooks_around_forward, net.modules()))
            grads = any(p.grad is not None for p in net.parameters())
            return {
                "kind": kind,
                "found": on_rank.plain(found),
                "wanted": wanted,
                "calls": calls[0],
                "hooks": after != before,
                "grads": grads,
            }

        return [case(kind) for kind in ("plain", "twice", "tied", "plain")]

    words = {
        "plain": "layers in a row",
        "twice": "a layer that works twice",
        "tied": "two layers with one weight, and a frozen one",
    }
    hints = {
        "params": "Does a weight that two layers share count twice, or a frozen one not at all?",
        "products": "Does a layer that works twice count once? Is it of one sample, and not of all?",
        "kept_bytes": "Do parameters count, or one memory twice? A view lies in the memory of another tensor."
        " Is it of one sample?",
    }
    (cases,) = judge.run(counted, answer, judge.seed, ranks=1).results
    for case in cases:
        judge.case, found = words[case["kind"]], case["found"]
        if not isinstance(found, dict) or not set(hints) <= set(found):
            judge.refuse(f"return a dict with {', '.join(hints)}, not {on_rank.short(found)}")
        missed = {}
        for key, wanted in case["wanted"].items():
            its = found[key]
            right = isinstance(its, int | float) and abs(its - wanted) <= 1e-6 * wanted
            told = f"{key} is {wanted:,.0f}, and you say {on_rank.short(its)}. {hints[key]}"
            missed["kept" if key == "kept_bytes" else key] = "" if right else told
        missed["calm"] = ""
        if case["hooks"]:
            missed["calm"] = (
                "hooks are left on the network: keep what `register_...` returns, and call remove()"
            )
        elif case["grads"]:
            missed["calm"] = "parameters have gradients now: nothing here needs a backward"
        elif case["calls"] != 1:
            missed["calm"] = f"the network has worked {case['calls']} times: one forward says all"
        if any(missed.values()) or case is cases[-1]:
            judge.case = judge.case if any(missed.values()) else ""
            for key, why in missed.items():
                judge.demand(key, why)
            return


@exercise(
    clean="of exact measurements, alpha and beta exactly (to 0.1%)",
    disturbed=f"where some measurements are disturbed, both to {NEAR:.0%}",
    any_op="for all_reduce, reduce_scatter and all_gather, and any number of ranks",
)
def link_of_measurements(judge: Judge, answer: Callable) -> None:
    """`answer(op, group_size, measured)` is (alpha_s, beta_s), from pairs of bytes and seconds."""
    draw, cases = random.Random(judge.seed), []

    def case(op, n, disturbed):
        alpha, beta = draw.uniform(2e-5, 4e-4), 1 / draw.uniform(3e8, 5e9)
        sizes = [2**exponent for exponent in (12, 14, 16, 18, 20, 22)]
        measured = []
        for size in sizes:
            exact = theory.ring_seconds(op, size, n, alpha, beta)
            few = sorted(draw.sample(range(9), disturbed))
            measured += [
                (size, exact * (draw.uniform(1.5, 6) if i in few else draw.uniform(1, 1.01) if few else 1))
                for i in range(9)
            ]
        draw.shuffle(measured)
        return (op, n, measured), (alpha, beta)

    for op, n, disturbed, key in (
        ("all_reduce", 4, 0, "clean"),
        ("all_reduce", 4, 3, "disturbed"),
        ("all_gather", 2, 3, "any_op"),
        ("reduce_scatter", draw.randint(3, 9), 4, "any_op"),
        ("all_reduce", draw.randint(3, 9), 4, "any_op"),
    ):
        cases.append((*case(op, n, disturbed), key))
    results = judge.call(answer, [given for given, _, _ in cases])
    missed = dict.fromkeys(("clean", "disturbed", "any_op"), "")
    for (given, wanted, key), found in zip(cases, results):
        found, within = on_rank.plain(found), 0.001 if key == "clean" else NEAR
        if (
            not isinstance(found, list)
            or len(found) != 2
            or not all(isinstance(v, int | float) for v in found)
        ):
            judge.refuse(f"return two numbers, alpha_s and beta_s, not {on_rank.short(found)}")
        errors = [its / right - 1 for its, right in zip(found, wanted)]
        worst = max(range(2), key=lambda i: abs(errors[i]))
        if abs(errors[worst]) > within and not any(missed.values()):
            name = ("alpha_s", "beta_s")[worst]
            told = f"{given[0]} on {given[1]} ranks: {name} is {wanted[worst]:.5g}, not {found[worst]:.5g}."
            missed[key] = told + _why(given, wanted, found, key)
    for key in missed:
        if not any(list(missed.values())[: list(missed).index(key)]):
            judge.demand(key, missed[key])


def _why(given: tuple, wanted: tuple, found: list, key: str) -> str:
    op, n, _ = given
    steps = theory.ring_seconds(op, 1, n, 1, 0)
    each = theory.ring_seconds(op, 1, n, 0, 1)
    if abs(found[0] / wanted[0] / steps - 1) < 0.06 and steps > 1:
        return " That is of the whole collective: a ring starts several messages, and alpha is of one."
    if abs(found[1] / wanted[1] / each - 1) < 0.06 and abs(each - 1) > 0.06:
        return " That is per byte of the tensor: beta is per byte that a rank sends."
    if key != "clean":
        return " A disturbed measurement is too long, never too short: a mean, or least squares, believes it."
    return ""


@exercise(
    tp="along tp: what its all_reduces add up, forward and backward",
    dp="along dp: the gradients of the part that a rank holds",
    run="both together are what 4 ranks send when it runs (to 1%)",
)
def bytes_by_axis(judge: Judge, answer: Callable) -> None:
    """`answer(widths, batch, dp, tp)` is {"dp": bytes, "tp": bytes} that a rank sends in a step."""
    draw = random.Random(judge.seed)

    def run_it(widths, batch):
        on_rank.use_cpu()
        groups = hybrid.make_groups({"dp": 2, "tp": 2})
        torch.manual_seed(0)
        cut = tensor_parallel.parallelize(MLP(widths), groups["tp"])
        model = DistributedDataParallel(cut, process_group=groups["dp"])
        for _ in range(3):
            with measure.step(cut):
                x, y = torch.rand(batch // 2, widths[0]), torch.zeros(batch // 2, dtype=torch.long)
                F.cross_entropy(model(x), y).backward()
            model.zero_grad()
        return sorted(dist.get_process_group_ranks(groups["dp"])), dist.get_process_group_ranks(groups["tp"])

    def drawn(dp, tp):
        pairs = draw.randint(2, 4)  # of layers
        inner = [tp * draw.randint(9, 90) for _ in range(2 * pairs - 1)]
        return [draw.randint(40, 90), *inner, draw.randint(5, 12)], dp * draw.randint(8, 80), dp, tp

    first = drawn(2, 2)
    cases = [first, drawn(4, 1), drawn(1, 4), drawn(8, 2), drawn(3, 8), drawn(1, 1)]
    found = judge.call(answer, cases)
    job = judge.run(run_it, *first[:2], ranks=4, label="data x tensor")
    real = {
        axis: float(sent(job, layer="algorithm", groups=[group])[0])
        for axis, group in {"dp": "0,2", "tp": "0,1"}.items()
    }
    for number, (case, its) in enumerate(zip(cases, found)):
        its = on_rank.plain(its)
        if not isinstance(its, dict) or not {"dp", "tp"} <= set(its):
            judge.refuse(f'return {{"dp": bytes, "tp": bytes}}, not {on_rank.short(its)}')
        wanted = real if number == 0 else _by_axis(*case)
        widths, batch, dp, tp = case
        judge.case = f"widths {widths}, batch {batch}, dp {dp} x tp {tp}"
        for axis in ("tp", "dp"):
            right = isinstance(its[axis], int | float) and abs(its[axis] - wanted[axis]) <= AS_RUN * max(
                wanted[axis], 1
            )
            if not right:
                said = "sent when it ran" if number == 0 else "are sent"
                told = f"{wanted[axis]:,.0f} bytes {said}, and you say {on_rank.short(its[axis])}."
                judge.demand(axis, told + _slip(axis, its[axis], wanted[axis], *case))
                return
    judge.case = ""
    judge.demand("tp", "")
    judge.demand("dp", "")
    total, wire = sum(found[0][axis] for axis in ("dp", "tp")), float(sent(job).median())
    headers = float(header_bytes(job).median())  # of small messages, a good part of what the system counts
    judge.demand(
        "run",
        ""
        if wire - headers <= (1 + AS_RUN) * total and total <= (1 + AS_RUN) * wire
        else f"the system counted {wire:,.0f} bytes, and you say {total:,.0f}",
    )


def _by_axis(widths: list[int], batch: int, dp: int, tp: int, first: bool = False, biases: int = 1) -> dict:
    """Modelled. first: the input's gradient as well; biases: of row layers, cut by so much."""
    pairs = list(zip(widths[:-1], widths[1:]))
    inner = sum(widths[2::2]) + sum(widths[0 if first else 2 : -1 : 2])
    held = sum((a + 1) * b / tp for a, b in pairs[::2]) + sum(a * b / tp + b / biases for a, b in pairs[1::2])
    return {
        "dp": theory.collective_bytes("all_reduce", 4 * held, dp),
        "tp": theory.collective_bytes("all_reduce", 4 * batch / dp * inner, tp),
    }


def _slip(axis: str, its, wanted: float, widths: list[int], batch: int, dp: int, tp: int) -> str:
    """What a wrong number looks like."""
    if not isinstance(its, int | float) or not wanted:
        return " Along an axis of one rank nothing is sent." if not wanted else ""
    guesses = {
        "It is of the whole batch: a rank has its part of dp.": wanted * dp,
        "It is the gradient of the network's input as well, which nobody needs.": _by_axis(
            widths, batch, dp, tp, first=True
        )[axis],
        "It is forward alone.": theory.collective_bytes("all_reduce", 4 * batch / dp * sum(widths[2::2]), tp),
        "It is the payload, and not what a ring sends.": wanted
        / max(theory.collective_bytes("all_reduce", 1, tp if axis == "tp" else dp), 1e-9),
        "Biases of row layers are whole on every rank.": _by_axis(widths, batch, dp, tp, biases=tp)[axis],
        "It is the whole network, and a rank holds its part.": _by_axis(widths, batch, dp, 1)[axis],
    }
    near = [words for words, guess in guesses.items() if abs(its - guess) < 0.002 * wanted]
    return f" {near[0]}" if near else ""
