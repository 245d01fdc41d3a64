"""The ring: all_reduce, reduce_scatter and all_gather from nothing but sends and receives between neighbours.

The n ranks of a group stand in a circle, and the tensor of S bytes is cut into n chunks. At every step each rank sends one chunk to its
right neighbour while it receives another from its left one. So all links are busy at once, and no rank has more to carry than any other:

    reduce_scatter   n-1 steps   every rank ends up with the sum of one chunk        sends (n-1)/n S
    all_gather       n-1 steps   every rank passes on chunks until all have all      sends (n-1)/n S
    all_reduce       the first, then the second                                      sends 2 (n-1)/n S

Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3.
"""
import functools
import threading
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce", "reduce_scatter", "all_gather"]

Group = dist.ProcessGroup | None


@torch.no_grad()
def all_reduce(tensor: Tensor, group: Group = None) -> None:
    """Sum `tensor` over the ranks of a group, in place; every rank of the group must call this.

    Args:
        tensor: any shape and size, the same on every rank. It is cut as `torch.tensor_split` does: chunks differ by one element at most.
        group: the ranks that take part; None for all.
    """
    flat = tensor.contiguous().view(-1)                         # [numel]: the tensor's own memory, if it is contiguous
    chunks = flat.tensor_split(dist.get_world_size(group))      # n chunks of numel / n
    _sum_round(chunks, chunks[dist.get_rank(group)], group, in_place=True)
    _pass_round(chunks, group)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view_as(tensor))


@torch.no_grad()
def reduce_scatter(output: Tensor, input: Tensor | Sequence[Tensor], group: Group = None) -> None:
    """Sum `input` over the ranks and leave on each rank its own chunk of the sum; every rank of the group must call this.

    Args:
        output: gets chunk number `rank` of the sum. It may be that chunk of `input` itself.
        input: a tensor of n times as many elements as `output`, as for `dist.reduce_scatter_tensor`; or a list of one contiguous chunk per rank,
            as for `dist.reduce_scatter`, in which chunks may differ in size (but not between ranks). It is only read.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    chunks = _chunks(input, size, rank, output)
    result = output.contiguous().view(-1)
    _sum_round(chunks, result, group, in_place=False)
    if size == 1:
        result.copy_(chunks[0])
    if not output.is_contiguous():
        output.copy_(result.view_as(output))


@torch.no_grad()
def all_gather(output: Tensor | Sequence[Tensor], input: Tensor, group: Group = None) -> None:
    """Put the chunks of all ranks together on every rank; every rank of the group must call this.

    Args:
        output: a contiguous tensor of n times as many elements as `input`, as for `dist.all_gather_into_tensor`; or a list of one contiguous
            tensor per rank, as for `dist.all_gather`, which may differ in size.
        input: this rank's chunk. It may be its place in `output` itself.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match, or `output` is not contiguous.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if isinstance(output, Tensor) and not output.is_contiguous():
        raise ValueError("all_gather writes into output, which must be contiguous.")
    chunks = _chunks(output, size, rank, input)
    chunks[rank].copy_(input.reshape(-1))
    _pass_round(chunks, group)


def _sum_round(chunks: Sequence[Tensor], result: Tensor, group: Group, in_place: bool) -> None:
    """n-1 steps that leave the sum of all ranks' chunks[rank] in `result`; in_place: other chunks may be overwritten with partial sums.

    Chunk c sets out from rank c + 1. Every rank on its way adds its own part and sends the sum on, and rank c is the last.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    buffers = _buffers(max(chunk.numel() for chunk in chunks), result.dtype, result.device, threading.get_ident())      # [2, numel]
    outgoing, sends = chunks[rank - 1], []
    for step in range(1, size):
        own = chunks[(rank - 1 - step) % size]
        incoming = buffers[0 if in_place else step % 2][: own.numel()]
        received, *sent = _exchange(outgoing, incoming, rank, size, group)
        received.wait()
        outgoing = torch.add(incoming, own, out=result if step == size - 1 else own if in_place else incoming)
        sends += sent                     # nobody waits for these before it must: a slow neighbour need not hold up this rank
        if not in_place:                  # the next step receives into the buffer that is being sent
            _wait(sends)
    _wait(sends)


def _pass_round(chunks: Sequence[Tensor], group: Group) -> None:
    """n-1 steps, after which every rank has all chunks: each sends its own first, and then always what came last."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sends = []
    for step in range(size - 1):
        received, *sent = _exchange(chunks[(rank - step) % size], chunks[(rank - step - 1) % size], rank, size, group)
        received.wait()
        sends += sent
    _wait(sends)


def _exchange(outgoing: Tensor, incoming: Tensor, rank: int, size: int, group: Group) -> list[dist.Work]:
    """Begin to receive from the left neighbour and to send to the right one; returns what to wait for, the receive first."""
    return dist.batch_isend_irecv([       # one batch, so that NCCL runs both at once (and makes one work of them)
        dist.P2POp(dist.irecv, incoming, group=group, group_peer=(rank - 1) % size),
        dist.P2POp(dist.isend, outgoing, group=group, group_peer=(rank + 1) % size)])


def _wait(works: list[dist.Work]) -> None:
    while works:
        works.pop(0).wait()               # once each: gloo would take a second wait for another message


def _chunks(full: Tensor | Sequence[Tensor], size: int, rank: int, part: Tensor) -> list[Tensor]:
    """The n flat chunks of a full tensor or list, after a look at whether `part` fits chunk number `rank`."""
    if isinstance(full, Tensor):
        if full.numel() != size * part.numel():
            raise ValueError(f"the full tensor has {full.numel()} elements; it must have {size} (ranks) times {part.numel()}.")
        chunks = list(full.contiguous().view(size, part.numel()))
    else:
        if len(full) != size or not all(chunk.is_contiguous() for chunk in full):
            raise ValueError(f"the list must have one contiguous chunk for each of {size} ranks.")
        chunks = [chunk.view(-1) for chunk in full]
        if chunks[rank].numel() != part.numel():
            raise ValueError(f"chunk {rank} of the list has {chunks[rank].numel()} elements, and this rank's own tensor {part.numel()}.")
    if dtypes := {chunk.dtype for chunk in chunks} - {part.dtype}:
        raise ValueError(f"all tensors must have one dtype, not {part.dtype} and {', '.join(map(str, dtypes))}.")
    return chunks


@functools.lru_cache(maxsize=2)
def _buffers(numel: int, dtype: torch.dtype, device: torch.device, thread: int) -> Tensor:
    """Two buffers [2, numel], kept for the next call: fresh memory from the operating system costs as much time as the adding."""
    return torch.empty(2, numel, dtype=dtype, device=device)
