"""The star between processes: a sum that goes through one root.

The root receives the tensor of every other rank, adds it to its own, and sends the sum to each. It moves
(n-1) S bytes each way, every other rank S: the more ranks, the more the root has to do, and the others wait
for it. (The ring, in `mini.ring`, is the way out.)

Source: Li et al. 2020, "PyTorch Distributed", section 2.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import dense, process_group, summable, takes, whole

__all__ = ["star_all_reduce", "star_reduce", "star_broadcast"]


def star_all_reduce(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Sum `tensor` over the ranks in place, through one root; every rank of the group must call this.

    The root receives (n-1) S bytes and sends as many; every other rank sends S and receives S.

    Args:
        root: a rank of the group, counted within the group.
    """
    star_reduce(tensor, root, group)
    star_broadcast(tensor, root, group)


@takes(tensor=summable, group=process_group)
@torch.no_grad()
def star_reduce(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Sum `tensor` over the ranks into the root's; every rank of the group must call this. The others send
    their whole tensor, the root adds them up.
    """
    others = _others(root, group)
    if dist.get_rank(group) != root:
        dist.send(tensor.contiguous(), group=group, group_dst=root)
        return
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for other in others:
        dist.recv(received, group=group, group_src=other)
        tensor += received


@takes(tensor=dense, group=process_group)
@torch.no_grad()
def star_broadcast(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the root's `tensor`; every rank of the group must call this. The root sends it whole to
    one rank after the other.
    """
    others = _others(root, group)
    flat = tensor.contiguous()  # itself, or, of a view such as x[:, 0], a copy
    if dist.get_rank(group) != root:
        dist.recv(flat, group=group, group_src=root)
        tensor.copy_(flat)
        return
    for other in others:
        dist.send(flat, group=group, group_dst=other)


def _others(root: int, group: dist.ProcessGroup | None) -> list[int]:
    """The ranks of the group but the root. Errors: ValueError if it has no such rank."""
    size = dist.get_world_size(group)
    whole("root", root, least=0, most=size - 1)
    return [rank for rank in range(size) if rank != root]
