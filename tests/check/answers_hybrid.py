"""Answers to the exercises of "Hybrid parallelism", right and wrong. They stand here, and not in a test file,
so that a rank need not import pytest.
"""

import contextlib
import time

import numpy as np
import torch
import torch.distributed as dist
from by_files import by_files


def stub(*arguments):
    raise NotImplementedError


# train_step(ddp, groups, inputs, targets, loss_fn, num_microbatches)


def ends(groups):
    """Whether this rank has the first stage, and the rank of the other one."""
    ranks = dist.get_process_group_ranks(groups["pp"])
    first = dist.get_rank() == ranks[0]
    return first, ranks[1 if first else 0]


def train_step(ddp, groups, inputs, targets, loss_fn, num_microbatches):
    """All forwards, then all backwards."""
    first, other = ends(groups)
    kept, sending = [], []
    for x, y in zip(inputs.chunk(num_microbatches), targets.chunk(num_microbatches)):
        if first:
            output = ddp(x)
            sending.append(dist.isend(output.detach(), other, group=groups["pp"]))
            kept.append((None, output))
        else:
            hidden = torch.empty_like(x)
            dist.recv(hidden, other, group=groups["pp"])
            hidden.requires_grad_()
            kept.append((hidden, loss_fn(ddp(hidden), y) / num_microbatches))
    for k, (hidden, output) in enumerate(kept):
        grad = None
        if first:
            grad = torch.empty_like(output)
            dist.recv(grad, other, group=groups["pp"])
        last = k == num_microbatches - 1
        with contextlib.nullcontext() if last else ddp.no_sync():
            output.backward(grad)
        if not first:
            sending.append(dist.isend(hidden.grad, other, group=groups["pp"]))
    for work in sending:
        work.wait()


def step_in_turns(
    ddp, groups, inputs, targets, loss_fn, num_microbatches, share=1.0, sync=False, own=None, only=None
):
    """Right as well, by blocking messages in the group of all ranks: one forward, one backward."""
    first, other = ends(groups)
    parts = list(zip(inputs.chunk(num_microbatches), targets.chunk(num_microbatches)))
    for k, (x, y) in enumerate(parts):
        last = k == num_microbatches - 1
        quiet = ddp.no_sync() if own or not (sync or last) else contextlib.nullcontext()
        if only and not last:
            continue
        with quiet:
            if first:
                output = ddp(x)
                dist.send(output.detach(), other)
                grad = torch.empty_like(output)
                dist.recv(grad, other)
                output.backward(grad)
            else:
                hidden = torch.empty_like(x)
                dist.recv(hidden, other)
                hidden.requires_grad_()
                (loss_fn(ddp(hidden), y) * share / num_microbatches).backward()
                dist.send(hidden.grad, other)
    if own:
        own(ddp, groups)


def all_in_one(ddp, groups):
    """As a bucket, without DDP's help."""
    flat = torch.cat([p.grad.flatten() for p in ddp.parameters()])
    dist.all_reduce(flat, group=groups["dp"])
    flat /= dist.get_world_size(groups["dp"])
    for p, part in zip(ddp.parameters(), flat.split([p.numel() for p in ddp.parameters()])):
        p.grad.copy_(part.view_as(p))


def step_averages_itself(*arguments):
    """Right as well."""
    step_in_turns(*arguments, own=all_in_one)


def step_that_syncs(*arguments):
    """Right values by a wasteful way: an average after each backward."""
    step_in_turns(*arguments, sync=True)


def step_that_never_syncs(*arguments):
    step_in_turns(*arguments, own=lambda ddp, groups: None)


def step_of_a_sum(*arguments):
    """The losses of the micro-batches are not divided by their number."""
    step_in_turns(*arguments, share=arguments[-1])


def step_of_the_last(*arguments):
    step_in_turns(*arguments, only=True)


def sum_over_dp(ddp, groups):
    for p in ddp.parameters():
        dist.all_reduce(p.grad, group=groups["dp"])


def step_that_sums(*arguments):
    step_in_turns(*arguments, own=sum_over_dp)


def gathers(ddp, groups):
    """Right values by a wasteful way."""
    for p in ddp.parameters():
        grads = [torch.empty_like(p.grad) for _ in range(dist.get_world_size(groups["dp"]))]
        dist.all_gather(grads, p.grad, group=groups["dp"])
        p.grad.copy_(sum(grads) / len(grads))


def step_that_gathers(*arguments):
    step_in_turns(*arguments, own=gathers)


def averages_by_files(ddp, groups):
    column = dist.get_process_group_ranks(groups["dp"])
    for p in ddp.parameters():
        everyones = by_files(p.grad)
        p.grad.copy_(sum(everyones[rank] for rank in column) / len(column))


def step_by_files(*arguments):
    """Right gradients; they do not travel, and files say them."""
    step_in_turns(*arguments, own=averages_by_files)


def without_waiting(ddp, groups):
    for p in ddp.parameters():
        p.grad /= dist.get_world_size(groups["dp"])
        dist.all_reduce(p.grad, group=groups["dp"], async_op=True)


def step_without_waiting(*arguments):
    step_in_turns(*arguments, own=without_waiting)


# gradient_norm(model, groups)


def cut_and_whole(model):
    cut, whole = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            (cut if name in getattr(module, "cut_dims", {}) else whole).append(p)
    return cut, whole


def squares_of(params):
    return sum(p.grad.square().sum() for p in params)


def gradient_norm(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares, group=groups["tp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_shared(model, groups):
    """Right as well, as a tensor: each rank of a row counts its share of what is whole."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut) + squares_of(whole) / dist.get_world_size(groups["tp"])
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt()


def norm_by_numpy(model, groups):
    """Right as well: numpy's number, from the norms that torch's own tool finds; and it prints them."""
    cut, whole = (torch.nn.utils.get_total_norm([p.grad for p in params]) for params in cut_and_whole(model))
    print([p.grad for p in model.parameters()])
    squares = cut.square()
    dist.all_reduce(squares, group=groups["tp"])
    return np.hypot(squares.sqrt().numpy(), whole.numpy())


def norm_by_all_gather(model, groups):
    """Right as well: every rank gets every number, in a tensor of one."""
    cut, whole = cut_and_whole(model)
    squares = [torch.empty(1) for _ in range(dist.get_world_size(groups["tp"]))]
    dist.all_gather(squares, squares_of(cut).view(1), group=groups["tp"])
    return (sum(squares) + squares_of(whole)).sqrt()


def norm_in_float32(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut).float()
    dist.all_reduce(squares, group=groups["tp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_of_two(model, groups):
    """The size of tp is known: 2."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut) + squares_of(whole) / 2
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt().item()


def norm_of_three_rows(model, groups):
    """The size of dp is known: 3."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares)
    return (squares / 3 + squares_of(whole)).sqrt().item()


def norm_that_sleeps(model, groups):
    """Not waited for: while all ranks are in step, the sum happens to be there."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    work = dist.all_reduce(squares, group=groups["tp"], async_op=True)
    time.sleep(0.4)
    norm = (squares + squares_of(whole)).sqrt().item()
    work.wait()
    return norm


def norm_that_waits_for_the_first(model, groups):
    """The first number is waited for, the others are not."""
    cut, whole = cut_and_whole(model)
    squares, works = [p.grad.square().sum() for p in cut], []
    for square in squares:
        works.append(dist.all_reduce(square, group=groups["tp"], async_op=True))
        works[0].wait()
    time.sleep(0.2)
    norm = (sum(squares) + squares_of(whole)).sqrt().item()
    for work in works:
        work.wait()
    return norm


def norm_number_by_number(model, groups):
    """Right as well: many small messages, all waited for."""
    cut, whole = cut_and_whole(model)
    squares = [p.grad.square().sum() for p in cut]
    works = [dist.all_reduce(square, group=groups["tp"], async_op=True) for square in squares]
    for work in works:
        work.wait()
    return (sum(squares) + squares_of(whole)).sqrt()


def norm_over_dp(model, groups):
    """The right sum, over the wrong axis."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares, group=groups["dp"])
    return (squares + squares_of(whole)).sqrt().item()


def norm_on_rank_0(model, groups):
    norm = gradient_norm(model, groups)
    return norm if dist.get_rank() == 0 else None


def norm_of_this_rank(model, groups):
    return squares_of(model.parameters()).sqrt().item()


def norm_of_everything_over_tp(model, groups):
    squares = squares_of(model.parameters())
    dist.all_reduce(squares, group=groups["tp"])
    return squares.sqrt().item()


def norm_over_all_ranks(model, groups):
    cut, whole = cut_and_whole(model)
    squares = squares_of(cut)
    dist.all_reduce(squares)
    return (squares + dist.get_world_size(groups["dp"]) * squares_of(whole)).sqrt().item()


def norm_squared(model, groups):
    return gradient_norm(model, groups) ** 2


def norm_of_sums(model, groups):
    """The sum of norms is not the norm of the sum."""
    cut, whole = cut_and_whole(model)
    norm = squares_of(cut).sqrt()
    dist.all_reduce(norm, group=groups["tp"])
    return (norm + squares_of(whole).sqrt()).item()


def norm_that_gathers(model, groups):
    """Right values by a wasteful way."""
    cut, whole = cut_and_whole(model)
    squares = squares_of(whole)
    for p in cut:
        parts = [torch.empty_like(p.grad) for _ in range(dist.get_world_size(groups["tp"]))]
        dist.all_gather(parts, p.grad, group=groups["tp"])
        squares = squares + sum(part.square().sum() for part in parts)
    return squares.sqrt().item()


def norm_that_clips(model, groups):
    norm = gradient_norm(model, groups)
    for p in model.parameters():
        p.grad /= norm
    return norm


# layout(model, gpus)

SIZES = (1, 2, 4, 8)


def divisors(number):
    return [part for part in range(1, number + 1) if number % part == 0]


def costs(model, dp, pp, tp, b):
    """Bytes on a GPU, and the seconds of a step."""
    layers, h, s = model["layers"], model["hidden"], model["sequence"]
    numel, m = 12 * layers * h**2 / (tp * pp), model["batch"] // (dp * b)
    memory = 16 * numel + min(pp, m) * layers / pp * 34 * s * b * h / tp
    each = 6 * numel * s * b / 400e12 + layers / pp * 0.5e-3
    each += layers / pp * 16 * s * b * h * (tp - 1) / tp / 450e9
    each += 4 * s * b * h / 50e9 if pp > 1 else 0
    return memory, (m + pp - 1) * each + 8 * numel * (dp - 1) / dp / 50e9


def all_layouts(model, gpus):
    for tp in SIZES:
        for pp in divisors(model["layers"]):
            dp = gpus // (tp * pp)
            if dp * tp * pp == gpus and model["batch"] % dp == 0:
                for b in divisors(model["batch"] // dp):
                    yield dp, pp, tp, b


def named(sizes):
    return dict(zip(("dp", "pp", "tp", "micro_batch"), sizes))


def layout(model, gpus, memory=80e9, key=None, some=all_layouts):
    fits = [sizes for sizes in some(model, gpus) if costs(model, *sizes)[0] <= memory]
    if not fits:
        return None
    return named(min(fits, key=key or (lambda sizes: costs(model, *sizes)[1])))


def layout_by_numpy(model, gpus):
    """Right as well, with numpy's numbers."""
    every = np.array(list(all_layouts(model, gpus)))
    if not len(every):
        return None
    memory, seconds = np.array([costs(model, *map(int, sizes)) for sizes in every]).T
    if (memory > 80e9).all():
        return None
    return named(every[np.where(memory <= 80e9, seconds, np.inf).argmin()])


def layout_in_a_loop(model, gpus):
    """Right as well: micro-batches first."""
    best, least = None, float("inf")
    for b in divisors(model["batch"]):
        for dp in divisors(gpus):
            for tp in SIZES:
                pp = gpus // (dp * tp)
                if dp * tp * pp != gpus or model["layers"] % pp or model["batch"] % (dp * b):
                    continue
                memory, seconds = costs(model, dp, pp, tp, b)
                if memory <= 80e9 and seconds < least:
                    best, least = named((dp, pp, tp, b)), seconds
    return best


def layout_by_states_alone(model, gpus):
    """The rule of the paper's table: as little model parallelism as the model states allow."""
    return layout(model, gpus, key=lambda sizes: (sizes[1] * sizes[2], -sizes[2], sizes[3]))


def layout_without_activations(model, gpus):
    fits = [
        (dp, pp, tp, b)
        for dp, pp, tp, b in all_layouts(model, gpus)
        if 16 * 12 * model["layers"] * model["hidden"] ** 2 / (tp * pp) <= 80e9
    ]
    return named(min(fits, key=lambda sizes: costs(model, *sizes)[1])) if fits else None


def layout_without_bubble(model, gpus):
    """As if m micro-batches took m times one."""

    def seconds(sizes):
        dp, pp, tp, b = sizes
        m, all_s = model["batch"] // (dp * b), costs(model, *sizes)[1]
        outside = 8 * 12 * model["layers"] * model["hidden"] ** 2 / (tp * pp) * (dp - 1) / dp / 50e9
        return (all_s - outside) * m / (m + pp - 1) + outside

    return layout(model, gpus, key=seconds)


def layout_of_single_samples(model, gpus):
    """Micro-batches of one, always."""
    return layout(model, gpus, some=lambda *case: (sizes for sizes in all_layouts(*case) if sizes[3] == 1))


def layout_of_whole_servers(model, gpus):
    return layout(model, gpus, some=lambda *case: (sizes for sizes in all_layouts(*case) if sizes[2] == 8))


def layout_over_servers(model, gpus):
    return {"dp": 1, "pp": 1, "tp": gpus, "micro_batch": 1}


def layout_of_uneven_stages(model, gpus):
    return {"dp": 1, "pp": gpus // 8, "tp": 8, "micro_batch": 1}


def layout_of_broken_batches(model, gpus):
    return {"dp": gpus, "pp": 1, "tp": 1, "micro_batch": model["batch"]}


def layout_as_a_list(model, gpus):
    found = layout(model, gpus)
    return found and list(found.values())


def layout_that_must_fit(model, gpus):
    """Where nothing fits, it returns the one that is nearest to it."""
    nearest = min(all_layouts(model, gpus), key=lambda sizes: costs(model, *sizes)[0], default=None)
    return layout(model, gpus) or nearest and named(nearest)


def layout_that_gives_up(model, gpus):
    return None
