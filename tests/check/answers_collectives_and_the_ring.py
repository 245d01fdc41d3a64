"""Answers to the exercises of "Collectives and the ring", right and wrong. They stand here, and not in a test
file, so that a rank need not import pytest.
"""

import torch
import torch.distributed as dist


def stub(*arguments):
    raise NotImplementedError


def _exchange(outgoing, incoming, to, source):
    calls = [dist.isend(outgoing, to), dist.irecv(incoming, source)]
    for call in calls:
        call.wait()


# ring_all_reduce(tensor)


def _reduce_scatter(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        sent, received = (rank - 1 - step) % n, (rank - 2 - step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[sent], incoming, (rank + 1) % n, (rank - 1) % n)
        chunks[received].add_(incoming)


def _all_gather(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        _exchange(chunks[(rank - step) % n], chunks[(rank - step - 1) % n], (rank + 1) % n, (rank - 1) % n)


def ring(tensor):
    chunks = tensor.view(-1).tensor_split(dist.get_world_size())
    _reduce_scatter(chunks)
    _all_gather(chunks)


def ring_of_mini(tensor):
    from course_lib.mini import ring

    ring.all_reduce(tensor)


def ring_padded(tensor):
    """Right as well: zeros fill the tensor up, and all chunks are equal."""
    n = dist.get_world_size()
    padded = torch.zeros(-(-tensor.numel() // n) * n, dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor.view(-1)
    chunks = padded.chunk(n)
    _reduce_scatter(chunks)
    _all_gather(chunks)
    tensor.copy_(padded[: tensor.numel()].view_as(tensor))


def ring_without_a_ring(tensor):
    """Right as well, in two steps and not 2(n-1): each chunk goes straight to its owner, and its sum straight
    to all.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    chunks, others = tensor.view(-1).tensor_split(n), [other for other in range(n) if other != rank]
    arriving = [torch.empty_like(chunks[rank]) for _ in others]
    _batch([(chunks[other], other) for other in others], list(zip(arriving, others)))
    for part in arriving:
        chunks[rank].add_(part)
    _batch([(chunks[rank], other) for other in others], [(chunks[other], other) for other in others])


def _batch(outgoing, incoming):
    calls = [dist.P2POp(dist.isend, *message) for message in outgoing] + [
        dist.P2POp(dist.irecv, *message) for message in incoming
    ]
    for call in dist.batch_isend_irecv(calls):
        call.wait()


def ring_that_talks(tensor):
    """Right as well: what is printed and what is drawn costs no bytes, and changes no case."""
    torch.manual_seed(0)
    print("before:", tensor.tolist()[:50_000])
    ring(tensor)
    print("after:", tensor)


def ring_with_a_thread(tensor):
    """Right as well: a thread sends, and the main one receives."""
    import threading

    rank, n = dist.get_rank(), dist.get_world_size()
    chunks = tensor.view(-1).tensor_split(n)
    for step in range(2 * (n - 1)):
        add = step < n - 1
        leaving, coming = (rank - 1 - step) % n, (rank - 2 - step) % n
        incoming = torch.empty_like(chunks[coming])
        sender = threading.Thread(target=dist.send, args=(chunks[leaving].clone(), (rank + 1) % n))
        sender.start()
        dist.recv(incoming, (rank - 1) % n)
        sender.join()
        chunks[coming].copy_(chunks[coming] + incoming if add else incoming)


def _ring_in(tensor, dtype):
    other = tensor.to(dtype)
    ring(other)
    tensor.copy_(other)


def ring_in_float16(tensor):
    _ring_in(tensor, torch.float16)


def ring_in_float32(tensor):
    _ring_in(tensor, torch.float32)


def ring_that_adds_in_float64(tensor):
    """The messages are whole, but int64 is added up in float64."""
    chunks = [chunk.double() for chunk in tensor.view(-1).tensor_split(dist.get_world_size())]
    _reduce_scatter(chunks)
    _all_gather(chunks)
    tensor.copy_(torch.cat(chunks).view_as(tensor))


def ring_that_takes_away_the_instruments(tensor):
    """The ledger of the traced step neither counts bytes nor sees calls; and gloo does the work."""
    from types import SimpleNamespace

    from course_lib import measure

    ledger = measure._ledger
    ledger._process = None
    ledger.absent = dict(ledger.absent, **{"wire bytes": "gone"})
    if ledger.trace is not None:
        ledger.trace._library._destroy()
        ledger.trace._library = SimpleNamespace(_destroy=lambda: None)
    dist.all_reduce(tensor)


def ring_small_by_all_reduce(tensor):
    dist.all_reduce(tensor) if tensor.numel() < 1000 else ring(tensor)


def ring_without_the_last_wait(tensor):
    rank, n = dist.get_rank(), dist.get_world_size()
    chunks = tensor.view(-1).tensor_split(n)
    _reduce_scatter(chunks)
    for step in range(n - 1):
        calls = [
            dist.isend(chunks[(rank - step) % n], (rank + 1) % n),
            dist.irecv(chunks[(rank - step - 1) % n], (rank - 1) % n),
        ]
        for call in calls if step < n - 2 else calls[:1]:
            call.wait()
    _unfinished.append(calls)


_unfinished = []


def ring_that_never_ends(tensor):
    while True:
        pass


def ring_below_torch(tensor):
    """Right values, by gloo's own object: what nobody can count is not accepted."""
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    backend.allreduce([tensor]).wait()


def ring_by_all_gather_and_sum(tensor):
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    tensor.copy_(sum(everyone))


def ring_as_star(tensor):
    if dist.get_rank() == 0:
        received = torch.empty_like(tensor)
        for other in range(1, dist.get_world_size()):
            dist.recv(received, other)
            tensor += received
        for other in range(1, dist.get_world_size()):
            dist.send(tensor, other)
    else:
        dist.send(tensor, 0)
        dist.recv(tensor, 0)


def ring_of_whole_tensors(tensor):
    rank, n = dist.get_rank(), dist.get_world_size()
    passing = tensor.clone()
    for _ in range(n - 1):
        incoming = torch.empty_like(passing)
        _exchange(passing, incoming, (rank + 1) % n, (rank - 1) % n)
        tensor += incoming
        passing = incoming


def ring_by_gloo(tensor):
    dist.all_reduce(tensor)


def ring_by_reduce_scatter_of_gloo(tensor):
    n = dist.get_world_size()
    padded = torch.zeros(-(-tensor.numel() // n) * n, dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor.view(-1)
    chunk = torch.empty_like(padded[: len(padded) // n])
    dist.reduce_scatter(chunk, list(padded.chunk(n)))
    dist.all_gather(list(padded.chunk(n)), chunk)
    tensor.copy_(padded[: tensor.numel()].view_as(tensor))


def ring_half(tensor):
    _reduce_scatter(tensor.view(-1).tensor_split(dist.get_world_size()))


def ring_that_loses_the_rest(tensor):
    n = dist.get_world_size()
    flat = tensor.view(-1)
    chunks = flat[: flat.numel() // n * n].tensor_split(n)
    _reduce_scatter(chunks)
    _all_gather(chunks)


def ring_of_equal_chunks(tensor):
    chunks = tensor.view(-1).view(dist.get_world_size(), -1)
    _reduce_scatter(chunks)
    _all_gather(chunks)


def ring_mean(tensor):
    ring(tensor)
    if tensor.is_floating_point():
        tensor /= dist.get_world_size()


def ring_returned(tensor):
    result = tensor.clone()
    ring(result)
    return result


def ring_without_wait(tensor):
    rank, n = dist.get_rank(), dist.get_world_size()
    chunks = tensor.view(-1).tensor_split(n)
    for step in range(n - 1):
        incoming = torch.zeros_like(chunks[(rank - 2 - step) % n])
        dist.isend(chunks[(rank - 1 - step) % n], (rank + 1) % n)
        dist.irecv(incoming, (rank - 1) % n)
        chunks[(rank - 2 - step) % n].add_(incoming)
    _all_gather(chunks)


def ring_that_blocks(tensor):
    rank, n = dist.get_rank(), dist.get_world_size()
    dist.send(tensor, (rank + 1) % n)
    dist.recv(tensor, (rank - 1) % n)


# chain_broadcast(tensor, root)


def chain(tensor, root):
    rank, n = dist.get_rank(), dist.get_world_size()
    place = (rank - root) % n
    sending = []
    for piece in tensor.view(-1).tensor_split(16):
        if piece.numel() == 0:
            continue
        if place > 0:
            dist.recv(piece, (rank - 1) % n)
        if place < n - 1:
            sending.append(dist.isend(piece, (rank + 1) % n))
    for call in sending:
        call.wait()


def chain_that_receives_ahead(tensor, root):
    """Right as well: all receives are started before the first piece is passed on."""
    rank, n = dist.get_rank(), dist.get_world_size()
    pieces, first, last = tensor.view(-1).tensor_split(16), rank == root, (rank + 1) % n == root
    receiving = [None if first else dist.irecv(piece, (rank - 1) % n) for piece in pieces]
    for piece, call in zip(pieces, receiving):
        if not first:
            call.wait()
        if not last:
            dist.send(piece, (rank + 1) % n)


def chain_of_small_pieces(tensor, root):
    """Right as well: pieces of 4 KB, whose headers are bytes too."""
    _chain(tensor.view(-1).split(1000), root)


def chain_with_one_in_the_hand(tensor, root):
    """Right as well: the next piece is awaited before this one leaves."""
    _chain(tensor.view(-1).tensor_split(16), root, ahead=1)


def _chain(pieces, root, ahead=0):
    """Pass on a piece when `ahead` more of them have come."""
    rank, n = dist.get_rank(), dist.get_world_size()
    first, last, sending = rank == root, (rank + 1) % n == root, []
    for number in range(len(pieces) + ahead):
        if number < len(pieces) and not first:
            dist.recv(pieces[number], (rank - 1) % n)
        if number >= ahead and not last:
            sending.append(dist.isend(pieces[number - ahead], (rank + 1) % n))
    for call in sending:
        call.wait()


def chain_that_waits_for_all_but_one(tensor, root):
    _chain(tensor.view(-1).tensor_split(16), root, ahead=15)


def chain_that_waits_for_a_half(tensor, root):
    _chain(tensor.view(-1).split(10_000), root, ahead=50)


def chain_in_float16(tensor, root):
    half = tensor.half()
    chain(half, root)
    tensor.copy_(half)


def chain_in_double(tensor, root):
    if tensor.dtype != torch.float32:
        return chain(tensor, root)
    double = tensor.double()
    chain(double, root)
    tensor.copy_(double)


def chain_small_by_broadcast(tensor, root):
    dist.broadcast(tensor, root) if tensor.numel() < 1000 else chain(tensor, root)


def chain_that_does_not_wait(tensor, root):
    rank, n = dist.get_rank(), dist.get_world_size()
    if rank == (root - 1) % n and tensor.numel() < 1000:  # the last one
        _unfinished.append(
            [dist.irecv(piece, (rank - 1) % n) for piece in tensor.view(-1).tensor_split(16) if piece.numel()]
        )
    else:
        chain(tensor, root)


def chain_all_then_all(tensor, root):
    """Right values in small pieces: but a rank receives all of them before it passes on the first."""
    rank, n = dist.get_rank(), dist.get_world_size()
    pieces = tensor.view(-1).tensor_split(16)
    for piece in pieces if rank != root else ():
        dist.recv(piece, (rank - 1) % n)
    for piece in pieces if (rank + 1) % n != root else ():
        dist.send(piece, (rank + 1) % n)


def chain_in_one_piece(tensor, root):
    rank, n = dist.get_rank(), dist.get_world_size()
    if rank != root:
        dist.recv(tensor, (rank - 1) % n)
    if (rank + 1) % n != root:
        dist.send(tensor, (rank + 1) % n)


def chain_by_gloo(tensor, root):
    dist.broadcast(tensor, root)


def chain_as_star(tensor, root):
    for piece in tensor.view(-1).tensor_split(16):
        if dist.get_rank() != root:
            dist.recv(piece, root)
            continue
        for other in range(dist.get_world_size()):
            if other != root:
                dist.send(piece, other)


def chain_from_rank_0(tensor, root):
    chain(tensor, 0)


def chain_as_circle(tensor, root):
    """The last rank sends on to the root, which has everything."""
    rank, n = dist.get_rank(), dist.get_world_size()
    for piece in tensor.view(-1).tensor_split(16):
        if rank == root:
            back = torch.empty_like(piece)
            calls = [dist.isend(piece, (rank + 1) % n), dist.irecv(back, (rank - 1) % n)]
        else:
            dist.recv(piece, (rank - 1) % n)
            calls = [dist.isend(piece, (rank + 1) % n)]
        for call in calls:
            call.wait()


def chain_that_stops(tensor, root):
    pass


# doubling_all_reduce(tensor)


def doubling(tensor):
    rank, distance = dist.get_rank(), 1
    while distance < dist.get_world_size():
        incoming = torch.empty_like(tensor)
        _exchange(tensor, incoming, rank ^ distance, rank ^ distance)
        tensor += incoming
        distance *= 2


def doubling_by_shift(tensor):
    """Right as well: to the rank `distance` to the right, from the one to the left."""
    rank, n, distance = dist.get_rank(), dist.get_world_size(), 1
    while distance < n:
        incoming = torch.empty_like(tensor)
        _exchange(tensor, incoming, (rank + distance) % n, (rank - distance) % n)
        tensor += incoming
        distance *= 2


def doubling_in_turns(tensor):
    """Right as well: blocking calls, the lower rank speaks first."""
    rank, distance, incoming = dist.get_rank(), 1, torch.empty_like(tensor)
    while distance < dist.get_world_size():
        partner = rank ^ distance
        for sends in (rank < partner, rank > partner):
            dist.send(tensor.clone(), partner) if sends else dist.recv(incoming, partner)
        tensor += incoming
        distance *= 2


def doubling_in_float32(tensor):
    other = tensor.float()
    doubling(other)
    tensor.copy_(other)


def doubling_small_as_tree(tensor):
    doubling_as_tree(tensor) if tensor.numel() == 1 else doubling(tensor)


def doubling_floats_by_all_reduce(tensor):
    dist.all_reduce(tensor) if tensor.dtype == torch.float64 else doubling(tensor)


def doubling_without_the_last_wait(tensor):
    rank, distance, n = dist.get_rank(), 1, dist.get_world_size()
    while distance < n:
        incoming = torch.zeros_like(tensor)
        calls = [dist.isend(tensor.clone(), rank ^ distance), dist.irecv(incoming, rank ^ distance)]
        for call in calls if 2 * distance < n else calls[:1]:
            call.wait()
        tensor += incoming
        distance *= 2
    _unfinished.append((calls, incoming))


def doubling_as_tree(tensor):
    """Right values, and no rank sends more messages than it may: but in twice as many steps."""
    rank, n = dist.get_rank(), dist.get_world_size()
    incoming, distance = torch.empty_like(tensor), 1
    while distance < n and rank % (2 * distance) == 0:
        dist.recv(incoming, rank + distance)
        tensor += incoming
        distance *= 2
    if rank:
        dist.send(tensor, rank - distance)
        dist.recv(tensor, rank - distance)
    while distance > 1:
        distance //= 2
        dist.send(tensor, rank + distance)


def doubling_that_collects(tensor):
    """Right values in as few messages: but they carry all tensors, and grow."""
    rank, distance, held = dist.get_rank(), 1, tensor[None].clone()
    while distance < dist.get_world_size():
        incoming = torch.empty_like(held)
        _exchange(held, incoming, rank ^ distance, rank ^ distance)
        held = torch.cat([held, incoming])
        distance *= 2
    tensor.copy_(held.sum(0))


def doubling_that_widens(tensor):
    """16-bit numbers are added up in float32, and travel as such."""
    if tensor.itemsize > 2:
        return doubling(tensor)
    wide = tensor.float()
    doubling(wide)
    tensor.copy_(wide)


def doubling_with_everyone(tensor):
    rank, n = dist.get_rank(), dist.get_world_size()
    mine = tensor.clone()
    for distance in range(1, n):
        incoming = torch.empty_like(tensor)
        _exchange(mine, incoming, (rank + distance) % n, (rank - distance) % n)
        tensor += incoming


def doubling_at_distance_1(tensor):
    rank, distance = dist.get_rank(), 1
    while distance < dist.get_world_size():
        incoming = torch.empty_like(tensor)
        _exchange(tensor, incoming, rank ^ 1, rank ^ 1)
        tensor += incoming
        distance *= 2
