"""Answers to the exercises of "Pipeline schedules", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import numpy as np
import torch
from torch.nn import functional as F

from course_lib.mini.pipeline import backward, backward_weight, forward, interleaved


def stub(*arguments):
    raise NotImplementedError


# my_interleaved(p, m, v)


def rounds_of_the_library(p, m, v):
    return interleaved(p, m, v)


def _rounds(p, m, v, sizes, ahead=0):
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    parts = [range(start, start + size) for start, size in zip(starts, sizes)]
    lists = []
    for rank in range(p):
        stages = range(rank, v * p, p)
        up = [forward(k, s) for part in parts for s in stages for k in part]
        down = [backward(k, s) for part in parts for s in stages[::-1] for k in part]
        first = min(2 * (p - 1 - rank) + (v - 1) * sizes[0] + ahead, len(up))
        pairs = [one for pair in zip(up[first:], down) for one in pair]
        lists.append(up[:first] + pairs + down[len(up) - first :])
    return lists


def rounds_by_hand(p, m, v):
    count = m // p
    return _rounds(p, m, v, [m // count + (number < m % count) for number in range(count)])


def rounds_in_tuples(p, m, v):
    """Right as well: tuples, and numpy's numbers."""
    sizes = [len(part) for part in np.array_split(np.arange(m), m // p)]
    return tuple(tuple(mine) for mine in _rounds(p, m, v, sizes))


def rounds_with_a_short_last_one(p, m, v):
    return _rounds(p, m, v, [p] * (m // p) + [m % p] * (m % p > 0))


def rounds_all_in_one(p, m, v):
    return _rounds(p, m, v, [m])


def rounds_one_deeper(p, m, v):
    return _rounds(p, m, v, [m // (m // p) + (n < m % (m // p)) for n in range(m // p)], ahead=1)


def rounds_all_forwards_first(p, m, v):
    return _rounds(p, m, v, [m // (m // p) + (n < m % (m // p)) for n in range(m // p)], ahead=10**6)


def rounds_without_the_rest(p, m, v):
    return _rounds(p, m // p * p, v, [p] * (m // p))


def rounds_of_neighbours(p, m, v):
    """Stages 0 and 1 on rank 0."""
    return [
        [forward(k, rank * v + s) for s in range(v) for k in range(m)]
        + [backward(k, rank * v + s) for s in reversed(range(v)) for k in range(m)]
        for rank in range(p)
    ]


# later_linear(x, weight, bias, store)


def _later(forwards=F.linear, early=False, keeps_y=False, twice=False, counts_bias=True, adds=True):
    class Later(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, store):
            ctx.save_for_backward(x)
            ctx.weight, ctx.bias, ctx.store = weight, bias, store
            y = forwards(x, weight, bias)
            ctx.y = y.clone() if keeps_y else None
            return y

        @staticmethod
        def backward(ctx, grad):
            (x,), weight, bias, y = ctx.saved_tensors, ctx.weight, ctx.bias, ctx.y
            rows = grad.reshape(-1, grad.shape[-1])

            def products():
                if twice:
                    grad @ weight
                return rows.T @ x.reshape(-1, x.shape[-1])

            known = products() if early else None

            def later():
                for param, own in ((weight, known if early else products()), (bias, rows.sum(0))):
                    if param is not None and (param is weight or counts_bias):
                        param.grad = own if param.grad is None or not adds else param.grad + own
                return y

            ctx.store.append(later)
            return grad @ weight if ctx.needs_input_grad[0] else None, None, None, None

    return Later


def later(x, weight, bias, store):
    return _later().apply(x, weight, bias, store)


def later_by_a_small_graph(x, weight, bias, store):
    """Right as well: autograd is asked, for the one part and for the other."""
    return _SmallGraph.apply(x, weight, bias, store)


class _SmallGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, store):
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_(x.requires_grad)
            y = F.linear(ctx.x, weight, bias)
        ctx.edge, ctx.store = torch.autograd.graph.get_gradient_edge(y), store
        ctx.params = [param for param in (weight, bias) if param is not None]
        return y.detach()

    @staticmethod
    def backward(ctx, grad):
        edge, params, grad_x = ctx.edge, ctx.params, None
        if ctx.needs_input_grad[0]:
            (grad_x,) = torch.autograd.grad(edge, ctx.x, grad, retain_graph=True)
        ctx.store.append(lambda: torch.autograd.backward(edge, grad, inputs=params))
        return grad_x, None, None, None


def later_by_a_hook(x, weight, bias, store):
    """Right as well: the layer's own y, whose weights are not asked; a hook catches the gradient."""
    fixed = None if bias is None else bias.detach()
    follows = x if x.requires_grad else x.detach().requires_grad_()
    if x.requires_grad:
        y = F.linear(follows, weight.detach(), fixed)
    else:
        return later(x, weight, bias, store)

    def catch(grad):
        def add():
            rows = grad.flatten(0, -2)
            for param, own in ((weight, rows.T @ x.detach().flatten(0, -2)), (bias, rows.sum(0))):
                if param is not None:
                    param.grad = own if param.grad is None else param.grad + own

        store.append(add)

    y.register_hook(catch)
    return y


def later_early(x, weight, bias, store):
    """The product of W is computed in backward, and only added later."""
    return _later(early=True).apply(x, weight, bias, store)


def later_keeps_y(x, weight, bias, store):
    return _later(keeps_y=True).apply(x, weight, bias, store)


def later_twice(x, weight, bias, store):
    """The function computes I once more."""
    return _later(twice=True).apply(x, weight, bias, store)


def later_without_bias(x, weight, bias, store):
    return _later(counts_bias=False).apply(x, weight, bias, store)


def later_does_not_add(x, weight, bias, store):
    return _later(adds=False).apply(x, weight, bias, store)


def later_plain(x, weight, bias, store):
    store.append(lambda: None)
    return F.linear(x, weight, bias)


def later_nothing(x, weight, bias, store):
    return F.linear(x, weight, bias)


def later_without_transpose(x, weight, bias, store):
    return _later(forwards=lambda x, weight, bias: F.linear(x, weight, bias) * 2).apply(
        x, weight, bias, store
    )


# place_weights(lists, most)


def place(lists, most):
    """W as late as memory allows; from the last forward on, one behind each I."""
    return [_placed(instructions, most) for instructions in lists]


def _placed(instructions, most):
    mine, waiting, between = [], [], 0
    left = sum(one.op == "forward" for one in instructions)
    for one in instructions:
        if one.op == "forward":
            left -= 1
            if between == most:
                mine.append(waiting.pop(0))
                between -= 1
            between += 1
        mine.append(one)
        if one.op == "backward_input":
            waiting.append(backward_weight(one.microbatch, one.stage))
            if not left:
                mine.append(waiting.pop(0))
                between -= 1
    return mine + waiting


def place_latest_first(lists, most):
    """Right as well: of those that wait the newest goes first; and tuples."""
    placed = []
    for instructions in lists:
        mine, waiting, between = [], [], 0
        left = sum(one.op == "forward" for one in instructions)
        for one in instructions:
            left -= one.op == "forward"
            if one.op == "forward":
                if between == most:
                    mine.append(waiting.pop())
                    between -= 1
                between += 1
            mine.append(one)
            if one.op == "backward_input":
                waiting.append(backward_weight(one.microbatch))
                if not left:
                    mine.append(waiting.pop())
        placed.append(tuple(mine + waiting))
    return tuple(placed)


def place_at_the_end(lists, most):
    """Short, and holds all."""
    return [
        [*mine, *(backward_weight(one.microbatch) for one in mine if one.op == "backward_input")]
        for mine in lists
    ]


def place_at_once(lists, most):
    """A whole backward: little is held, and the rank before waits."""
    return [
        [
            one
            for given in mine
            for one in (given, *[backward_weight(given.microbatch)] * (given.op == "backward_input"))
        ]
        for mine in lists
    ]


def place_one_more(lists, most):
    return place(lists, most + 1)


def place_forgets_the_last(lists, most):
    return [mine[:-1] for mine in place(lists, most)]


def place_before_its_input(lists, most):
    return [
        [
            one
            for given in mine
            for one in (*[backward_weight(given.microbatch)] * (given.op == "backward_input"), given)
        ]
        for mine in lists
    ]


def place_makes_it_its_own_way(lists, most):
    """Another order of F and I."""
    placed = []
    for mine in place(lists, most):
        forwards = [one for one in mine if one.op == "forward"]
        placed.append([*forwards, *(one for one in mine if one.op != "forward")])
    return placed


def place_all_on_one_rank(lists, most):
    return place(lists, most)[0]
