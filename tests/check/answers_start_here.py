"""Answers to the exercises of "Start here", right and wrong. Ranks import this file, so it is light."""

import subprocess
import sys

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce as all_reduce_of_autograd

from course_lib.datasets import rank_slice


def _cpu(value):
    return torch.tensor([value], dtype=torch.float32, device="cpu")


# ---- ping_pong


def ping_pong(start, rounds, numel=1, dtype=torch.float32):
    rank, received = dist.get_rank(), []
    ball = torch.zeros(numel, dtype=dtype, device="cpu")
    if rank == 0:
        ball += start + 1
    for _ in range(rounds):
        if rank == 0:
            dist.send(ball, dst=1)
        dist.recv(ball, src=1 - rank)
        received.append(ball[0].item())
        ball += 1
        if rank == 1:
            dist.send(ball, dst=0)
    return received


def ping_pong_in_int64(start, rounds):
    """Right too: 8 bytes per message."""
    return ping_pong(start, rounds, dtype=torch.int64)


def ping_pong_without_waiting(start, rounds):
    """Right too: isend and irecv, with a wait for each."""
    rank, received, ball = dist.get_rank(), [], _cpu(start or 0)
    for _ in range(rounds):
        if rank == 0:
            dist.isend(ball + 1, dst=1).wait()
        dist.irecv(ball, src=1 - rank).wait()
        received.append(ball.clone())
        if rank == 1:
            dist.isend(ball + 1, dst=0).wait()
    return received


def ping_pong_in_numpy(start, rounds):
    """Right too: whole numbers of numpy, in an array."""
    import numpy

    print("a message of an answer")
    return numpy.array(ping_pong(start, rounds)).astype(numpy.int32)


def ping_pong_without_wait(start, rounds):
    """Reads what irecv has not yet brought."""
    rank, received, ball = dist.get_rank(), [], _cpu(start or 0)
    for _ in range(rounds):
        if rank == 0:
            dist.send(ball + 1, dst=1)
        call = dist.irecv(ball, src=1 - rank)
        received.append(ball.item())
        call.wait()
        if rank == 1:
            dist.send(ball + 1, dst=0)
    return received


def ping_pong_first_game_by_broadcast(start, rounds):
    return ping_pong_by_broadcast(start, rounds) if rounds == 3 else ping_pong(start, rounds)


def ping_pong_in_float16(start, rounds):
    return ping_pong(start, rounds, dtype=torch.float16)


def ping_pong_untouched(start, rounds):
    raise NotImplementedError


def ping_pong_without_messages(start, rounds):
    """Knows the game of the exercise's text by heart."""
    return [2, 4, 6] if dist.get_rank() == 0 else [1, 3, 5]


def ping_pong_by_broadcast(start, rounds):
    rank, received = dist.get_rank(), []
    ball = _cpu(start or 0)
    for turn in range(2 * rounds):
        sender = turn % 2
        if rank == sender:
            ball += 1
        dist.broadcast(ball, src=sender)
        if rank != sender:
            received.append(ball.item())
    return received


def ping_pong_with_start_told_first(start, rounds):
    """Right values, one message more."""
    rank = dist.get_rank()
    ball = _cpu(start or 0)
    if rank == 0:
        dist.send(ball, dst=1)
    else:
        dist.recv(ball, src=0)
    return ping_pong(start, rounds)


def ping_pong_rank_1_first(start, rounds):
    """Rank 1 opens with an empty message; the values and the number of sends are right."""
    rank = dist.get_rank()
    if rank == 1:
        dist.send(_cpu(0), dst=0)
    else:
        dist.recv(_cpu(0), src=1)
    received, ball = [], _cpu(start or 0)
    for turn in range(rounds):
        if rank == 0:
            ball += 1
            dist.send(ball, dst=1)
            if turn < rounds - 1:
                dist.recv(ball, src=1)
            else:
                ball += 1
            received.append(ball.item())
        else:
            dist.recv(ball, src=0)
            received.append(ball.item())
            if turn < rounds - 1:
                dist.send(ball + 1, dst=0)
    return received


def ping_pong_padded(start, rounds):
    return ping_pong(start, rounds, numel=1000)


def ping_pong_forgets_to_add(start, rounds):
    rank, received = dist.get_rank(), []
    ball = _cpu(start or 0)
    for _ in range(rounds):
        if rank == 0:
            dist.send(ball, dst=1)
        dist.recv(ball, src=1 - rank)
        received.append(ball.item())
        if rank == 1:
            dist.send(ball, dst=0)
    return received


def ping_pong_keeps_one_tensor(start, rounds):
    """Puts the tensor itself into the list, again and again: at the end all entries show the last number."""
    rank, received, ball = dist.get_rank(), [], _cpu(start or 0)
    for _ in range(rounds):
        if rank == 0:
            dist.send(ball + 1, dst=1)
        dist.recv(ball, src=1 - rank)
        received.append(ball)
        if rank == 1:
            dist.send(ball + 1, dst=0)
    return received


def ping_pong_of_objects(start, rounds):
    """Right values, two messages per number: the pickled number, and before it how long that is."""
    rank, received, ball = dist.get_rank(), [], [start]
    for _ in range(rounds):
        if rank == 0:
            dist.send_object_list([ball[0] + 1], dst=1)
        dist.recv_object_list(ball, src=1 - rank)
        received.append(ball[0])
        if rank == 1:
            dist.send_object_list([ball[0] + 1], dst=0)
    return received


def ping_pong_returns_the_last(start, rounds):
    return ping_pong(start, rounds)[-1]


def ping_pong_both_wait(start, rounds):
    dist.recv(_cpu(0), src=1 - dist.get_rank())
    return ping_pong(start, rounds)


def ping_pong_raises(start, rounds):
    return ping_pong(start + 0, rounds)  # rank 1 has no start


def ping_pong_leaves_a_process(start, rounds):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    return ping_pong(start, rounds)


# ---- my_share


def my_share(batch):
    return batch[rank_slice(len(batch), dist.get_rank(), dist.get_world_size())]


def my_share_strided(batch):
    """Right too: every world_size-th sample."""
    return batch[dist.get_rank() :: dist.get_world_size()]


def my_share_shuffled_alike(batch):
    """Right too: shuffled, by a generator that all ranks seed alike; the batch itself is not needed any
    more.
    """
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(7))
    share = batch[order][dist.get_rank() :: dist.get_world_size()]
    batch.zero_()
    return share


def my_share_by_splitting(batch):
    """Right too: numpy splits as evenly as can be, and the seed is set for all that follows."""
    import numpy

    torch.manual_seed(3)
    return torch.from_numpy(numpy.array_split(batch.numpy(), dist.get_world_size())[dist.get_rank()])


def my_share_shuffled(batch):
    """Each rank shuffles for itself."""
    return batch[torch.randperm(len(batch))][dist.get_rank() :: dist.get_world_size()]


def my_share_drawn_by_python(batch):
    import random

    samples = batch.tolist()
    random.shuffle(samples)
    return torch.tensor(samples[dist.get_rank() :: dist.get_world_size()], dtype=batch.dtype)


def my_share_of_known_sizes(batch):
    """Right for the sizes that the text names."""
    return my_share(batch) if len(batch) <= 12 else my_share_rounded_up(batch)


def my_share_small_by_messages(batch):
    return my_share_told_by_rank_0(batch) if len(batch) == 3 else my_share(batch)


def my_share_untouched(batch):
    raise NotImplementedError


def my_share_loses_the_rest(batch):
    share = len(batch) // dist.get_world_size()
    return batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def my_share_rest_to_the_last(batch):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    share = len(batch) // world_size
    return batch[rank * share :] if rank == world_size - 1 else batch[rank * share : (rank + 1) * share]


def my_share_everything(batch):
    return batch


def my_share_rounded_up(batch):
    """12 samples are fine, and the last of 10 on 4 ranks gets one: what torch.chunk does."""
    share = -(-len(batch) // dist.get_world_size())
    return batch[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def my_share_overlaps(batch):
    share = -(-len(batch) // dist.get_world_size())
    start = min(dist.get_rank() * share, len(batch) - share)
    return batch[start : start + share]


def my_share_told_by_rank_0(batch):
    """Right shares, but rank 0 sends what every rank has."""
    batch = batch.clone()
    dist.broadcast(batch, src=0)
    return my_share(batch)


def my_share_as_a_number(batch):
    return len(my_share(batch))


def my_share_of_positions(batch):
    return torch.arange(dist.get_rank(), len(batch), dist.get_world_size())


def my_share_as_a_mask(batch):
    return torch.arange(len(batch)) % dist.get_world_size() == dist.get_rank()


def my_share_as_a_list(batch):
    return [batch[i] for i in range(dist.get_rank(), len(batch), dist.get_world_size())]


def my_share_as_a_column(batch):
    return my_share(batch)[:, None]


# ---- average


def average(gradients):
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients)]


def average_in_place(gradients):
    """Right too: divided first, and written back into the gradients."""
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat, async_op=True).wait()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))
    return gradients


def average_through_autograd(gradients):
    """Right too: another way to ask for the same collective."""
    flat = (
        all_reduce_of_autograd(torch.cat([gradient.flatten() for gradient in gradients]))
        / dist.get_world_size()
    )
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients)]


def average_that_seeds(gradients):
    """Right too: sums in float64 once they have come, prints, seeds, and returns a tuple."""
    torch.manual_seed(0)
    print(gradients)
    return tuple(part.double() for part in average(gradients))


def average_with_a_buffer(gradients):
    """Right too: one buffer is filled piece by piece, and a reduction of the sum is scaled by a factor."""
    buffer = torch.empty(sum(gradient.numel() for gradient in gradients))
    place = 0
    for gradient in gradients:
        buffer[place : place + gradient.numel()] = gradient.reshape(-1)
        place += gradient.numel()
    dist.all_reduce(buffer.mul_(1 / dist.get_world_size()))
    return [
        buffer[end - gradient.numel() : end].reshape(gradient.shape)
        for gradient, end in zip(
            gradients, torch.tensor([gradient.numel() for gradient in gradients]).cumsum(0).tolist()
        )
    ]


def average_in_float16(gradients):
    return [part.float() for part in average([gradient.half() for gradient in gradients])]


def average_in_bfloat16(gradients):
    return [part.float() for part in average([gradient.bfloat16() for gradient in gradients])]


def average_without_wait(gradients):
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat, async_op=True)
    return [
        part.view_as(gradient)
        for part, gradient in zip(flat.split([gradient.numel() for gradient in gradients]), gradients)
    ]


def average_few_one_by_one(gradients):
    return average_one_by_one(gradients) if len(gradients) == 2 else average(gradients)


def average_untouched(gradients):
    raise NotImplementedError


def average_one_by_one(gradients):
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradients


def average_is_a_sum(gradients):
    return [part * dist.get_world_size() for part in average(gradients)]


def average_of_two(gradients):
    return [part * dist.get_world_size() / 2 for part in average(gradients)]


def average_of_four_ranks(gradients):
    """The number of ranks is known: 4."""
    return [part * dist.get_world_size() / 4 for part in average(gradients)]


def average_by_all_gather(gradients):
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    everything = flat.new_empty(dist.get_world_size() * len(flat))
    dist.all_gather_into_tensor(everything, flat)
    parts = (
        everything.view(dist.get_world_size(), -1).mean(0).split([gradient.numel() for gradient in gradients])
    )
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients)]


def average_in_double(gradients):
    return [part.float() for part in average([gradient.double() for gradient in gradients])]


def average_to_rank_0(gradients):
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.reduce(flat, dst=0)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients)]


def average_in_half(gradients):
    """Half the bytes, and rounded."""
    return [part.float() for part in average([gradient.half() for gradient in gradients])]


def average_padded(gradients):
    """One collective, and every gradient takes the place of the largest."""
    numel = max(gradient.numel() for gradient in gradients)
    rows = torch.stack(
        [torch.nn.functional.pad(gradient.flatten(), (0, numel - gradient.numel())) for gradient in gradients]
    )
    dist.all_reduce(rows)
    return [
        row[: gradient.numel()].view_as(gradient) / dist.get_world_size()
        for row, gradient in zip(rows, gradients)
    ]


def average_by_a_missing_forward(gradients):
    """NotImplementedError, but not the stub's: the module lacks `forward`, and torch says so."""
    return torch.nn.Module()(gradients)


def average_without_messages(gradients):
    return gradients


def average_flat(gradients):
    return torch.cat([part.flatten() for part in average(gradients)])
