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


# ring_reduce_scatter(chunks)


def scatter(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        sent, received = (rank - 1 - step) % n, (rank - 2 - step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[sent], incoming, (rank + 1) % n, (rank - 1) % n)
        chunks[received].add_(incoming)


def scatter_of_mini(chunks):
    from course_lib.mini import ring

    ring.reduce_scatter(chunks[dist.get_rank()], chunks)


def scatter_in_a_batch(chunks):
    """Right as well, and other chunks stay as they are."""
    rank, n = dist.get_rank(), dist.get_world_size()
    passing = chunks[(rank - 1) % n]
    for step in range(2, n + 1):
        mine = chunks[(rank - step) % n]
        incoming = torch.empty_like(mine)
        _batch([(passing, (rank + 1) % n)], [(incoming, (rank - 1) % n)])
        passing = incoming + mine
    chunks[rank].copy_(passing)


def scatter_to_the_left(chunks):
    """Right as well: the other way round."""
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        received = (rank + 2 + step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[(rank + 1 + step) % n], incoming, (rank - 1) % n, (rank + 1) % n)
        chunks[received] += incoming


def scatter_without_a_ring(chunks):
    """Right as well: each chunk goes straight to its owner."""
    rank, n = dist.get_rank(), dist.get_world_size()
    others = [other for other in range(n) if other != rank]
    arriving = [torch.empty_like(chunks[rank]) for _ in others]
    _batch([(chunks[other], other) for other in others], list(zip(arriving, others)))
    for part in arriving:
        chunks[rank].add_(part)


def _batch(outgoing, incoming):
    calls = [dist.P2POp(dist.isend, *message) for message in outgoing] + [
        dist.P2POp(dist.irecv, *message) for message in incoming
    ]
    for call in dist.batch_isend_irecv(calls):
        call.wait()


def scatter_that_talks(chunks):
    """Right as well: what is printed and what is drawn costs no bytes, and changes no case."""
    torch.manual_seed(0)
    print("before:", chunks[0].tolist()[:50_000])
    scatter(chunks)
    print("after:", chunks)


def scatter_with_a_thread(chunks):
    """Right as well: a thread sends, and the main one receives."""
    import threading

    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        leaving, coming = (rank - 1 - step) % n, (rank - 2 - step) % n
        incoming = torch.empty_like(chunks[coming])
        sender = threading.Thread(target=dist.send, args=(chunks[leaving].clone(), (rank + 1) % n))
        sender.start()
        dist.recv(incoming, (rank - 1) % n)
        sender.join()
        chunks[coming].add_(incoming)


def _scatter_in(chunks, dtype):
    others = [chunk.to(dtype) for chunk in chunks]
    scatter(others)
    chunks[dist.get_rank()].copy_(others[dist.get_rank()])


def scatter_in_float16(chunks):
    _scatter_in(chunks, torch.float16)


def scatter_in_float32(chunks):
    _scatter_in(chunks, torch.float32)


def scatter_that_adds_in_float64(chunks):
    """The messages are whole, but int64 is added up in float64."""
    _scatter_in(chunks, torch.float64)


def scatter_that_takes_away_the_instruments(chunks):
    """The ledger of the traced step neither counts bytes nor sees calls; and gloo does the work."""
    from types import SimpleNamespace

    from course_lib import measure

    ledger = measure._ledger
    ledger._process = None
    ledger.absent = dict(ledger.absent, **{"wire bytes": "gone"})
    if ledger.trace is not None:
        ledger.trace._library._destroy()
        ledger.trace._library = SimpleNamespace(_destroy=lambda: None)
    scatter_by_gloo(chunks)


def scatter_small_by_all_reduce(chunks):
    scatter_by_gloo(chunks) if chunks[0].numel() < 1000 else scatter(chunks)


def scatter_without_the_last_wait(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    passing = chunks[(rank - 1) % n]
    for step in range(n - 1):
        mine, last = chunks[(rank - 2 - step) % n], step == n - 2
        incoming = torch.zeros_like(mine)
        calls = [dist.isend(passing.clone(), (rank + 1) % n), dist.irecv(incoming, (rank - 1) % n)]
        for call in calls[:1] if last else calls:
            call.wait()
        passing = incoming + mine
    chunks[rank].copy_(passing)
    _unfinished.append((calls, incoming))


_unfinished = []


def scatter_that_never_ends(chunks):
    while True:
        pass


def scatter_below_torch(chunks):
    """Right values, by gloo's own object: what nobody can count is not accepted."""
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    backend.allreduce([chunks[dist.get_rank()]._base]).wait()


def scatter_by_gloo(chunks):
    for chunk in chunks:
        dist.all_reduce(chunk)


def scatter_by_all_to_all(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    longest = max(map(len, chunks))
    given = torch.zeros(n, longest, dtype=chunks[0].dtype)
    for row, chunk in zip(given, chunks):
        row[: len(chunk)] = chunk
    arrived = torch.empty_like(given)
    dist.all_to_all_single(arrived, given)
    chunks[rank].copy_(arrived.sum(0, dtype=given.dtype)[: len(chunks[rank])])


def scatter_as_star(chunks):
    rank, tensor = dist.get_rank(), torch.cat(list(chunks))
    if rank:
        dist.send(tensor, 0)
        dist.recv(chunks[rank], 0)
        return
    received = torch.empty_like(tensor)
    for other in range(1, dist.get_world_size()):
        dist.recv(received, other)
        tensor += received
    for other, part in enumerate(tensor.split([len(chunk) for chunk in chunks])):
        dist.send(part.clone(), other) if other else chunks[0].copy_(part)


def scatter_of_whole_tensors(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    passing = torch.cat(list(chunks))
    total = passing.clone()
    for _ in range(n - 1):
        incoming = torch.empty_like(passing)
        _exchange(passing, incoming, (rank + 1) % n, (rank - 1) % n)
        total += incoming
        passing = incoming
    chunks[rank].copy_(total.split([len(chunk) for chunk in chunks])[rank])


def scatter_and_gather(chunks):
    scatter(chunks)
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        _exchange(chunks[(rank - step) % n], chunks[(rank - step - 1) % n], (rank + 1) % n, (rank - 1) % n)


def scatter_shifted(chunks):
    """The complete chunk of rank r is number r + 1."""
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        sent, received = (rank - step) % n, (rank - 1 - step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[sent], incoming, (rank + 1) % n, (rank - 1) % n)
        chunks[received].add_(incoming)


def scatter_one_step_short(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 2):
        received = (rank - 1 - step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[(rank - step) % n], incoming, (rank + 1) % n, (rank - 1) % n)
        chunks[received].add_(incoming)


def scatter_of_equal_chunks(chunks):
    scatter(torch.stack(list(chunks)))


def scatter_mean(chunks):
    scatter(chunks)
    if chunks[0].is_floating_point():
        chunks[dist.get_rank()] /= dist.get_world_size()


def scatter_into_other_memory(chunks):
    """The list has the sum, and the tensor that the chunks are views of has not."""
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        received = (rank - 2 - step) % n
        incoming = torch.empty_like(chunks[received])
        _exchange(chunks[(rank - 1 - step) % n], incoming, (rank + 1) % n, (rank - 1) % n)
        chunks[received] = chunks[received] + incoming


def scatter_without_wait(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    for step in range(n - 1):
        incoming = torch.zeros_like(chunks[(rank - 2 - step) % n])
        dist.isend(chunks[(rank - 1 - step) % n], (rank + 1) % n)
        dist.irecv(incoming, (rank - 1) % n)
        chunks[(rank - 2 - step) % n].add_(incoming)
    dist.send(chunks[0], (rank + 1) % n)


def scatter_that_blocks(chunks):
    rank, n = dist.get_rank(), dist.get_world_size()
    dist.send(chunks[(rank - 1) % n], (rank + 1) % n)
    dist.recv(chunks[(rank - 2) % n], (rank - 1) % n)


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


# halving_doubling_all_reduce(tensor)


def halving(tensor):
    part, way, distance = tensor.view(-1), [], dist.get_world_size() // 2
    while distance:
        partner = dist.get_rank() ^ distance
        lower, upper = part.tensor_split(2)
        kept, given = (upper, lower) if dist.get_rank() & distance else (lower, upper)
        incoming = torch.empty_like(kept)
        _exchange(given, incoming, partner, partner)
        kept += incoming
        way.append((kept, given, partner))
        part, distance = kept, distance // 2
    for kept, given, partner in reversed(way):
        _exchange(kept, given, partner, partner)


def halving_of_mini(tensor):
    from course_lib.mini.ring.halving import halving_doubling_all_reduce

    halving_doubling_all_reduce(tensor)


def halving_from_the_neighbour(tensor):
    """Right as well: the first partner is at distance 1; slices, and calls that block."""
    rank, n, flat = dist.get_rank(), dist.get_world_size(), tensor.view(-1)
    begin, end, distance, way = 0, len(flat), 1, []
    while distance < n:
        middle, partner = (begin + end) // 2, rank ^ distance
        mine, its = ((middle, end), (begin, middle)) if rank & distance else ((begin, middle), (middle, end))
        incoming = torch.empty_like(flat[slice(*mine)])
        _in_turns(flat[slice(*its)], incoming, partner)
        flat[slice(*mine)] += incoming
        way.append((mine, its, partner))
        (begin, end), distance = mine, 2 * distance
    for mine, its, partner in way[::-1]:
        _in_turns(flat[slice(*mine)], flat[slice(*its)], partner)


def _in_turns(outgoing, incoming, partner):
    for sends in (dist.get_rank() < partner, dist.get_rank() > partner):
        dist.send(outgoing, partner) if sends else dist.recv(incoming, partner)


def halving_in_float32(tensor):
    other = tensor.float()
    halving(other)
    tensor.copy_(other)


def halving_only(tensor):
    """Without the way back."""
    part, distance = tensor.view(-1), dist.get_world_size() // 2
    while distance:
        lower, upper = part.tensor_split(2)
        kept, given = (upper, lower) if dist.get_rank() & distance else (lower, upper)
        incoming = torch.empty_like(kept)
        _exchange(given, incoming, dist.get_rank() ^ distance, dist.get_rank() ^ distance)
        kept += incoming
        part, distance = kept, distance // 2


def halving_of_floats_alone(tensor):
    dist.all_reduce(tensor) if tensor.dtype == torch.float64 else halving(tensor)


def halving_without_the_last_wait(tensor):
    rank, distance, n = dist.get_rank(), 1, dist.get_world_size()
    while distance < n:
        incoming = torch.zeros_like(tensor)
        calls = [dist.isend(tensor.clone(), rank ^ distance), dist.irecv(incoming, rank ^ distance)]
        for call in calls if 2 * distance < n else calls[:1]:
            call.wait()
        tensor += incoming
        distance *= 2
    _unfinished.append((calls, incoming))


def doubling(tensor):
    """The fewest messages, and each of them whole."""
    rank, distance = dist.get_rank(), 1
    while distance < dist.get_world_size():
        incoming = torch.empty_like(tensor)
        _exchange(tensor, incoming, rank ^ distance, rank ^ distance)
        tensor += incoming
        distance *= 2


def ring(tensor):
    scatter_and_gather(list(tensor.view(-1).tensor_split(dist.get_world_size())))


def straight_to_the_owners(tensor):
    """In two steps, and with as few bytes: but each rank talks to all others."""
    rank, n = dist.get_rank(), dist.get_world_size()
    chunks, others = tensor.view(-1).tensor_split(n), [other for other in range(n) if other != rank]
    scatter_without_a_ring(chunks)
    _batch([(chunks[rank], other) for other in others], [(chunks[other], other) for other in others])


def tree(tensor):
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


def by_gloo(tensor):
    dist.all_reduce(tensor)


def at_distance_1(tensor):
    rank, distance = dist.get_rank(), 1
    while distance < dist.get_world_size():
        incoming = torch.empty_like(tensor)
        _exchange(tensor, incoming, rank ^ 1, rank ^ 1)
        tensor += incoming
        distance *= 2
