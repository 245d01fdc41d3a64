"""The ring: all_reduce, reduce_scatter and all_gather from nothing but sends and receives between neighbours.

The n ranks of a group stand in a circle, and the tensor of S bytes is cut into n chunks. At every step each
rank sends one chunk to its right neighbour while it receives another from its left one. So all links are busy
at once, and no rank has more to carry than any other:

    reduce_scatter   n-1 steps   every rank ends up with the sum of one chunk        sends (n-1)/n S
    all_gather       n-1 steps   every rank passes on chunks until all have all      sends (n-1)/n S
    all_reduce       the first, then the second                                      sends 2 (n-1)/n S

Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
    section 3.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib import torch_internals
from course_lib.arguments import dense, process_group

__all__ = ["all_reduce", "reduce_scatter", "all_gather"]

# a chunk so large is cut in two: while one half travels, the other is added up
TWO_PIECES_FROM_BYTES = 2**20
Group = dist.ProcessGroup | None


@torch.no_grad()
def all_reduce(tensor: Tensor, group: Group = None) -> None:
    """Sum `tensor` over the ranks of a group, in place; every rank of the group must call this.

    Args:
        tensor: any shape and size, the same on every rank. It is cut as `torch.tensor_split` does: chunks
            differ by one element at most.
        group: the ranks that take part; None for all.
    """
    dense("tensor", tensor, added=True), process_group("group", group)
    flat = _flat(tensor, group)  # [numel]
    chunks = flat.tensor_split(dist.get_world_size(group))  # n chunks of numel / n
    _sum_round(chunks, chunks[dist.get_rank(group)], group, in_place=True)
    _pass_round(chunks, group)
    _write_back([flat], [tensor])


@torch.no_grad()
def reduce_scatter(output: Tensor, input: Tensor | Sequence[Tensor], group: Group = None) -> None:
    """Sum `input` over the ranks and leave on each rank its own chunk of the sum; every rank of the group
    must call this.

    Args:
        output: gets chunk number `rank` of the sum. It may be that chunk of `input` itself.
        input: a tensor of n times as many elements as `output`, as for `dist.reduce_scatter_tensor`; or a
            list of one chunk per rank, as for
            `dist.reduce_scatter`, in which chunks may differ in size (but not between ranks). It is only
            read.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    dense("output", output, added=True), process_group("group", group)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    _, chunks = _chunks(input, output, group)
    result = _flat(output, group)
    _sum_round(chunks, result, group, in_place=False)
    if size == 1:
        result.copy_(chunks[rank])
    _write_back([result], [output])


@torch.no_grad()
def all_gather(output: Tensor | Sequence[Tensor], input: Tensor, group: Group = None) -> None:
    """Put the chunks of all ranks together on every rank; every rank of the group must call this.

    Args:
        output: a tensor of n times as many elements as `input`, as for `dist.all_gather_into_tensor`; or a
            list of one tensor per rank, as for
            `dist.all_gather`, which may differ in size.
        input: this rank's chunk. It may be its place in `output` itself.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    dense("input", input), process_group("group", group)
    flats, chunks = _chunks(output, input, group)
    chunks[dist.get_rank(group)].copy_(input.reshape(-1))
    _pass_round(chunks, group)
    _write_back(flats, [output] if isinstance(output, Tensor) else output)


def _sum_round(chunks: Sequence[Tensor], result: Tensor, group: Group, in_place: bool) -> None:
    """n-1 steps that leave the sum of all ranks' chunks[rank] in `result`; in_place: other chunks may be
    overwritten with partial sums.

    Chunk c sets out from rank c + 1. Every rank on its way adds its own part and sends the sum on, and rank c
    is the last.
    """
    rank, size, pieces = dist.get_rank(group), dist.get_world_size(group), _pieces(chunks)
    # the first is sent, the others are added to what comes
    order = [chunks[(rank - 1 - step) % size] for step in range(size)]
    own = _cut(order[1:], pieces)
    largest = max(map(Tensor.numel, _cut(chunks, pieces)))
    # else: what has come must stay until it is sent on
    rooms = [result.new_empty(pieces, largest) for _ in range(1 if in_place else 2)]
    arriving = [rooms[m // pieces % len(rooms)][m % pieces, : piece.numel()] for m, piece in enumerate(own)]
    sums = (own if in_place else arriving)[:-pieces] + _cut([result], pieces)
    for m in _relay(_cut(order[:1], pieces) + sums, arriving, pieces, group):
        torch.add(arriving[m], own[m], out=sums[m])


def _pass_round(chunks: Sequence[Tensor], group: Group) -> None:
    """n-1 steps, after which every rank has all chunks: each sends its own first, and then always what came
    last.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    pieces = _pieces(chunks)
    order = _cut([chunks[(rank - step) % size] for step in range(size)], pieces)
    for _ in _relay(order, order[pieces:], pieces, group):
        pass


def _relay(
    outgoing: Sequence[Tensor], incoming: Sequence[Tensor], window: int, group: Group
) -> Iterator[int]:
    """Send outgoing[m] to the right neighbour and receive incoming[m] from the left one, m = 0, 1, ...; yield
    m when that has come.

    `window` messages are on their way at once. Message m + window sets out when the caller has seen to
    incoming[m]: it may be made of it.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    works = [
        _exchange(outgoing[m], incoming[m], rank, size, group) for m in range(min(window, len(incoming)))
    ]
    for m in range(len(incoming)):
        received, *sent = works[m]
        received.wait()
        yield m
        for work in sent:  # its memory may now be received into
            work.wait()
        if m + window < len(incoming):
            works.append(_exchange(outgoing[m + window], incoming[m + window], rank, size, group))


def _exchange(outgoing: Tensor, incoming: Tensor, rank: int, size: int, group: Group) -> list[dist.Work]:
    """Begin to receive from the left neighbour and to send to the right one; returns what to wait for (once
    each), the receive first.
    """
    left, right = (rank - 1) % size, (rank + 1) % size
    # NCCL runs calls one after the other, unless they are a batch; it makes one work of it
    if incoming.is_cuda:
        return dist.batch_isend_irecv(
            [
                dist.P2POp(dist.irecv, incoming, group=group, group_peer=left),
                dist.P2POp(dist.isend, outgoing, group=group, group_peer=right),
            ]
        )
    return [
        dist.irecv(incoming, group=group, group_src=left),
        dist.isend(outgoing, group=group, group_dst=right),
    ]


def _pieces(chunks: Sequence[Tensor]) -> int:
    return 2 if max(chunk.nbytes for chunk in chunks) >= TWO_PIECES_FROM_BYTES else 1


def _cut(chunks: Sequence[Tensor], pieces: int) -> list[Tensor]:
    return [piece for chunk in chunks for piece in chunk.tensor_split(pieces)]


def _chunks(full: Tensor | Sequence[Tensor], part: Tensor, group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """A full tensor or list, flat, and its n chunks, after a look at whether `part` fits chunk number
    `rank`.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if isinstance(full, Tensor):
        if full.numel() != size * part.numel():
            raise ValueError(
                f"the full tensor has {full.numel()} elements; it must have {size} (ranks) times"
                f" {part.numel()}."
            )
        flats = [_flat(dense("the full tensor", full), group)]
        chunks = list(flats[0].view(size, part.numel()))
    else:
        if (
            not isinstance(full, Sequence)
            or len(full) != size
            or not all(isinstance(chunk, Tensor) for chunk in full)
            or full[rank].numel() != part.numel()
        ):
            raise ValueError(
                f"the list must have {size} chunks, one for each rank, and number {rank} must have"
                f" {part.numel()} elements."
            )
        flats = chunks = [_flat(dense("each of the list", chunk), group) for chunk in full]
    if dtypes := {chunk.dtype for chunk in chunks} - {part.dtype}:
        raise ValueError(
            f"all tensors must have one dtype, not {part.dtype} and {', '.join(map(str, dtypes))}."
        )
    return flats, chunks


def _flat(tensor: Tensor, group: Group) -> Tensor:
    """The tensor as [numel] in memory that can be sent: its own if it is contiguous, else a copy. (gloo sends
    from the CPU's memory only.)
    """
    if tensor.is_cuda and not torch_internals.uses_nccl(group):
        tensor = tensor.cpu()
    return tensor.contiguous().view(-1)


def _write_back(flats: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    for flat, tensor in zip(flats, tensors):
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view_as(tensor))
