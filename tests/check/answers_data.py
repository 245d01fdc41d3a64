"""Answers to the exercises of "Data", right and wrong. They stand here, and not in a test file, so that a
rank need not import pytest.
"""

import random

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import get_worker_info


def stub(*arguments):
    raise NotImplementedError


# stream(sizes, read, rank, ranks)


def share(size, number, of):
    return size * number // of, size * (number + 1) // of


def place():
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def pieces_from(sizes, first, last):
    for shard, size in enumerate(sizes):
        start, stop = max(first, 0), min(last, size)
        if start < stop:
            yield shard, start, stop
        first, last = first - size, last - size


def stream(sizes, read, rank, ranks):
    first, last = share(sum(sizes), rank, ranks)
    start, stop = share(last - first, *place())
    for piece in pieces_from(sizes, first + start, first + stop):
        yield from read(*piece)


def stream_by_list(sizes, read, rank, ranks):
    """Right as well: the first ranks and workers have one more, and every sample knows its place."""
    places = [(shard, i) for shard, size in enumerate(sizes) for i in range(size)]
    worker, workers = place()
    mine = torch.arange(len(places)).tensor_split(ranks)[rank].tensor_split(workers)[worker].tolist()
    shards = sorted({places[i][0] for i in mine})
    for shard in shards:
        rows = [places[i][1] for i in mine if places[i][0] == shard]
        for sample in read(torch.tensor(shard), rows[0], rows[-1] + 1):
            yield torch.tensor(sample)


def stream_everything(sizes, read, rank, ranks):
    for shard, size in enumerate(sizes):
        yield from read(shard, 0, size)


def stream_without_workers(sizes, read, rank, ranks):
    for piece in pieces_from(sizes, *share(sum(sizes), rank, ranks)):
        yield from read(*piece)


def stream_whole_shards(sizes, read, rank, ranks):
    worker, workers = place()
    for shard in range(len(sizes))[rank::ranks][worker::workers]:
        yield from read(shard, 0, sizes[shard])


def stream_every_nth(sizes, read, rank, ranks):
    """Right samples, and each from a reading of its own."""
    worker, workers = place()
    places = [(shard, i) for shard, size in enumerate(sizes) for i in range(size)]
    for shard, i in places[rank::ranks][worker::workers]:
        yield from read(shard, i, i + 1)


def stream_skips(sizes, read, rank, ranks):
    """Reads every shard as a whole, and leaves out what is not its own."""
    first, last = share(sum(sizes), rank, ranks)
    start, stop = share(last - first, *place())
    wanted = range(first + start, first + stop)
    for shard, size in enumerate(sizes):
        yield from (sample for sample in read(shard, 0, size) if sample in wanted)


def stream_all_at_once(sizes, read, rank, ranks):
    yield from list(stream(sizes, read, rank, ranks))


def stream_padded(sizes, read, rank, ranks):
    """All ranks have as many: the last one takes some from the end of the others'."""
    total = sum(sizes)
    each = -(-total // ranks)
    first = min(rank * each, max(total - each, 0))
    start, stop = share(min(each, total - first), *place())
    for piece in pieces_from(sizes, first + start, first + stop):
        yield from read(*piece)


def stream_batches(sizes, read, rank, ranks):
    first, last = share(sum(sizes), rank, ranks)
    start, stop = share(last - first, *place())
    for piece in pieces_from(sizes, first + start, first + stop):
        yield read(*piece)


def stream_beyond(sizes, read, rank, ranks):
    yield from read(rank, 0, sizes[rank] + 1)


# update(ddp, optimizer, images, labels, class_weights, max_norm)


def summed(ddp, images, labels, class_weights):
    return F.cross_entropy(ddp(images), labels, class_weights, reduction="sum")


def all_weights(labels, class_weights):
    total = class_weights[labels].sum()
    dist.all_reduce(total)
    return total


def update_with(ddp, optimizer, loss, max_norm):
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(ddp.parameters(), max_norm)
    optimizer.step()


def update(ddp, optimizer, images, labels, class_weights, max_norm):
    total = all_weights(labels, class_weights)
    loss = summed(ddp, images, labels, class_weights) * dist.get_world_size() / total
    update_with(ddp, optimizer, loss, max_norm)


def update_by_hand(ddp, optimizer, images, labels, class_weights, max_norm):
    """Right as well: each image's loss by itself, gradients scaled afterwards, clipped by hand."""
    own = class_weights[labels]
    total = own.sum()
    work = dist.all_reduce(total, async_op=True)
    ddp.zero_grad(set_to_none=False)
    (F.cross_entropy(ddp(images), labels, reduction="none") * own).sum().backward()
    work.wait()
    params = list(ddp.parameters())
    for p in params:
        p.grad *= dist.get_world_size() / total
    norm = torch.stack([p.grad.norm() for p in params]).norm()
    if norm > max_norm:
        for p in params:
            p.grad *= max_norm / norm
    optimizer.step()


def update_by_torchs_mean(ddp, optimizer, images, labels, class_weights, max_norm):
    update_with(ddp, optimizer, F.cross_entropy(ddp(images), labels, class_weights), max_norm)


def update_own_mean(ddp, optimizer, images, labels, class_weights, max_norm):
    loss = summed(ddp, images, labels, class_weights)
    update_with(ddp, optimizer, loss / class_weights[labels].sum().clamp(min=1e-9), max_norm)


def update_by_number(ddp, optimizer, images, labels, class_weights, max_norm):
    total = torch.tensor(float(len(labels)))
    dist.all_reduce(total)
    loss = summed(ddp, images, labels, class_weights) * dist.get_world_size() / total
    update_with(ddp, optimizer, loss, max_norm)


def update_divides_twice(ddp, optimizer, images, labels, class_weights, max_norm):
    total = all_weights(labels, class_weights)
    update_with(ddp, optimizer, summed(ddp, images, labels, class_weights) / total, max_norm)


def update_unclipped(ddp, optimizer, images, labels, class_weights, max_norm):
    update(ddp, optimizer, images, labels, class_weights, float("inf"))


def update_clips_each_rank(ddp, optimizer, images, labels, class_weights, max_norm):
    total = all_weights(labels, class_weights)
    optimizer.zero_grad()
    with ddp.no_sync():
        (summed(ddp, images, labels, class_weights) * dist.get_world_size() / total).backward()
    clip_grad_norm_(ddp.parameters(), max_norm)
    for p in ddp.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    optimizer.step()


def update_skips_the_empty(ddp, optimizer, images, labels, class_weights, max_norm):
    if len(labels):
        update(ddp, optimizer, images, labels, class_weights, max_norm)


def update_gathers_images(ddp, optimizer, images, labels, class_weights, max_norm):
    """All images on every rank: right numbers."""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, (images, labels))
    images, labels = (torch.cat(parts) for parts in zip(*every))
    loss = summed(ddp, images, labels, class_weights) / class_weights[labels].sum()
    update_with(ddp, optimizer, loss, max_norm)


def update_fills_up(ddp, optimizer, images, labels, class_weights, max_norm):
    """Who has none takes an image of zeros, which counts nothing."""
    if len(labels):
        update(ddp, optimizer, images, labels, class_weights, max_norm)
    else:
        total = all_weights(labels, class_weights)
        loss = 0 * ddp(torch.zeros(1, 1, 8, 8, dtype=images.dtype)).sum()
        update_with(ddp, optimizer, loss / total, max_norm)


# numbers(samples, seed, trained, batch_size, rank, ranks)


def mixed(value, key):
    """A number that looks drawn, from two."""
    value = (value ^ key) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    value = (value ^ value >> 29) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return value ^ value >> 32


def by_feistel(i, samples, key):
    half = max(1, (samples - 1).bit_length() + 1 >> 1)
    low = (1 << half) - 1
    while True:
        left, right = i >> half, i & low
        for turn in range(4):
            left, right = right, left ^ mixed(right, key + turn) & low
        i = left << half | right
        if i < samples:
            return i


def positions(trained, batch_size, rank, ranks):
    return range(trained + batch_size * rank // ranks, trained + batch_size * (rank + 1) // ranks)


def numbers(samples, seed, trained, batch_size, rank, ranks):
    return [
        by_feistel(t % samples, samples, 1000003 * seed + 101 * (t // samples))
        for t in positions(trained, batch_size, rank, ranks)
    ]


def numbers_by_rounds(samples, seed, trained, batch_size, rank, ranks):
    """Right as well: rounds that can be undone, over a power of two, every n-th position, a tensor."""
    bits = max(2, (samples - 1).bit_length())
    mask, found = (1 << bits) - 1, []
    for t in range(trained + rank, trained + batch_size, ranks):
        draw = random.Random(f"{seed} {t // samples}")
        rounds = [(draw.randrange(1 << bits) | 1, draw.randrange(1 << bits)) for _ in range(6)]
        i = t % samples
        while True:
            for times, plus in rounds:
                i = i * times + plus & mask
                i ^= i >> bits // 2
            if i < samples:
                break
        found.append(i)
    return torch.tensor(found, dtype=torch.int64)


def whole_order(samples, seed, epoch):
    generator = torch.Generator().manual_seed(seed + 7919 * epoch)
    return torch.randperm(samples, generator=generator)


def numbers_from_a_list(samples, seed, trained, batch_size, rank, ranks):
    """Right numbers, and a list of all for them."""
    if samples > 10**7:
        raise MemoryError("never asked for that much")
    mine = positions(trained, batch_size, rank, ranks)
    orders = {epoch: whole_order(samples, seed, epoch) for epoch in {t // samples for t in mine}}
    return [orders[t // samples][t % samples].item() for t in mine]


def numbers_of_numpy(samples, seed, trained, batch_size, rank, ranks):
    """The same with numpy, and nothing of torch sees it."""
    found = []
    for epoch in range(trained // samples, (trained + batch_size) // samples + 1):
        order = np.random.default_rng([seed, epoch]).permutation(samples)
        mine = positions(trained, batch_size, rank, ranks)
        found += [order[t % samples] for t in mine if t // samples == epoch]
    return found


def numbers_regular(samples, seed, trained, batch_size, rank, ranks):
    step = next(s for s in range(samples // 3 + 1, samples) if samples % s and _coprime(s, samples))
    return [
        (seed + 17 * (t // samples) + step * t) % samples for t in positions(trained, batch_size, rank, ranks)
    ]


def _coprime(a, b):
    while b:
        a, b = b, a % b
    return a == 1


def numbers_drawn(samples, seed, trained, batch_size, rank, ranks):
    return [mixed(t, seed) % samples for t in positions(trained, batch_size, rank, ranks)]


def numbers_each_epoch_alike(samples, seed, trained, batch_size, rank, ranks):
    return [by_feistel(t % samples, samples, seed) for t in positions(trained, batch_size, rank, ranks)]


def numbers_short_at_the_end(samples, seed, trained, batch_size, rank, ranks):
    left = samples - trained % samples
    return numbers(samples, seed, trained, min(batch_size, left), rank, ranks)


def numbers_padded(samples, seed, trained, batch_size, rank, ranks):
    return numbers(samples, seed, trained, -(-batch_size // ranks) * ranks, rank, ranks)


def numbers_per_rank(samples, seed, trained, batch_size, rank, ranks):
    """A state of batches: where a rank is depends on how many there are."""
    share = samples // ranks
    own = batch_size * (rank + 1) // ranks - batch_size * rank // ranks
    return [
        by_feistel((rank * share + (trained // ranks + i) % share) % samples, samples, seed)
        for i in range(own)
    ]


def numbers_of_a_process(samples, seed, trained, batch_size, rank, ranks):
    return numbers(samples, seed + dist.get_rank(), trained, batch_size, rank, ranks)


def numbers_in_words(samples, seed, trained, batch_size, rank, ranks):
    return ["one"] * batch_size
