"""The ring: all_reduce, reduce_scatter and all_gather from nothing but sends and receives between neighbours.

The n ranks of a group stand in a circle, and the tensor of S bytes is cut into n chunks. At every step each
rank sends one chunk to its right neighbour and gets one from its left: all links work, all ranks carry alike:

    reduce_scatter   n-1 steps   every rank ends up with the sum of one chunk        sends (n-1)/n S
    all_gather       n-1 steps   every rank passes on chunks until all have all      sends (n-1)/n S
    all_reduce       the first, then the second                                      sends 2 (n-1)/n S

Beside: `halves` (speed), `tensors` (layouts), `watched` (step by step), `halving` (fewer steps), `refusals`.
Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import dense, process_group, summable, takes
from course_lib.mini.ring.halves import go_round
from course_lib.mini.ring.tensors import Group, chunks_of, flat_of, write_back

__all__ = ["all_reduce", "reduce_scatter", "all_gather"]


@takes(tensor=summable, group=process_group)
@torch.no_grad()
def all_reduce(tensor: Tensor, group: Group = None) -> None:
    """Sum `tensor` over the ranks of a group, in place; every rank of the group must call this.

    Args:
        tensor: any shape and size, the same on every rank. Chunks are those of `torch.tensor_split`.
        group: the ranks that take part; None for all.
    """
    flat = flat_of(tensor, group)  # [numel]
    chunks = flat.tensor_split(dist.get_world_size(group))  # n chunks of numel / n
    go_round(_sum_steps, [*chunks, chunks[dist.get_rank(group)]], group, overwrite=True)
    go_round(_pass_steps, chunks, group)
    write_back([flat], [tensor])


@takes(output=summable, group=process_group)
@torch.no_grad()
def reduce_scatter(output: Tensor, input: Tensor | Sequence[Tensor], group: Group = None) -> None:
    """Sum `input` over the ranks and leave its own chunk of the sum on each; every rank must call this.

    Args:
        output: gets chunk number `rank` of the sum. It may be that chunk of `input` itself.
        input: n times as many elements as `output`; or a list of one chunk per rank, whose sizes may differ
            (but not between ranks). It is only read.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    _, chunks = chunks_of(input, output, group)
    result = flat_of(output, group)
    if len(chunks) == 1:
        result.copy_(chunks[0])
    go_round(_sum_steps, [*chunks, result], group, overwrite=False)
    write_back([result], [output])


@takes(input=dense, group=process_group)
@torch.no_grad()
def all_gather(output: Tensor | Sequence[Tensor], input: Tensor, group: Group = None) -> None:
    """Put the chunks of all ranks together on every rank; every rank of the group must call this.

    Args:
        output: n times as many elements as `input`; or a list of one tensor per rank, whose sizes may differ.
        input: this rank's chunk. It may be its place in `output` itself.
        group: the ranks that take part; None for all.

    Errors: ValueError where sizes or dtypes do not match.
    """
    flats, chunks = chunks_of(output, input, group)
    chunks[dist.get_rank(group)].copy_(input.reshape(-1))
    go_round(_pass_steps, chunks, group)
    write_back(flats, [output] if isinstance(output, Tensor) else output)


def _sum_steps(parts: Sequence[Tensor], group: Group, overwrite: bool) -> Iterator[None]:
    """From n chunks on every rank to the sum of all ranks' chunks[rank], in the last of `parts`.

    Chunk c sets out from rank c + 1, every rank on its way adds its own part, and rank c is the last.
    overwrite: on the way, sums may stand in this rank's own chunks.
    """
    *chunks, result = parts
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    # what comes lies in a room. A sum leaves from there, so two take turns; or (overwrite) from an own chunk
    rooms = [torch.empty_like(max(chunks, key=len)) for _ in range(1 if overwrite else 2)]
    outgoing = chunks[(rank - 1) % size]
    for step in range(size - 1):
        own = chunks[(rank - 2 - step) % size]
        arriving = rooms[step % len(rooms)][: len(own)]
        received, *sent = _exchange(outgoing, arriving, group)
        yield  # while both travel, the other half of the chunks is at work (`halves`)
        received.wait()
        place = result if step == size - 2 else own if overwrite else arriving
        outgoing = torch.add(arriving, own, out=place)
        for work in sent:  # its memory may be received into from now on
            work.wait()


def _pass_steps(chunks: Sequence[Tensor], group: Group) -> Iterator[None]:
    """From chunks[rank] on every rank to all chunks on all: each sends its own, and then what came last."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for step in range(size - 1):
        works = _exchange(chunks[(rank - step) % size], chunks[(rank - step - 1) % size], group)
        yield
        for work in works:
            work.wait()


def _exchange(outgoing: Tensor, incoming: Tensor, group: Group) -> list[dist.Work]:
    """Begin to receive from the left neighbour and to send to the right one; returns what to wait for."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    receive = dist.P2POp(dist.irecv, incoming, group=group, group_peer=(rank - 1) % size)
    send = dist.P2POp(dist.isend, outgoing, group=group, group_peer=(rank + 1) % size)
    return dist.batch_isend_irecv([receive, send])  # as a batch: NCCL runs single calls one after the other
