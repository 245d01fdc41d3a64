"""Answers to the exercises of "Pipeline", right and wrong. They stand here, and not in a test file, so that a
rank need not import pytest.
"""

import itertools
from collections import deque

import numpy as np
import torch
import torch.distributed as dist

from course_lib.mini.pipeline import backward, forward
from course_lib.mini.pipeline.instructions import source_of, with_stages
from course_lib.mini.pipeline.weights import accumulate, waiting_weights


def stub(*arguments):
    raise NotImplementedError


# gpipe(num_stages, num_microbatches)


def gpipe(p, m):
    return [[forward(k) for k in range(m)] + [backward(k) for k in range(m)] for _ in range(p)]


def gpipe_last_backward_first(p, m):
    """Right as well, and the order of the paper: backward begins with the micro-batch that came last."""
    return [[forward(k) for k in range(m)] + [backward(k) for k in reversed(range(m))] for _ in range(p)]


def one_after_the_other(p, m):
    return [[op(k) for k in range(m) for op in (forward, backward)] for _ in range(p)]


def gpipe_last_micro_batch_first(p, m):
    """Right as well: the last micro-batch goes first, on every rank; and stages are named."""
    return [[op(k, rank) for op in (forward, backward) for k in reversed(range(m))] for rank in range(p)]


def gpipe_by_numpy(p, m):
    """Right as well: numpy's numbers, in an array of instructions."""
    return np.array(
        [[op(k) for op in (forward, backward) for k in np.arange(m)] for _ in range(p)], dtype=object
    )


def gpipe_of_eight(p, m):
    """Knows the sizes of the course, and no more."""
    return gpipe(p, m) if (p, m) in ((4, 8), (4, 2), (3, 3)) else gpipe(p, m - 1)


def gpipe_with_tensors_for_numbers(p, m):
    return [[op(k) for op in (forward, backward) for k in torch.arange(m)] for _ in range(p)]


def gpipe_for_one_rank(p, m):
    return gpipe(1, m)[0]


def gpipe_in_words(p, m):
    return [[f"F{k}" for k in range(m)] + [f"B{k}" for k in range(m)] for _ in range(p)]


def gpipe_skips_the_last(p, m):
    return [[one for one in mine if one.microbatch < m - 1 or one.op == "forward"] for mine in gpipe(p, m)]


def gpipe_repeats_the_first(p, m):
    return [[*mine, backward(0)] for mine in gpipe(p, m)]


def gpipe_backwards_first(p, m):
    return [[backward(k) for k in range(m)] + [forward(k) for k in range(m)] for _ in range(p)]


def gpipe_deadlock(p, m):
    """The first rank wants the first micro-batch back before it sends the second; the others want all of them
    first.
    """
    return one_after_the_other(1, m) + gpipe(p - 1, m)


def gpipe_with_a_pause(p, m):
    """Complete, and nobody waits for ever: but all wait for the first micro-batch to come back."""
    return [
        [forward(0), backward(0)] + [op(k) for op in (forward, backward) for k in range(1, m)]
        for _ in range(p)
    ]


def gpipe_in_two_halves(p, m):
    half = -(-m // 2)
    return [
        [op(k) for part in (range(half), range(half, m)) for op in (forward, backward) for k in part]
        for _ in range(p)
    ]


# one_f_one_b(num_stages, num_microbatches)


def _alternate(m, warm_up):
    warm_up = max(0, min(warm_up, m))
    pairs = [one for k in range(m - warm_up) for one in (forward(warm_up + k), backward(k))]
    return [forward(k) for k in range(warm_up)] + pairs + [backward(k) for k in range(m - warm_up, m)]


def one_f_one_b(p, m):
    return [_alternate(m, p - 1 - rank) for rank in range(p)]


def one_f_one_b_by_hand(p, m):
    """Right as well: always a backward, as soon as as many forwards have run as the rank may hold."""
    lists = []
    for rank in range(p):
        mine, forwards, backwards = [], 0, 0
        while backwards < m:
            if forwards < m and forwards - backwards < p - rank:
                mine.append(forward(forwards))
                forwards += 1
            else:
                mine.append(backward(backwards))
                backwards += 1
        lists.append(mine)
    return lists


def one_f_one_b_too_early(p, m):
    return [_alternate(m, p - rank) for rank in range(p)]


def one_f_one_b_for_few_stages(p, m):
    """Right for up to four stages."""
    return one_f_one_b(p, m) if p <= 4 else one_after_the_other(p, m)


def one_f_one_b_same_on_all_ranks(p, m):
    return [_alternate(m, p - 1) for _ in range(p)]


def one_f_one_b_too_late(p, m):
    return [_alternate(m, p - 2 - rank) for rank in range(p)]


def one_f_one_b_from_the_wrong_end(p, m):
    return [_alternate(m, rank) for rank in range(p)]


def one_f_one_b_without_the_end(p, m):
    return [mine[: len(mine) - (p - 1 - rank)] for rank, mine in enumerate(one_f_one_b(p, m))]


# execute(instructions, stage, inputs, targets, loss_fn, like)


def _execute(
    instructions,
    stage,
    inputs,
    targets,
    loss_fn,
    like,
    *,
    divide=True,
    keep=None,
    send=dist.isend,
    track=True,
    clear=False,
    before=lambda: None,
    after=lambda: None,
):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    saved, kept, sending = {}, [], []
    for instruction in instructions:
        k = instruction.microbatch
        before()
        if instruction.op == "forward":
            if rank == 0:
                x = inputs[k]
            else:
                x = torch.empty_like(like)
                dist.recv(x, rank - 1)
                x.requires_grad_(track)
            y = stage(x)
            if rank < last:
                sending.append(send(y.detach(), rank + 1))
            else:
                y = loss_fn(y, targets[k]) / (len(targets) if divide else 1)
            saved[k] = x, y
        else:
            x, y = saved.pop(k)
            grad = None
            if rank < last:
                grad = torch.empty_like(like)
                dist.recv(grad, rank + 1)
            if clear:
                stage.zero_grad()
            y.backward(grad)
            if rank > 0:
                sending.append(send(x.grad, rank - 1))
            if keep:
                kept.append(keep(x, y))
        after()
    for work in sending:
        if work is not None:
            work.wait()


def execute(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like)


def execute_receives_early(instructions, stage, inputs, targets, loss_fn, like):
    """Right as well: all receives are posted before the first instruction, so that nobody waits for a sender
    to be heard.
    """
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    box = {}
    for one in instructions:
        peer = rank - 1 if one.op == "forward" else rank + 1
        if 0 <= peer <= last:
            box[one] = torch.empty_like(like)
            box[one] = box[one], dist.irecv(box[one], peer, tag=one.microbatch)

    def arrived(one):
        tensor, work = box.pop(one)
        work.wait()
        return tensor

    graphs, sending = {}, []
    for one in instructions:
        if one.op == "forward":
            x = arrived(one).requires_grad_() if rank else inputs[one.microbatch]
            y = stage(x)
            if rank == last:
                y = loss_fn(y, targets[one.microbatch]) / len(targets)
            else:
                sending.append(dist.isend(y.detach(), rank + 1, tag=one.microbatch))
            graphs[one.microbatch] = x, y
        else:
            x, y = graphs.pop(one.microbatch)
            torch.autograd.backward(y, None if rank == last else arrived(one))
            if rank:
                sending.append(dist.isend(x.grad, rank - 1, tag=one.microbatch))
    for work in sending:
        work.wait()


def execute_one_after_the_other(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients, and the list is not even read."""
    _execute(
        [op(k) for k in range(len(inputs)) for op in (forward, backward)],
        stage,
        inputs,
        targets,
        loss_fn,
        like,
    )


def execute_all_forwards_first(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients under every schedule; under 1F1B it holds the activations of all micro-batches."""
    _execute(
        [op(k) for op in (forward, backward) for k in range(len(inputs))],
        stage,
        inputs,
        targets,
        loss_fn,
        like,
    )


def execute_one_forward_ahead(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients under every schedule: before each backward it runs the next forward of the list."""
    mine = list(instructions)
    for at in range(len(mine) - 1):
        if mine[at].op == "backward" and mine[at + 1].op == "forward":
            mine[at : at + 2] = mine[at + 1], mine[at]
    _execute(mine, stage, inputs, targets, loss_fn, like)


def execute_uses_up(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients: and nothing is left of the batch."""
    _execute(instructions, stage, inputs, targets, loss_fn, like)
    for tensor in (*inputs, *targets):
        tensor.zero_()


def execute_takes_out_of_the_lists(instructions, stage, inputs, targets, loss_fn, like):
    """Right as well: a list is emptied, and the tensors stay as they are."""
    waiting, wanted = dict(enumerate(inputs)), dict(enumerate(targets))
    count = len(inputs)
    inputs.clear(), targets.clear()
    _execute(
        instructions,
        stage,
        waiting,
        wanted,
        lambda output, target: loss_fn(output, target) / count,
        like,
        divide=False,
    )


def execute_keeps_all(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like, keep=lambda x, y: (x, y))


def execute_keeps_all_out_of_sight(instructions, stage, inputs, targets, loss_fn, like):
    """No tensor is kept: only the node of autograd that made it, in a function, on the module."""

    def keep(x, y):
        node = y.grad_fn
        stage.__dict__.setdefault("later", []).append(lambda: node)

    _execute(instructions, stage, inputs, targets, loss_fn, like, keep=keep)
    del stage.later


def execute_keeps_some_on_the_last_rank(instructions, stage, inputs, targets, loss_fn, like):
    """The last rank, which needs one micro-batch at a time, keeps four: no more than rank 0."""
    some = deque(maxlen=3 if dist.get_rank() == dist.get_world_size() - 1 else 1)
    _execute(instructions, stage, inputs, targets, loss_fn, like, keep=lambda x, y: some.append(y))


def execute_keeps_the_inputs(instructions, stage, inputs, targets, loss_fn, like):
    """What autograd saved is let go, and what was received is not."""
    _execute(instructions, stage, inputs, targets, loss_fn, like, keep=lambda x, y: x)


def execute_leaves_weights_for_the_end(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients: but those of the weights come at the end, and what they need is kept so long."""
    waiting = []
    with waiting_weights(stage, waiting):
        _execute(instructions, stage, inputs, targets, loss_fn, like)
    accumulate(waiting)


def execute_sends_in_halves(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients, and no byte more: but two messages for each tensor."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    graphs, sending = {}, []

    def send(tensor, peer):
        sending.extend(dist.isend(half.contiguous(), peer) for half in tensor.tensor_split(2))

    def receive(peer):
        halves = [torch.empty_like(half) for half in like.tensor_split(2)]
        for half in halves:
            dist.recv(half, peer)
        return torch.cat(halves)

    for one in instructions:
        k = one.microbatch
        if one.op == "forward":
            x = receive(rank - 1).requires_grad_() if rank else inputs[k]
            y = stage(x)
            if rank < last:
                send(y.detach(), rank + 1)
            graphs[k] = x, y if rank < last else loss_fn(y, targets[k]) / len(targets)
        else:
            x, y = graphs.pop(k)
            y.backward(receive(rank + 1) if rank < last else None)
            if rank:
                send(x.grad, rank - 1)
    for work in sending:
        work.wait()


def execute_asks_autograd_for_gradients(instructions, stage, inputs, targets, loss_fn, like):
    """Right as well: gradients are asked for, and added up by hand."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    graphs, sending, params = {}, [], list(stage.parameters())
    for one in instructions:
        k, message = one.microbatch, torch.empty_like(like)
        if one.op == "forward":
            x = inputs[k].clone() if rank == 0 else message
            if rank:
                dist.irecv(message, rank - 1).wait()
            y = stage(x.requires_grad_())
            if rank < last:
                sending += dist.batch_isend_irecv([dist.P2POp(dist.isend, y.detach(), rank + 1)])
            graphs[k] = x, y if rank < last else loss_fn(y, targets[k]) / len(targets)
        else:
            x, y = graphs.pop(k)
            if rank < last:
                dist.irecv(message, rank + 1).wait()
            grad, *others = torch.autograd.grad(y, [x, *params], message if rank < last else None)
            for param, other in zip(params, others):
                param.grad = other if param.grad is None else param.grad + other
            if rank:
                sending.append(dist.isend(grad, rank - 1))
    for work in sending:
        work.wait()


def execute_takes_turns(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients, in the order of the list, but one rank at a time: an empty message, which costs no
    byte, says whose turn it is.
    """
    rank, size, m = dist.get_rank(), dist.get_world_size(), len(inputs)
    lists = with_stages(
        one_f_one_b(size, m) if instructions == one_f_one_b(size, m)[rank] else gpipe(size, m)
    )
    done, ranks = {None}, []  # ranks: whose turn it is, from first to last
    while len(ranks) < 2 * m * size:
        for other, theirs in enumerate(lists):
            at = ranks.count(other)
            if at < len(theirs) and source_of(theirs[at], size) in done:
                done.add(theirs[at])
                ranks.append(other)
    turns = iter([turn for turn, other in enumerate(ranks) if other == rank])
    now, nothing, sending = 0, torch.empty(0), []

    def before():
        nonlocal now
        now = next(turns)
        if now and ranks[now - 1] != rank:
            dist.recv(nothing, ranks[now - 1], tag=1)

    def after():
        if now + 1 < len(ranks) and ranks[now + 1] != rank:
            sending.append(dist.isend(nothing, ranks[now + 1], tag=1))

    _execute(instructions, stage, inputs, targets, loss_fn, like, before=before, after=after)
    for work in sending:
        work.wait()


def execute_whole_batch(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients, and as many bytes: but all micro-batches in one, and so one rank at a time."""
    _execute(
        [forward(0), backward(0)],
        stage,
        [torch.cat(inputs)],
        [torch.cat(targets)],
        loss_fn,
        torch.cat([like] * len(inputs)),
    )


def _numbered(instructions, shuffle):
    """The list, with the numbers that a worker would count itself."""
    counts = {"forward": itertools.count(), "backward": itertools.count()}
    return [
        (
            forward(next(counts["forward"]))
            if one.op == "forward"
            else backward(next(counts["backward"]) if shuffle else one.microbatch)
        )
        for one in instructions
    ]


def execute_counts_itself(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients: all ranks count forwards and backwards, and never look at the numbers of the list."""
    _execute(_numbered(instructions, True), stage, inputs, targets, loss_fn, like)


def execute_counts_backwards_itself(instructions, stage, inputs, targets, loss_fn, like):
    """The forward reads the list, and the backward takes the oldest graph: gradients meet the wrong one."""
    order = iter([one.microbatch for one in instructions if one.op == "forward"])
    mixed = [one if one.op == "forward" else backward(next(order)) for one in instructions]
    _execute(mixed if dist.get_rank() else instructions, stage, inputs, targets, loss_fn, like)


def execute_in_circles(instructions, stage, inputs, targets, loss_fn, like):
    """Right as well: each micro-batch is an object that knows itself, and so Python's collector must find it.
    And it prints what it does.
    """

    class MicroBatch:
        def __init__(self, k):
            self.k, self.me = k, self

    rank, last = dist.get_rank(), dist.get_world_size() - 1
    batches, sending = {}, []
    for one in instructions:
        print(one, like.tolist())
        if one.op == "forward":
            batch = batches[one.microbatch] = MicroBatch(one.microbatch)
            batch.x = inputs[batch.k] if rank == 0 else torch.empty_like(like)
            if rank:
                dist.recv(batch.x, rank - 1)
                batch.x.requires_grad_()
            batch.y = stage(batch.x)
            if rank == last:
                batch.y = loss_fn(batch.y, targets[batch.k]) / len(targets)
            else:
                sending.append(dist.isend(batch.y.detach(), rank + 1))
        else:
            batch = batches.pop(one.microbatch)
            grad = torch.empty_like(like) if rank < last else None
            if rank < last:
                dist.recv(grad, rank + 1)
            batch.y.backward(grad)
            if rank:
                sending.append(dist.isend(batch.x.grad, rank - 1))
    for work in sending:
        work.wait()


def execute_in_float32(instructions, stage, inputs, targets, loss_fn, like):
    """Half the bytes, and half the precision."""
    _execute(
        instructions,
        lambda x: stage(x.double()).float(),
        [one.float() for one in inputs],
        targets,
        lambda y, target: loss_fn(y, target.float()),
        like.float(),
    )


def execute_rounds_what_it_sends(instructions, stage, inputs, targets, loss_fn, like):
    """As many bytes as asked for, but only half of them say something."""
    _execute(
        instructions,
        stage,
        inputs,
        targets,
        loss_fn,
        like,
        send=lambda tensor, peer: dist.isend(tensor.float().double(), peer),
    )


def execute_computes_forward_twice(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients, and a third more work."""

    def twice(x):
        with torch.no_grad():
            stage(x)
        return stage(x)

    _execute(instructions, twice, inputs, targets, loss_fn, like)


def execute_drops_its_sends(instructions, stage, inputs, targets, loss_fn, like):
    """What `isend` returns is thrown away, and the message with it."""

    def send(tensor, peer):
        dist.isend(tensor, peer)

    _execute(instructions, stage, inputs, targets, loss_fn, like, send=send)


def execute_without_mean(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like, divide=False)


def execute_last_gradient_only(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like, clear=True)


def execute_sends_that_wait(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like, send=dist.send)


def execute_without_history(instructions, stage, inputs, targets, loss_fn, like):
    _execute(instructions, stage, inputs, targets, loss_fn, like, track=False)


def execute_tells_everybody(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients: but every tensor goes to all ranks, and only one of them needs it."""
    rank, last, m = dist.get_rank(), dist.get_world_size() - 1, len(inputs)
    graphs, x = [], list(inputs)
    for sender in range(last + 1):
        if rank == sender:
            graphs = [(one, stage(one)) for one in x]
            x = [y.detach().clone() for _, y in graphs]
        if sender < last:
            x = [one if rank == sender else torch.empty_like(like) for one in x]
            for one in x:
                dist.broadcast(one, src=sender)
            x = [one.requires_grad_() if rank == sender + 1 else one for one in x]
    grads = [None] * m
    for sender in reversed(range(last + 1)):
        if rank == sender:
            for k, (one, y) in enumerate(graphs):
                (loss_fn(y, targets[k]) / m).backward() if rank == last else y.backward(grads[k])
            grads = [one.grad for one, _ in graphs]
        if sender > 0:
            grads = [grad if rank == sender else torch.empty_like(like) for grad in grads]
            for grad in grads:
                dist.broadcast(grad, src=sender)


def execute_sends_the_input_too(instructions, stage, inputs, targets, loss_fn, like):
    """Right gradients: but each message carries two tensors, and the second is for nobody."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    saved, sending = {}, []
    pair = torch.cat([like, like])
    for one in instructions:
        k = one.microbatch
        box = torch.empty_like(pair)
        if one.op == "forward":
            if rank:
                dist.recv(box, rank - 1)
            x = box[: len(like)].clone().requires_grad_() if rank else inputs[k]
            y = stage(x)
            if rank < last:
                sending.append(dist.isend(torch.cat([y.detach(), x.detach()]), rank + 1))
            else:
                y = loss_fn(y, targets[k]) / len(targets)
            saved[k] = x, y
        else:
            x, y = saved.pop(k)
            if rank < last:
                dist.recv(box, rank + 1)
            y.backward(box[: len(like)].clone() if rank < last else None)
            if rank:
                sending.append(dist.isend(torch.cat([x.grad, x.detach()]), rank - 1))
    for work in sending:
        work.wait()


# balance(costs, num_stages)


def balance(costs, num_stages):
    """The best for the first layers on fewer stages, and then one stage more."""
    # layers -> time of the slowest stage, sizes
    best = {0: (0.0, [])}
    for stage in range(num_stages):
        first, last = stage + 1, len(costs) - (num_stages - stage - 1)
        best = {
            end: min(
                (max(best[cut][0], sum(costs[cut:end])), best[cut][1] + [end - cut])
                for cut in best
                if cut < end
            )
            for end in range(first, last + 1)
        }
    return best[len(costs)][1]


def balance_by_trying_limits(costs, num_stages):
    """Right as well: fill each stage up to a limit, for every limit that can be, and see whether the stages
    are enough.
    """
    limits = sorted({sum(costs[a:b]) for a in range(len(costs)) for b in range(a + 1, len(costs) + 1)})
    for limit in limits:
        sizes, total, left = [0], 0.0, len(costs)
        for number, cost in enumerate(costs):
            left = len(costs) - number
            if sizes[-1] and (total + cost > limit + 1e-12 or left <= num_stages - len(sizes)):
                sizes, total = [*sizes, 0], 0.0
            sizes[-1], total = sizes[-1] + 1, total + cost
            if total > limit + 1e-12:
                break
        else:
            if len(sizes) == num_stages:
                return sizes
    return None


def _balance_by(measure, costs, num_stages):
    ends = [(0, *cuts, len(costs)) for cuts in itertools.combinations(range(1, len(costs)), num_stages - 1)]
    best = min(ends, key=lambda cuts: measure([sum(costs[a:b]) for a, b in itertools.pairwise(cuts)]))
    return [b - a for a, b in itertools.pairwise(best)]


def balance_by_numpy(costs, num_stages):
    """Right as well, with numpy's numbers."""
    return np.diff(np.concatenate([[0], np.cumsum(_balance_by(max, costs, num_stages))]))


def balance_by_squares(costs, num_stages):
    return _balance_by(lambda sums: sum(total**2 for total in sums), costs, num_stages)


def balance_by_range(costs, num_stages):
    return _balance_by(lambda sums: max(sums) - min(sums), costs, num_stages)


def balance_as_near_as_can_be(costs, num_stages):
    """Fill each stage as near as can be to the mean of what is left."""
    sizes, start = [], 0
    for stages in range(num_stages, 1, -1):
        mean, total, end = sum(costs[start:]) / stages, 0.0, start
        while end <= len(costs) - stages and (
            end == start or abs(total + costs[end] - mean) <= abs(total - mean)
        ):
            total, end = total + costs[end], end + 1
        sizes.append(end - start)
        start = end
    return [*sizes, len(costs) - start]


def balance_equal_numbers(costs, num_stages):
    return [len(part) for part in torch.arange(len(costs)).tensor_split(num_stages)]


def balance_greedy(costs, num_stages):
    """Close a stage when it has reached the mean."""
    mean, sizes, total = sum(costs) / num_stages, [0], 0.0
    for number, cost in enumerate(costs):
        must = len(costs) - number <= num_stages - len(sizes)
        if sizes[-1] and len(sizes) < num_stages and (total >= mean or must):
            sizes, total = [*sizes, 0], 0.0
        sizes[-1], total = sizes[-1] + 1, total + cost
    return sizes


def balance_all_on_the_first(costs, num_stages):
    return [len(costs)] + [0] * (num_stages - 1)


def balance_forgets_layers(costs, num_stages):
    return [len(costs) // num_stages] * num_stages


def balance_returns_costs(costs, num_stages):
    return [sum(costs) / num_stages] * num_stages
