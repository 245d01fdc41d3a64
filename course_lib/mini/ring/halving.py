"""The other all_reduce that is bandwidth optimal: partners at distances n/2, n/4, ..., 1, and back.

At each distance two partners exchange half of what they still sum up, and each goes on with its half. After
log2 n steps every rank has one chunk of the sum; the same exchanges backwards give all chunks to all. Each
rank sends 2 (n-1)/n S, as in a ring, but in 2 log2 n steps and not in 2 (n-1).

Source: Thakur and Gropp 2003, section 4, where it is Rabenseifner's algorithm.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import process_group, summable, takes
from course_lib.mini.ring.tensors import Group, flat_of, write_back

__all__ = ["halving_doubling_all_reduce"]


@takes(tensor=summable, group=process_group)
@torch.no_grad()
def halving_doubling_all_reduce(tensor: Tensor, group: Group = None) -> None:
    """Sum `tensor` over the ranks of a group, in place; every rank of the group must call this.

    Args:
        tensor: any shape and size, the same on every rank.
        group: the ranks that take part, 1, 2, 4, 8, ... of them; None for all.

    Errors: ValueError for another number of ranks.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if size & (size - 1):
        raise ValueError(f"{size} ranks: halving and doubling needs a power of two.")
    flat = flat_of(tensor, group)  # [numel]
    part, way, distance = flat, [], size // 2
    while distance:
        lower, upper = part.tensor_split(2)
        kept, given = (upper, lower) if rank & distance else (lower, upper)
        incoming = torch.empty_like(kept)
        _exchange(given, incoming, rank ^ distance, group)
        part = kept.add_(incoming)
        way.append((kept, given, rank ^ distance))
        distance //= 2
    for kept, given, partner in reversed(way):
        _exchange(kept, given, partner, group)
    write_back([flat], [tensor])


def _exchange(outgoing: Tensor, incoming: Tensor, partner: int, group: Group) -> None:
    """Send to a partner and receive from it, at once."""
    send = dist.P2POp(dist.isend, outgoing, group=group, group_peer=partner)
    receive = dist.P2POp(dist.irecv, incoming, group=group, group_peer=partner)
    for work in dist.batch_isend_irecv([send, receive]):
        work.wait()
