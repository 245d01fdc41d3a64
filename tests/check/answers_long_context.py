"""Answers to the exercises of "Long context", right and wrong. They stand here, and not in a test file, so
that a rank need not import pytest.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def stub(*arguments):
    raise NotImplementedError


# Softmaxes in parts


def merge(a, b):
    most = torch.maximum(a[0], b[0])
    safe = most.clamp_min(torch.finfo(most.dtype).min)
    scale_a, scale_b = (a[0] - safe).exp(), (b[0] - safe).exp()
    return most, scale_a * a[1] + scale_b * b[1], scale_a * a[2] + scale_b * b[2]


def merge_by_where(a, b):
    """Right as well: what saw no key counts nothing."""
    most = torch.maximum(a[0], b[0])
    scales = [torch.where(part[0] == -torch.inf, 0.0, (part[0] - most).exp()) for part in (a, b)]
    return [most, *(sum(s * part[i] for s, part in zip(scales, (a, b))) for i in (1, 2))]


def merge_stacked(a, b):
    """Right as well: both at once, in one more dim."""
    most, total, acc = (torch.stack(pair) for pair in zip(a, b))
    new = most.amax(0)
    scale = torch.nan_to_num((most - new).exp(), nan=0.0)
    return new, (scale * total).sum(0), (scale * acc).sum(0)


def merge_added(a, b):
    return torch.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


def merge_without_most(a, b):
    """Overflows."""
    most = torch.maximum(a[0], b[0])
    scale_a, scale_b = a[0].exp(), b[0].exp()
    total = (scale_a * a[1] + scale_b * b[1]) / most.exp()
    return most, total, (scale_a * a[2] + scale_b * b[2]) / most.exp()


def merge_inf_minus_inf(a, b):
    most = torch.maximum(a[0], b[0])
    scale_a, scale_b = (a[0] - most).exp(), (b[0] - most).exp()
    return most, scale_a * a[1] + scale_b * b[1], scale_a * a[2] + scale_b * b[2]


def merge_in_place(a, b):
    most, total, acc = merge(a, b)
    a[1].copy_(total)
    return most, a[1], acc


def merge_nothing(a, b):
    return a[2] + b[2]


# A window


def _before(block):
    """What the rank before has."""
    rank, n = dist.get_rank(), dist.get_world_size()
    before = torch.zeros_like(block)
    if rank % 2 == 0:
        if rank < n - 1:
            dist.send(block, rank + 1)
        if rank > 0:
            dist.recv(before, rank - 1)
    else:
        dist.recv(before, rank - 1)
        if rank < n - 1:
            dist.send(block, rank + 1)
    return before


def _windowed(q, keys, values, window):
    rank, own = dist.get_rank(), q.shape[1]
    back = torch.arange(own)[:, None] - (torch.arange(keys.shape[1]) - keys.shape[1] + own)
    seen = (back >= 0) & (back < window) & (torch.arange(own)[:, None] - back + rank * own >= 0)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)


def window(q, k, v, window):
    block = torch.stack([k, v])
    keys, values = torch.cat([_before(block), block], 2)
    return _windowed(q, keys, values, window)


def window_few_rows(q, k, v, window):
    """Right as well, and sends less: the rows that are in the window."""
    if window == 1:
        return v
    block = torch.stack([k, v])
    last = block[:, :, -(window - 1) :].contiguous()
    keys, values = torch.cat([_before(last), block], 2)
    return _windowed(q, keys, values, window)


def window_merged(q, k, v, window):
    """Right as well: two parts, merged by the logarithms of their sums."""
    rank, n, own = dist.get_rank(), dist.get_world_size(), q.shape[1]
    block = torch.stack([k, v])
    before = torch.zeros_like(block)
    ops = [dist.P2POp(dist.isend, block, rank + 1)] if rank < n - 1 else []
    ops += [dist.P2POp(dist.irecv, before, rank - 1)] if rank else []
    works = dist.batch_isend_irecv(ops) if ops else []

    def part(block, shift):
        back = torch.arange(own)[:, None] - torch.arange(own) + shift
        scores = q @ block[0].mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill((back < 0) | (back >= window), -torch.inf)
        lse = scores.logsumexp(-1, keepdim=True)
        return (scores - lse.clamp_min(-1e300)).exp() @ block[1], lse

    out, lse = part(block, 0)
    for work in works:
        work.wait()
    if rank == 0:
        return out
    more, more_lse = part(before, own)
    total = torch.logaddexp(lse, more_lse)
    return (lse - total).exp() * out + (more_lse - total).exp() * more


def _all(x):
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts, 1)


def window_gathered(q, k, v, window):
    own, end = q.shape[1], (dist.get_rank() + 1) * q.shape[1]
    return _windowed(q, _all(k)[:, :end], _all(v)[:, :end], window) if own else None


def window_round_the_ring(q, k, v, window):
    """All blocks pass by, and one of them is used."""
    rank, n = dist.get_rank(), dist.get_world_size()
    block, before = torch.stack([k, v]), None
    own = block
    for step in range(n - 1):
        coming = torch.empty_like(block)
        ops = [
            dist.P2POp(dist.isend, block, (rank + 1) % n),
            dist.P2POp(dist.irecv, coming, (rank - 1) % n),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        block = coming
        before = coming if step == 0 else before
    keys, values = torch.cat([before, own], 2)
    return _windowed(q, keys, values, window)


def window_own(q, k, v, window):
    return _windowed(q, k, v, window)


def window_longer(q, k, v, width):
    return window(q, k, v, width + 1)


def window_not_waited(q, k, v, window):
    """Waits when it has computed."""
    rank, n = dist.get_rank(), dist.get_world_size()
    block = torch.stack([k, v])
    before = torch.zeros_like(block)
    ops = [dist.P2POp(dist.isend, block, rank + 1)] if rank < n - 1 else []
    ops += [dist.P2POp(dist.irecv, before, rank - 1)] if rank else []
    works = dist.batch_isend_irecv(ops)
    out = _windowed(q, *torch.cat([before, block], 2), window)
    for work in works:
        work.wait()
    return out


# Packed documents


def deal(documents, ranks):
    mine, begin = [[] for _ in range(ranks)], 0
    for length in documents:
        size = length // (2 * ranks)
        for rank, positions in enumerate(mine):
            for piece in (rank, 2 * ranks - 1 - rank):
                positions += range(begin + piece * size, begin + (piece + 1) * size)
        begin += length
    return mine


def deal_tensors(documents, ranks):
    """Right as well."""
    pieces = [part.chunk(2 * ranks) for part in torch.arange(sum(documents)).split(documents)]
    return tuple(
        torch.cat([piece for its in pieces for piece in (its[rank], its[2 * ranks - 1 - rank])])
        for rank in range(ranks)
    )


def deal_contiguous(documents, ranks):
    return [list(part) for part in torch.arange(sum(documents)).chunk(ranks)]


def deal_zigzag_over_all(documents, ranks):
    return deal([sum(documents)], ranks)


def deal_striped(documents, ranks):
    return [list(range(rank, sum(documents), ranks)) for rank in range(ranks)]


def deal_out_of_order(documents, ranks):
    return [its[::-1] for its in deal(documents, ranks)]


def deal_whole_documents(documents, ranks):
    """Each document to the rank that has least."""
    mine, begin = [[] for _ in range(ranks)], 0
    for length in documents:
        min(mine, key=len).extend(range(begin, begin + length))
        begin += length
    return mine


def deal_twice(documents, ranks):
    return [list(range(sum(documents)))] * ranks


def deal_one_list(documents, ranks):
    return list(range(sum(documents)))


# Ulysses with few heads of keys


def _to_heads(x):
    arrived = torch.empty_like(x)
    dist.all_to_all_single(arrived, x.contiguous())
    return torch.cat(arrived.chunk(dist.get_world_size()), 1)


def _to_tokens(x):
    leaving = torch.cat(x.chunk(dist.get_world_size(), 1))
    arrived = torch.empty_like(leaving)
    dist.all_to_all_single(arrived, leaving)
    return arrived


def few(q, k, v):
    copies = dist.get_world_size() // len(k)
    k, v = (x.repeat_interleave(copies, 0) for x in (k, v))
    q, k, v = map(_to_heads, (q, k, v))
    return _to_tokens(F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True))


def few_in_one_message(q, k, v):
    """Right as well: q, k and v travel together, as a list of messages."""
    n = dist.get_world_size()
    heads, each = len(q) // n, n // len(k)
    leaving = [
        torch.cat([q[to * heads : (to + 1) * heads], k[to // each, None], v[to // each, None]])
        for to in range(n)
    ]
    arrived = [torch.empty_like(one) for one in leaving]
    dist.all_to_all(arrived, leaving)
    q, k, v = torch.cat(arrived, 1).split([heads, 1, 1])
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
    return _to_tokens(out)


def few_by_sends(q, k, v):
    """Right as well: point to point."""
    rank, n = dist.get_rank(), dist.get_world_size()
    heads, each = len(q) // n, n // len(k)

    def swap(leaving):
        arrived = [torch.empty_like(leaving[rank]) for _ in range(n)]
        arrived[rank].copy_(leaving[rank])
        others = [other for other in range(n) if other != rank]
        ops = [dist.P2POp(dist.isend, leaving[other].contiguous(), other) for other in others]
        ops += [dist.P2POp(dist.irecv, arrived[other], other) for other in others]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        return arrived

    q = torch.cat(swap(q.split(heads)), 1)
    k, v = (torch.cat(swap([x[to // each, None].clone() for to in range(n)]), 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
    return torch.cat(swap(out.split(out.shape[1] // n, 1)))


def few_in_a_ring(q, k, v, corrected=True):
    """Right as well, and not Ulysses: keys are few, so a ring sends less still."""
    rank, n, own = dist.get_rank(), dist.get_world_size(), q.shape[1]
    block, parts = torch.stack([k, v]), []
    for step in range(n):
        source = (rank - step) % n
        if source <= rank:
            keys, values = block.repeat_interleave(len(q) // len(k), 1)
            scores = q @ keys.mT / q.shape[-1] ** 0.5
            if source == rank:
                scores = scores.masked_fill(torch.ones(own, own, dtype=torch.bool).triu(1), -torch.inf)
            lse = scores.logsumexp(-1, keepdim=True)
            parts.append((lse, (scores - lse).exp() @ values))
        if step < n - 1:
            coming = torch.empty_like(block)
            send, receive = (dist.isend, block, (rank + 1) % n), (dist.irecv, coming, (rank - 1) % n)
            for work in dist.batch_isend_irecv([dist.P2POp(*send), dist.P2POp(*receive)]):
                work.wait()
            block = coming
    shares = torch.stack([lse for lse, _ in parts]).softmax(0) if corrected else [1 / len(parts)] * len(parts)
    return sum(share * out for share, (_, out) in zip(shares, parts))


def few_in_a_ring_not_corrected(q, k, v):
    return few_in_a_ring(q, k, v, corrected=False)


def few_gathered(q, k, v):
    """Everybody gets all keys and values."""
    k, v = _all(k), _all(v)
    rank, n = dist.get_rank(), dist.get_world_size()
    own = rank * len(k) // n
    q = _to_heads(q)
    k, v = (x[own, None].expand_as(q) for x in (k, v))
    return _to_tokens(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def few_repeated(q, k, v):
    """A head of keys for each head of queries travels."""
    k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
    q, k, v = map(_to_heads, (q, k, v))
    return _to_tokens(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def few_full(q, k, v):
    copies = dist.get_world_size() // len(k)
    k, v = (x.repeat_interleave(copies, 0) for x in (k, v))
    q, k, v = map(_to_heads, (q, k, v))
    return _to_tokens(F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q)))


def few_other_pairs(q, k, v):
    """As `repeat` lays them out: right with one head of keys only."""
    k, v = (x.repeat(dist.get_world_size() // len(k), 1, 1) for x in (k, v))
    q, k, v = map(_to_heads, (q, k, v))
    return _to_tokens(F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True))


def few_not_back(q, k, v):
    return _to_heads(q)
