"""Products in pieces: while one piece of the tokens is multiplied, the next one travels.

Under sequence parallelism a pair is entered by an all_gather, and left by a reduce_scatter. Both are rings of
n-1 messages, and each message can travel under a piece of the product. Let a piece need c to be multiplied
and w to travel:

                                 one after the other       in pieces
    gather, then multiply        (n-1) w + n c             c + (n-1) max(c, w)
    multiply, then scatter sums  n c + (n-1) w             c + (n-1) max(c, w)

For forward; a backward has the same two again, in turn. All ranks of the group must call them together.

Source: Wang et al. 2023, "Overlap communication with dependent computation via decomposition in large deep
    learning models".
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import function, process_group, takes
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel.operators import Group, share

__all__ = ["multiply_while_gathering", "multiply_while_scattering", "pass_right"]


@takes(mine=refuse.other_shapes, multiply=function, group=process_group)
def multiply_while_gathering(
    mine: Tensor, multiply: Callable[[Tensor], Tensor], group: Group = None
) -> Tensor:
    """f, and the product behind it: multiply all ranks' tokens, of which each rank has some.

    Args:
        mine: this rank's tokens [..., time / n, dim].
        multiply: by this rank's columns: [..., time / n, dim] to [..., time / n, features / n].

    Returns:
        [..., time, features / n] of all tokens.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    piece, products = mine, {}
    for step in range(size - 1):
        arrived = pass_right(piece, group)  # the next piece sets out ...
        products[(rank - step) % size] = multiply(piece)  # ... while this one is multiplied
        piece = arrived()
    products[(rank + 1) % size] = multiply(piece)
    return torch.cat([products[source] for source in range(size)], -2)


@takes(x=refuse.other_shapes, multiply=function, group=process_group)
def multiply_while_scattering(x: Tensor, multiply: Callable[[Tensor], Tensor], group: Group = None) -> Tensor:
    """The product before g, and g: multiply all tokens, and sum over the ranks for this rank's tokens.

    Args:
        x: this rank's features of all tokens [..., time, features / n].
        multiply: by this rank's rows: [..., time / n, features / n] to an addend [..., time / n, dim].

    Returns:
        The sum [..., time / n, dim] for this rank's tokens.

    Errors: ValueError if the tokens cannot be dealt out evenly.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    share(x.shape[-2], "tokens", group)
    pieces = x.chunk(size, -2)
    total = multiply(pieces[(rank - 1) % size])  # the sum that has the longest way to go
    for step in range(2, size + 1):
        arrived = pass_right(total, group)  # a sum sets out ...
        addend = multiply(pieces[(rank - step) % size])  # ... while the addend for the next one is made
        total = arrived() + addend
    return total


@takes(piece=refuse.other_shapes, group=process_group)
def pass_right(piece: Tensor, group: Group = None) -> Callable[[], Tensor]:
    """Begin to send a piece to the right neighbour and to receive one from the left. Return a function that
    waits for that one and returns it. Until then `piece` must stay as it is.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    piece = piece.detach().contiguous()
    arriving = torch.empty_like(piece)
    receive = dist.P2POp(dist.irecv, arriving, group=group, group_peer=(rank - 1) % size)
    send = dist.P2POp(dist.isend, piece, group=group, group_peer=(rank + 1) % size)
    works = dist.batch_isend_irecv([receive, send])

    def arrived() -> Tensor:
        for work in works:
            work.wait()
        return arriving

    return arrived
