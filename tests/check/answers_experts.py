"""Answers to the exercises of "Experts", right and wrong. They stand here, and not in a test file, so that a
rank need not import pytest.
"""

import time

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce as summed_both_ways
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


class Exchange(torch.autograd.Function):
    """As in the chapter."""

    @staticmethod
    def forward(ctx, x, sent, came):
        ctx.sizes = came, sent
        y = x.new_empty(sum(came), *x.shape[1:])
        dist.all_to_all_single(y, x.contiguous(), came, sent)
        return y

    @staticmethod
    def backward(ctx, grad):
        return Exchange.apply(grad, *ctx.sizes), None, None


def sizes_of(leaving):
    coming = torch.empty_like(leaving)
    dist.all_to_all_single(coming, leaving)
    return leaving.tolist(), coming.tolist()


# Each token once to each rank


def once(x, weights, chosen, own, home_again=Exchange):
    n, rank = dist.get_world_size(), dist.get_rank()
    home = chosen // len(own)
    needs = torch.stack([(home == r).any(1) for r in range(n)])
    token = needs.nonzero()[:, 1]
    sent, came = sizes_of(needs.sum(1))
    rows = Exchange.apply(torch.cat([x[token], weights[token]], 1), sent, came)
    its_chosen = Exchange.apply(chosen[token], sent, came)
    xs, ws = rows.split([x.shape[1], chosen.shape[1]], 1)
    y = torch.zeros_like(xs)
    for number, expert in enumerate(own, start=rank * len(own)):
        row, choice = (its_chosen == number).nonzero(as_tuple=True)
        y = y.index_add(0, row, ws[row, choice, None] * expert(xs[row]))
    return torch.zeros_like(x).index_add(0, token, home_again.apply(y, came, sent))


def once_by_messages(x, weights, chosen, own):
    """Right as well: rank by rank, and all messages at once; each rank's masks go to all others."""
    n, rank, k = dist.get_world_size(), dist.get_rank(), chosen.shape[1]

    class Swap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, sent, came):
            ctx.sizes = came, sent
            parts, into = list(x.contiguous().split(sent)), [x.new_empty(size, x.shape[1]) for size in came]
            into[rank].copy_(parts[rank])
            messages = []
            for other in range(n):
                if other != rank:
                    if came[other]:
                        messages.append(dist.P2POp(dist.irecv, into[other], other))
                    if sent[other]:
                        messages.append(dist.P2POp(dist.isend, parts[other], other))
            for work in dist.batch_isend_irecv(messages) if messages else []:
                work.wait()
            return torch.cat(into)

        @staticmethod
        def backward(ctx, grad):
            return Swap.apply(grad, *ctx.sizes), None, None

    dense = torch.zeros(len(x), n, len(own)).index_put(
        (torch.arange(len(x))[:, None].expand(-1, k), chosen // len(own), chosen % len(own)), weights
    )
    used = torch.zeros(dense.shape).index_put(
        (torch.arange(len(x))[:, None].expand(-1, k), chosen // len(own), chosen % len(own)), torch.ones(())
    )
    token = [used[:, other].any(1).nonzero()[:, 0] for other in range(n)]
    sent, came = sizes_of(torch.tensor([len(its) for its in token]))
    rows = [
        torch.cat([x[its], dense[its, other], used[its, other].detach()], 1)
        for other, its in enumerate(token)
    ]
    arrived = Swap.apply(torch.cat(rows), sent, came)
    xs, ws, flags = arrived.split([x.shape[1], len(own), len(own)], 1)
    parts = []
    for number, expert in enumerate(own):
        row = flags[:, number].nonzero()[:, 0]
        y = torch.zeros_like(xs)
        parts.append(y.index_copy(0, row, ws[row, number, None] * expert(xs[row])))
    back = Swap.apply(torch.stack(parts).sum(0), came, sent)
    return torch.zeros_like(x).index_add(0, torch.cat(token), back)


def each_choice(x, weights, chosen, own, weighted=True, sorted_back=True):
    """The chapter's own: a row for each choice."""
    n, k = dist.get_world_size(), chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=n * len(own))
    coming = torch.empty_like(counts)
    dist.all_to_all_single(coming, counts)
    sent, came = (c.view(n, -1).sum(1).tolist() for c in (counts, coming))
    blocks = Exchange.apply(x[order // k], sent, came).split(coming.tolist())
    outputs = torch.cat([own[i % len(own)](block) for i, block in enumerate(blocks)])
    back = Exchange.apply(outputs, came, sent)
    if weighted:
        back = weights.flatten()[order, None] * back
    place = order // k if sorted_back else torch.arange(len(order)) // k
    return torch.zeros_like(x).index_add(0, place, back)


def without_weights(x, weights, chosen, own):
    return each_choice(x, weights, chosen, own, weighted=False)


def in_the_order_of_experts(x, weights, chosen, own):
    return each_choice(x, weights, chosen, own, sorted_back=False)


class AllRows(torch.autograd.Function):
    """All ranks' rows, padded to `most`; backward the sum."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.rows = len(x)
        padded = F.pad(x, (0, 0, 0, most - len(x))).contiguous()
        every = x.new_empty(dist.get_world_size(), *padded.shape)
        dist.all_gather_into_tensor(every.view(-1, x.shape[1]), padded)
        return every

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()][: ctx.rows], None


class SumOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        total = x.contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        every = grad.contiguous()
        dist.all_reduce(every)
        return every


class Slept(Exchange):
    """Sleeps for a while, and does not wait: while all ranks are in step, the rows happen to be there."""

    @staticmethod
    def forward(ctx, x, sent, came):
        ctx.sizes = came, sent
        y = x.new_zeros(sum(came), *x.shape[1:])
        ctx.work = dist.all_to_all_single(y, x.contiguous(), came, sent, async_op=True)
        time.sleep(NAP_S)
        return y.clone()


NAP_S = 0.05


def once_that_sleeps(x, weights, chosen, own):
    """As `once`; the outputs that come back are not waited for."""
    return once(x, weights, chosen, own, Slept)


def everybody_has_all(x, weights, chosen, own):
    """Right numbers, and all tokens on all ranks."""
    rank = dist.get_rank()
    most = torch.tensor(len(x))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    xs, ws = AllRows.apply(x, int(most)), AllRows.apply(weights, int(most))
    cs = AllRows.apply(chosen.double() + 1, int(most)).long() - 1  # padding: -1
    y = torch.zeros_like(xs.flatten(0, 1))
    for number, expert in enumerate(own, start=rank * len(own)):
        row, choice = (cs.flatten(0, 1) == number).nonzero(as_tuple=True)
        y = y.index_add(0, row, ws.flatten(0, 1)[row, choice, None] * expert(xs.flatten(0, 1)[row]))
    return SumOfAll.apply(y).view(xs.shape)[rank][: len(x)]


def padded(x, weights, chosen, own):
    """Right numbers, and as many rows to each rank as to the one that gets most."""
    n, rank, k = dist.get_world_size(), dist.get_rank(), chosen.shape[1]
    home = chosen.flatten() // len(own)
    most = home.bincount(minlength=n).max()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    most, width = int(most), x.shape[1]
    boxes = x.new_zeros(n * most, width)
    numbers = torch.full((n * most,), -1)
    places = torch.empty_like(home)
    for other in range(n):
        its = (home == other).nonzero()[:, 0]
        places[its] = other * most + torch.arange(len(its))
    boxes = boxes.index_copy(0, places, x[torch.arange(len(home)) // k])
    numbers[places] = chosen.flatten()
    even = [most] * n
    rows, its = Exchange.apply(boxes, even, even), Exchange.apply(numbers, even, even)
    y = torch.zeros_like(rows)
    for number, expert in enumerate(own, start=rank * len(own)):
        row = (its == number).nonzero()[:, 0]
        y = y.index_copy(0, row, expert(rows[row]))
    back = Exchange.apply(y, even, even)[places]
    return (weights.flatten()[:, None] * back).view(-1, k, width).sum(1)


def own_experts_alone(x, weights, chosen, own):
    y = torch.zeros_like(x)
    for number, expert in enumerate(own, start=dist.get_rank() * len(own)):
        row, choice = (chosen == number).nonzero(as_tuple=True)
        y = y.index_add(0, row, weights[row, choice, None] * expert(x[row]))
    return y


def once_without_way_back(x, weights, chosen, own):
    """The weights travel outside of autograd: the router learns nothing."""
    return once(x, weights.detach(), chosen, own)


def returns_nothing(x, weights, chosen, own):
    once(x, weights, chosen, own)


# Which choices find room


def room(weights, chosen, num_experts, capacity):
    flat = chosen.flatten()
    best = weights.flatten().argsort(descending=True, stable=True)
    order = best[flat[best].argsort(stable=True)]  # by expert, and in each the best first
    counts = flat.bincount(minlength=num_experts)
    begins = (counts.cumsum(0) - counts).repeat_interleave(counts)
    stays = torch.empty_like(flat, dtype=torch.bool)
    stays[order] = torch.arange(len(flat)) - begins < capacity
    return stays.view_as(chosen)


def room_by_expert(weights, chosen, num_experts, capacity):
    """Right as well: expert by expert."""
    stays = torch.zeros_like(chosen, dtype=torch.bool)
    for expert in range(num_experts):
        token, choice = (chosen == expert).nonzero(as_tuple=True)
        best = weights[token, choice].sort(descending=True, stable=True).indices[:capacity]
        stays[token[best], choice[best]] = True
    return stays


def room_by_place(weights, chosen, num_experts, capacity):
    """Right as well: counts in a table."""
    best = weights.flatten().sort(descending=True, stable=True).indices
    hot = F.one_hot(chosen.flatten()[best], num_experts)
    place = (hot.cumsum(0) * hot).sum(1)
    stays = torch.zeros(chosen.numel(), dtype=torch.bool)
    stays[best] = place <= capacity
    return stays.reshape(chosen.shape)


def room_first_come(weights, chosen, num_experts, capacity):
    return room(torch.zeros_like(weights), chosen, num_experts, capacity)


def room_without_end(weights, chosen, num_experts, capacity):
    return torch.ones_like(chosen, dtype=torch.bool)


def room_of_one_less(weights, chosen, num_experts, capacity):
    return room(weights, chosen, num_experts, capacity - 1)


def room_by_threshold(weights, chosen, num_experts, capacity):
    """Drops the smallest weights of all experts together."""
    flat = weights.flatten()
    best = flat.argsort(descending=True)[: num_experts * capacity]
    stays = torch.zeros_like(flat, dtype=torch.bool)
    stays[best] = True
    return stays.view_as(weights)


def room_in_a_loop(weights, chosen, num_experts, capacity):
    stays = torch.zeros_like(chosen, dtype=torch.bool)
    taken = [0] * num_experts
    for place in weights.flatten().argsort(descending=True, stable=True):
        token, choice = divmod(int(place), chosen.shape[1])
        expert = int(chosen[token, choice])
        stays[token, choice] = taken[expert] < capacity
        taken[expert] += 1
    return stays


def room_in_lists(weights, chosen, num_experts, capacity):
    experts, taken = chosen.flatten().tolist(), [0] * num_experts
    stays = [False] * len(experts)
    for place in weights.flatten().argsort(descending=True, stable=True).tolist():
        stays[place] = taken[experts[place]] < capacity
        taken[experts[place]] += 1
    return torch.tensor(stays).view_as(chosen)


def room_of_numbers(weights, chosen, num_experts, capacity):
    return room(weights, chosen, num_experts, capacity).long()


# A loss that balances over all ranks


def balance(scores, chosen):
    experts = scores.shape[1]
    f = chosen.flatten().bincount(minlength=experts).to(scores) / chosen.numel()
    dist.all_reduce(f)
    f /= dist.get_world_size()
    return experts * (f * scores.mean(0)).sum()


def balance_by_gathering(scores, chosen):
    """Right as well: counts of every rank."""
    counts = F.one_hot(chosen, scores.shape[1]).sum((0, 1))
    every = [torch.empty_like(counts) for _ in range(dist.get_world_size())]
    dist.all_gather(every, counts)
    total = torch.stack(every).sum(0)
    return scores.shape[1] * (total / total.sum() * scores).sum() / len(scores)


def balance_that_sleeps(scores, chosen):
    """Not waited for: while all ranks are in step, the sum happens to be there."""
    experts = scores.shape[1]
    f = chosen.flatten().bincount(minlength=experts).to(scores)
    dist.all_reduce(f, async_op=True)
    time.sleep(NAP_S)
    return experts * (f / f.sum() * scores.mean(0)).sum()


def balance_of_own(scores, chosen):
    experts = scores.shape[1]
    f = chosen.flatten().bincount(minlength=experts) / chosen.numel()
    return experts * (f * scores.mean(0)).sum()


def balance_of_gathered_scores(scores, chosen):
    n = dist.get_world_size()
    every = torch.empty(n * len(scores), scores.shape[1])
    dist.all_gather_into_tensor(every, scores.detach())
    loss = balance(scores, chosen)
    return loss + 0 * every.sum()


def balance_of_gathered_p(scores, chosen):
    """Right values, and P travels for nothing: its gradient once more."""
    every = summed_both_ways(scores.mean(0)) / dist.get_world_size()
    counts = F.one_hot(chosen, scores.shape[1]).sum((0, 1))
    dist.all_reduce(counts)
    return scores.shape[1] * (counts / counts.sum() * every).sum()


def balance_summed(scores, chosen):
    return dist.get_world_size() * balance(scores, chosen)


def balance_of_k(scores, chosen):
    return chosen.shape[1] * balance(scores, chosen)


def balance_without_gradient(scores, chosen):
    return balance(scores, chosen).detach()


def balance_of_detached_p(scores, chosen):
    """The value is right, and the gradient that of another thing."""
    return balance(scores, chosen).detach() + (scores - scores.detach()).mean()


# Gradients of expert x data parallelism


def gradients(shared, own, group):
    for p in shared:
        dist.all_reduce(p.grad)
    for p in own:
        dist.all_reduce(p.grad, group=group)
    for p in [*shared, *own]:
        p.grad /= dist.get_world_size()


def gradients_at_once(shared, own, group):
    """Right as well: two messages."""
    n = dist.get_world_size()
    for params, ranks in ((shared, None), (own, group)):
        flat = torch.cat([p.grad.flatten() for p in params]) / n
        dist.all_reduce(flat, group=ranks)
        for p, its in zip(params, flat.split([p.numel() for p in params])):
            p.grad = its.view_as(p)


def gradients_that_sleep(shared, own, group, waits_for=()):
    """Not waited for: while all ranks are in step, the sums happen to be there."""
    for p in [*shared, *own]:
        p.grad /= dist.get_world_size()
    works = {p: dist.all_reduce(p.grad, async_op=True) for p in shared}
    works |= {p: dist.all_reduce(p.grad, group=group, async_op=True) for p in own}
    for p in waits_for:
        works[p].wait()
    time.sleep(NAP_S)


def gradients_that_sleep_on_experts(shared, own, group):
    gradients_that_sleep(shared, own, group, waits_for=shared)


def gradients_over_all(shared, own, group):
    gradients(shared + own, [], group)


def gradients_mean_of_replicas(shared, own, group):
    gradients(shared, [], group)
    for p in own:
        dist.all_reduce(p.grad, group=group)
        p.grad /= dist.get_world_size(group)


def gradients_of_shared_alone(shared, own, group):
    gradients(shared, [], group)


def gradients_summed(shared, own, group):
    for p in shared:
        dist.all_reduce(p.grad)
    for p in own:
        dist.all_reduce(p.grad, group=group)


def gradients_divided_alone(shared, own, group):
    gradients(shared, [], group)
    for p in own:
        p.grad /= dist.get_world_size()


def gradients_gathered(shared, own, group):
    """Right numbers; each rank's gradients go to all."""
    n = dist.get_world_size()
    for p in shared:
        every = [torch.empty_like(p.grad) for _ in range(n)]
        dist.all_gather(every, p.grad)
        p.grad = sum(every) / n
    for p in own:
        every = [torch.empty_like(p.grad) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, p.grad, group=group)
        p.grad = sum(every) / n


def gradients_twice(shared, own, group):
    """Right numbers; the shared ones are averaged over both axes, one after the other."""
    for p in shared:
        dist.all_reduce(p.grad, group=group)
    gradients([], own, group)
    for p in shared:
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size() * dist.get_world_size(group)
