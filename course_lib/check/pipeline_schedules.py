"""Checks of the chapter "Pipeline schedules": interleaved rounds for any number of micro-batches, a linear
layer whose weight gradients wait, and where in a schedule they are computed.
"""

import random
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import fact
from course_lib.mini import pipeline as mini
from course_lib.mini.pipeline import on_paper
from course_lib.mini.pipeline.instructions import with_stages

__all__ = ["interleaved_rounds", "later_linear", "weights_in_bubbles"]

ROUNDS = ((4, 6, 2), (3, 4, 2), (2, 5, 3), (4, 9, 2), (3, 3, 2), (1, 2, 2))  # ranks, micro-batches, stages
DRAWN = 12
OF_RANKS = (2, 5, 2)  # those that are run for real
RELATIVE_ERROR = 1e-9  # of gradients in float64; a right answer is at 1e-15
SLACK_BYTES = 4096

GRADIENTS = fact(
    "on real ranks, the gradients of one process",
    "gradient",
    "on rank {rank}, the gradient is wrong: {wrong}",
)


@exercise(
    complete="every forward and backward once, on the right rank, and nobody waits for ever",
    short="on paper, the step takes (v m + p - 1) 3/v forwards and not more, for any m from p on",
    in_flight="at most 2 (p - 1 - rank) + (v - 1) w + 1 in flight on a rank",
    gradients=GRADIENTS,
)
def interleaved_rounds(judge: Judge, answer: Callable) -> None:
    """`answer(p, m, v)` returns interleaved lists: p ranks with v stages each, and m >= p micro-batches."""
    draw = random.Random(judge.seed)
    sizes = draw.choices(range(1, 6), k=DRAWN)
    drawn = [(p, draw.randint(p, 3 * p + 1), draw.randint(1, 3)) for p in sizes]
    cases = [*ROUNDS, OF_RANKS, *drawn]
    found = dict(zip(cases, judge.call(_listing(answer), cases)))
    for (p, m, v), lists in found.items():
        judge.case = f"p = {p}, m = {m}, v = {v}"
        if problem := _not_valid(lists, p, p * v, m):
            judge.demand("complete", problem)
            return
        length = max(
            block.end for block in on_paper.play(lists)
        )  # a forward of a stage takes 1, a backward 2
        least = 3 * (v * m + p - 1)
        late = (
            f"on paper the step takes {length / v:g} forwards, and {least / v:g} are possible. Does every"
            " round have micro-batches enough for p ranks?"
        )
        met = [judge.demand("short", late)] if length > least else []
        size = -(-m // (m // p))
        for rank, instructions in enumerate(lists):
            most, enough = _most(instructions, "backward"), 2 * (p - 1 - rank) + (v - 1) * size + 1
            if most > enough:
                why = (
                    f"rank {rank} has {most} in flight, and {enough} are enough: it runs more forwards before"
                    " its first backward than it must"
                )
                met.append(judge.demand("in_flight", why))
                break
        if met:
            return
    judge.case = ""
    for key in ("complete", "short", "in_flight"):
        judge.demand(key, "")
    _run_for_real(judge, found[OF_RANKS], OF_RANKS[1])


@exercise(
    complete="a valid schedule: each F, I and W once, W behind its I",
    kept="F and I in the order that was given",
    held="never more than `most` micro-batches between F and W",
    short="on paper, with F = I = W = 1, the step takes 3 m + p - 1 and not more",
    gradients=GRADIENTS,
)
def weights_in_bubbles(judge: Judge, answer: Callable) -> None:
    """`answer(lists, most)` puts one W for each I into lists of F and I."""
    draw = random.Random(judge.seed)
    sizes = [(4, 8), (2, 3), (3, 5), (1, 3)]
    sizes += [(p, 2 * p - 1 + draw.randint(0, 6)) for p in draw.choices(range(2, 6), k=DRAWN // 2)]
    cases = [
        _without_weights(p, max(m, 2 * p - 1) if deep else m, deep, draw) for p, m in sizes for deep in (0, 1)
    ]
    for case, lists in zip(cases, judge.call(_listing(answer), cases)):
        given, most = case
        p, m = len(given), sum(one.op == "forward" for one in given[0])
        judge.case = f"{p} ranks, {m} micro-batches, most = {most}"
        if problem := _not_valid(lists, p, p, m):
            judge.demand("complete", problem)
            return
        others = [[one for one in mine if one.op != "backward_weight"] for mine in with_stages(lists)]
        if others != with_stages(given):
            rank = next(rank for rank in range(p) if others[rank] != with_stages(given)[rank])
            judge.demand("kept", f"on rank {rank} F and I no longer stand in the order that was given")
            return
        between = [_most(mine, "backward_weight") for mine in lists]
        deep, length = max(between), max(block.end for block in on_paper.play(lists))
        late, least = f"rank {between.index(deep)} has {deep} between F and W", 3 * m + p - 1
        held = f"{late}. A W has to come earlier there" if deep > most else ""
        short = (
            f"on paper the step takes {length:g}, and {least} is possible: some W stands where its rank could"
            " have sent something, and not where it would be idle"
        )
        if held or length > least:
            met = {"complete": "", "kept": "", "held": held, "short": short if length > least else ""}
            for key, missed in met.items():
                judge.demand(key, missed)
            return
    judge.case = ""
    for key in ("complete", "kept", "held", "short"):
        judge.demand(key, "")
    lists = judge.call(_listing(answer), [_without_weights(3, 5, 0, draw)])[0]
    judge.case = "3 ranks"
    _run_for_real(judge, lists, 5)


def _without_weights(p: int, m: int, deep: int, draw: random.Random) -> tuple[list, int]:
    """A case: F and I of ZB-H1 or, if `deep`, of ZB-H2, its micro-batches in another order; and `most`."""
    order = draw.sample(range(m), m)
    make = mini.zb_h2 if deep else mini.zb_h1
    lists = [
        [mini.Instruction(one.op, order[one.microbatch]) for one in mine if one.op != "backward_weight"]
        for mine in make(p, m)
    ]
    return lists, 2 * p - 1 if deep else draw.randint(p, 2 * p - 1)


def _listing(answer: Callable) -> Callable:
    """The answer, and its lists as lists, whatever holds them."""

    def listed(*case):
        lists = on_rank.plain(answer(*case))
        try:
            return [on_rank.plain(one if isinstance(one, (str, dict)) else list(one)) for one in lists]
        except TypeError:
            return lists

    return listed


def _not_valid(lists, ranks: int, num_stages: int, num_microbatches: int) -> str:
    """Why the lists cannot be run; "" if they can."""
    if not isinstance(lists, list) or len(lists) != ranks or not all(isinstance(one, list) for one in lists):
        return f"return one list for each of the {ranks} ranks; you returned {on_rank.short(lists)}"
    try:
        mini.validate(lists, num_stages, num_microbatches)
    except ValueError as error:
        return str(error).removesuffix(".")
    return ""


def _most(instructions: Sequence[mini.Instruction], end: str) -> int:
    """Most micro-batches, counted once per stage, between forward and the instruction that ends them."""
    now = most = 0
    for one in instructions:
        now += (one.op == "forward") - (one.op == end)
        most = max(most, now)
    return most


def _run_for_real(judge: Judge, lists: Sequence[Sequence[mini.Instruction]], num_microbatches: int) -> None:
    """One step of the lists on ranks; they are valid."""

    def trial(lists, m, seed):
        on_rank.use_cpu()
        torch.manual_seed(seed)
        rank, p = dist.get_rank(), dist.get_world_size()
        count = 1 + max(one.stage or 0 for mine in with_stages(lists) for one in mine)
        stages = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(count)]
        inputs, targets = torch.randn(2, 2 * m, 5, dtype=torch.float64)
        nn.functional.mse_loss(nn.Sequential(*stages)(inputs), targets).backward()
        mine = stages[rank::p]
        wanted = on_rank.flat(param.grad for stage in mine for param in stage.parameters())
        for stage in mine:
            stage.zero_grad()
        mini.Pipeline(mine, lists, nn.functional.mse_loss).step(inputs, targets)
        found = on_rank.flat(param.grad for stage in mine for param in stage.parameters())
        error = on_rank.apart(found, wanted)
        return {"gradient": f"it differs by {error:.2g}" if error > RELATIVE_ERROR else ""}

    judge.look(
        judge.run(trial, lists, num_microbatches, judge.seed, ranks=len(lists), label="your schedule"),
        "gradients",
    )


@exercise(
    output=fact("y = x @ weight.T + bias", "output"),
    first=fact("backward gives the gradient of x, and none of the weight's yet", "first"),
    second=fact("the functions add the gradients of weight and bias, in any order", "second"),
    products=fact("one product of matrices in forward, one in backward, one in the function", "products"),
    memory=fact("what waits holds x and the gradient of y, and no more", "memory"),
)
def later_linear(judge: Judge, answer: Callable) -> None:
    """`answer(x, weight, bias, store)` is a linear layer whose backward leaves W in the store."""

    def trial(answer, seed):
        from functools import partial

        from torch.utils.flop_counter import FlopCounterMode

        from course_lib.measure import alive

        on_rank.use_cpu()
        torch.manual_seed(seed)
        draw = random.Random(seed)
        told = dict.fromkeys(("output", "first", "second", "products", "memory"), "")
        wide, narrow = 64, 48

        def tell(key, wrong):
            told[key] = told[key] or wrong

        def tensors(shape, with_bias, needs):
            weight = torch.randn(narrow, wide, dtype=torch.float64, requires_grad=True)
            bias = torch.randn(narrow, dtype=torch.float64, requires_grad=True) if with_bias else None
            xs = [torch.randn(*shape, wide, dtype=torch.float64, requires_grad=needs) for _ in range(3)]
            return weight, bias, xs, [torch.randn(*shape, narrow, dtype=torch.float64) for _ in range(3)]

        def counted(call):
            with FlopCounterMode(display=False) as counter:
                result = call()
            return result, counter.get_total_flops()

        cases = {
            "x of two dimensions": ((6,), True, True),
            "x of three dimensions, without a bias": ((4, 6), False, True),
            "x that needs no gradient": ((6,), True, False),
        }
        for name, (shape, with_bias, needs) in cases.items():
            weight, bias, xs, grads = tensors(shape, with_bias, needs)
            params = [param for param in (weight, bias) if param is not None]
            one = 2 * wide * narrow * torch.Size(shape).numel()  # operations of one product
            for x, grad in zip(xs, grads):
                nn.functional.linear(x, weight, bias).backward(grad)
            wanted = [param.grad for param in params], [x.grad for x in xs]
            for tensor in (*params, *xs):
                tensor.grad = None
            store, functions = [], []
            for x, grad in zip(xs, grads):
                y, in_forward = counted(partial(answer, x, weight, bias, store))
                right = nn.functional.linear(x, weight, bias)
                if not isinstance(y, torch.Tensor) or y.shape != right.shape:
                    return {"problem": f"{name}: `later_linear` must return a tensor {list(right.shape)}"}
                if on_rank.apart(y.detach().flatten(), right.detach().flatten()) > RELATIVE_ERROR:
                    tell("output", f"{name}: y is not x @ weight.T + bias")
                if not y.requires_grad:
                    return {"problem": f"{name}: y has no history, so backward never comes to your layer"}
                _, in_backward = counted(partial(y.backward, grad))
                if len(store) != 1 or not callable(store[0]):
                    return {
                        "problem": f"{name}: after a backward `store` must hold one function more, and holds"
                        f" {len(store)} things"
                    }
                if any(param.grad is not None for param in params):
                    tell("first", f"{name}: a weight has a gradient before its function was called")
                functions.append(store.pop())
                if in_forward != one:
                    tell(
                        "products", f"{name}: forward computes {in_forward / one:g} products, and 1 is enough"
                    )
                if in_backward != one * needs:
                    tell(
                        "products",
                        f"{name}: backward computes {in_backward / one:g} products, and {int(needs)} is"
                        " enough: the weight's is for later",
                    )
            for x, right in zip(xs, wanted[1]):
                if needs and (
                    x.grad is None or on_rank.apart(x.grad.flatten(), right.flatten()) > RELATIVE_ERROR
                ):
                    tell("first", f"{name}: the gradient of x is not right")
            for function in draw.sample(functions, len(functions)):
                _, later = counted(function)
                if later > one:
                    tell(
                        "products", f"{name}: the function computes {later / one:g} products, and 1 is enough"
                    )
            for param, right in zip(params, wanted[0]):
                if (
                    param.grad is None
                    or on_rank.apart(param.grad.flatten(), right.flatten()) > RELATIVE_ERROR
                ):
                    tell(
                        "second",
                        f"{name}: after all functions the gradients of weight and bias are not right",
                    )

        weight, bias, (x, *_), (grad, *_) = tensors((40,), True, True)
        store = []
        with alive.Allocations() as memory:
            memory.mark("begin")
            y = answer(x, weight, bias, store)
            y.backward(grad)
            del y
            memory.mark("waits")
            store.pop()()
            memory.mark("done")
        beside = memory.at("waits") - memory.at("begin") - x.nbytes  # x.grad
        if beside > SLACK_BYTES:
            tell(
                "memory",
                f"between backward and the function {beside:,} bytes are held beside x and the gradient of y"
                f" ({x.nbytes:,} and {grad.nbytes:,}): keep neither y, nor what the function is to compute",
            )
        left = memory.at("done") - memory.at("begin") - x.nbytes - weight.nbytes - bias.nbytes
        if left > SLACK_BYTES:
            tell("memory", f"after the function {left:,} bytes more than the gradients are still held")
        return told

    judge.tried("one process", trial, answer, judge.seed, ranks=1)
