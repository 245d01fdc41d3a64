"""The ring: all_reduce, reduce_scatter and all_gather from nothing but sends and receives between neighbours.

The n ranks of a group stand in a circle, and the tensor of S bytes is cut into n chunks. At every step each rank sends one chunk to its
right neighbour while it receives another from its left one. So all links are busy at once, and no rank has more to carry than any other:

    reduce_scatter   n-1 steps   every rank ends up with the sum of one chunk        sends (n-1)/n S
    all_gather       n-1 steps   every rank passes on chunks until all have all      sends (n-1)/n S
    all_reduce       the first, then the second                                      sends 2 (n-1)/n S

Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3.
"""
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
        tensor: any shape and size, the same on every rank. It is cut as `torch.tensor_split` does, so chunks differ by one element at most.
        group: the ranks that take part; None for all.
    """
    flat = tensor.contiguous().view(-1)                         # [numel]; the tensor's own memory if it is contiguous
    chunks = flat.tensor_split(dist.get_world_size(group))      # n chunks of numel / n
    reduce_scatter(chunks[dist.get_rank(group)], chunks, group)
    all_gather(chunks, chunks[dist.get_rank(group)], group)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view_as(tensor))


@torch.no_grad()
def reduce_scatter(output: Tensor, input: Tensor | Sequence[Tensor], group: Group = None) -> None:
    """Sum `input` over the ranks and leave on each rank its own chunk of the sum; every rank of the group must call this.

    Args:
        output: gets chunk number `rank` of the sum. It may be that chunk of `input` itself.
        input: a tensor of n times as many elements as `output`, as for `dist.reduce_scatter_tensor`; or one chunk per rank, of any sizes that
            are the same on every rank (contiguous), as for `dist.reduce_scatter`. It is only read.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    chunks = _chunks(input, size, rank, output)
    result = output if output.is_contiguous() else torch.empty_like(output, memory_format=torch.contiguous_format)
    largest = max(chunk.numel() for chunk in chunks)
    buffers = [chunks[0].new_empty(largest) for _ in range(2)]  # one is sent on while the other is filled
    # Chunk c sets out from rank c + 1 and goes round: every rank adds its own part and passes it on, and rank c adds the last.
    outgoing = chunks[rank - 1]
    for step in range(1, size):
        own = chunks[(rank - 1 - step) % size]
        incoming = buffers[step % 2][: own.numel()]
        _exchange(outgoing, incoming, group)
        last = step == size - 1
        outgoing = torch.add(incoming, own, out=result.view(-1) if last else incoming)
    if size == 1:
        result.view(-1).copy_(chunks[0])
    if result is not output:
        output.copy_(result)


@torch.no_grad()
def all_gather(output: Tensor | Sequence[Tensor], input: Tensor, group: Group = None) -> None:
    """Put the chunks of all ranks together on every rank; every rank of the group must call this.

    Args:
        output: a contiguous tensor of n times as many elements as `input`, as for `dist.all_gather_into_tensor`; or one tensor per rank, of any
            sizes that are the same on every rank (contiguous), as for `dist.all_gather`.
        input: this rank's chunk. It may be its place in `output` itself.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match, or `output` is not contiguous.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if isinstance(output, Tensor) and not output.is_contiguous():
        raise ValueError("all_gather writes into output, which must be contiguous.")
    chunks = _chunks(output, size, rank, input)
    chunks[rank].copy_(input.reshape(-1))
    for step in range(size - 1):          # pass on what came last; first of all one's own
        _exchange(chunks[(rank - step) % size], chunks[(rank - step - 1) % size], group)


def _chunks(full: Tensor | Sequence[Tensor], size: int, rank: int, part: Tensor) -> list[Tensor]:
    """The n flat chunks of a full tensor or list, after a look at whether `part` fits chunk number `rank`."""
    if isinstance(full, Tensor):
        if full.numel() != size * part.numel():
            raise ValueError(f"the full tensor has {full.numel()} elements, and it must have {size} (ranks) times {part.numel()}.")
        chunks = list(full.contiguous().view(size, -1) if full.numel() else full.new_empty(size, 0))
    else:
        if len(full) != size:
            raise ValueError(f"the list has {len(full)} chunks, and it must have one for each of {size} ranks.")
        if not all(chunk.is_contiguous() for chunk in full):
            raise ValueError("the chunks in the list must be contiguous.")
        chunks = [chunk.view(-1) for chunk in full]
        if chunks[rank].numel() != part.numel():
            raise ValueError(f"chunk {rank} has {chunks[rank].numel()} elements, and this rank's own tensor {part.numel()}.")
    if any(chunk.dtype != part.dtype for chunk in chunks):
        raise ValueError(f"all tensors must have one dtype, not {part.dtype} and {', '.join({str(chunk.dtype) for chunk in chunks})}.")
    return chunks


def _exchange(outgoing: Tensor, incoming: Tensor, group: Group) -> None:
    """Send one flat tensor to the right neighbour and receive another from the left one, at the same time."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    calls = []
    if outgoing.numel():                  # both neighbours know the sizes: nothing is sent for an empty chunk
        calls.append(dist.P2POp(dist.isend, outgoing, group=group, group_peer=(rank + 1) % size))
    if incoming.numel():
        calls.append(dist.P2POp(dist.irecv, incoming, group=group, group_peer=(rank - 1) % size))
    for work in dist.batch_isend_irecv(calls) if calls else []:
        work.wait()
