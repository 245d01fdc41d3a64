"""One row per collective: all that the ledger, the closed forms, the figures and the explanations know of it.

To add one, add a row to `_ROWS`: nothing else names them all. No torch is imported here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Collective", "COLLECTIVES", "of_kind", "by_function"]

Kind = Literal["sum", "copy", "send", "receive", "meeting"]
Factor = Callable[[int], float]  # of the number of ranks, n


@dataclass(frozen=True, kw_only=True)
class Collective:
    """What is known of one collective. S is the full tensor: what all_gather and gather produce, what
    reduce_scatter and scatter start from.

    Attributes:
        name: as torch.distributed spells it.
        kind: "sum" adds up what ranks bring, "copy" moves it as it is, "send" and "receive" are the ends of a
            message between two ranks, "meeting" carries no data.
        rooted: one rank sends to all, or receives from all, so that ranks differ in what they send.
        operators: torch's dispatcher calls one of these (`c10d::allreduce_`, say); for each, which of its
            arguments is the full tensor, as a tensor or as lists of tensors. None: it has none.
        parts: of operators that send each rank a part of another size: which of its arguments tells these
            sizes, as one tensor for each rank, or as the number of rows for each (none: all are equal). A
            rank keeps its own part.
        functions: of torch.distributed, in which a rank may be seen to wait.
        sent: bytes that one rank sends, over S, by the textbook; the mean over ranks where they differ.
        busbw: what S/t is multiplied with, so that different n can be compared. None: no data, no bandwidth.
        ring_steps: messages that a rank sends one after the other around a ring. None: it is no ring.
        tree_ways: how often it goes along a tree, up with sums or down with copies. None: it is no tree.
        gloo: what gloo runs for it, in the words of its own record: another collective, once for each tensor
            of a list, where gloo has none of this kind.
        gloo_sent: bytes that one rank sends as gloo runs it, of S and n; the mean over ranks. None: as many
            as the textbook's, of what gloo runs for it.
        part_of_full: the argument is one rank's part of S, and S is n of them.
        recorded_bare: gloo's record of it lacks the tensor, on some ranks.
        sizes_may_differ: ranks may bring tensors of different sizes.
        color: in every figure.
    """

    name: str
    kind: Kind
    rooted: bool = False
    operators: Mapping[str, int | None]
    parts: Mapping[str, int] = field(default_factory=dict)
    functions: tuple[str, ...]
    sent: Factor
    busbw: Factor | None
    ring_steps: Factor | None = None
    tree_ways: int | None = None
    gloo: str
    gloo_sent: Callable[[float, int], float] | None = None
    part_of_full: bool = False
    recorded_bare: bool = False
    sizes_may_differ: bool = False
    color: str


def of_kind(*kinds: Kind) -> set[str]:
    """Names of the collectives of these kinds."""
    return {row.name for row in COLLECTIVES.values() if row.kind in kinds}


def by_function(name: str) -> Collective | None:
    """The collective that a function of torch.distributed carries out; None if it is none of them."""
    return next((row for row in COLLECTIVES.values() if name in row.functions), None)


def _gloo_reduce_bytes(payload_bytes: float, group_size: int) -> float:
    """A ring reduce-scatter, then rank 0 gathers the chunks. Each rank has a chunk of so many segments, at
    least two. In the ring, a rank sends all segments but the last two of its own chunk.

    Source: gloo's reduce.cc.
    """
    if group_size == 1 or not payload_bytes:
        return 0.0
    segment = min(payload_bytes / (2 * group_size), 2**20)
    per_rank = math.ceil(payload_bytes / segment / group_size)
    ends = [min((rank + 1) * per_rank * segment, payload_bytes) for rank in range(group_size)]
    held_back = [max(end - ((rank + 1) * per_rank - 2) * segment, 0) for rank, end in enumerate(ends)]
    ring, gather = group_size * payload_bytes - sum(held_back), payload_bytes - ends[0]
    return (ring + gather) / group_size


# In the order in which figures stack them. torch promises the functions, and not the operators that they call
# (`c10d::...`, and where their tensor stands). Seen: 2.11 to 2.14. Gone: the calls are not in the ledger, and
# tests of every collective's bytes fail.
_ROWS = (
    Collective(
        name="all_reduce",
        kind="sum",
        operators={"allreduce_": 0, "allreduce_coalesced_": 0},
        functions=("all_reduce",),
        sent=lambda n: 2 * (n - 1) / n,  # reduce-scatter, then all-gather
        busbw=lambda n: 2 * (n - 1) / n,
        ring_steps=lambda n: 2 * (n - 1),
        tree_ways=2,
        gloo="all_reduce",
        color="#D55E00",
    ),
    Collective(
        name="reduce_scatter",
        kind="sum",
        operators={"reduce_scatter_": 1, "_reduce_scatter_base_": 1, "reduce_scatter_tensor_coalesced_": 1},
        functions=("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single"),
        sent=lambda n: (n - 1) / n,
        busbw=lambda n: (n - 1) / n,
        ring_steps=lambda n: n - 1,
        gloo="all_reduce",  # of which a rank keeps one chunk
        color="#E69F00",
    ),
    Collective(
        name="all_gather",
        kind="copy",
        operators={
            "allgather_": 0,
            "_allgather_base_": 0,
            "allgather_coalesced_": 0,
            "allgather_into_tensor_coalesced_": 0,
        },
        functions=("all_gather", "all_gather_into_tensor", "all_gather_single", "all_gather_object"),
        sent=lambda n: (n - 1) / n,
        busbw=lambda n: (n - 1) / n,
        ring_steps=lambda n: n - 1,
        gloo="all_gather",
        color="#F0E442",
    ),
    Collective(
        name="all_to_all",
        kind="copy",
        operators={"alltoall_": 1, "alltoall_base_": 1},
        parts={"alltoall_": 1, "alltoall_base_": 4},
        functions=("all_to_all", "all_to_all_single"),
        sent=lambda n: (n - 1) / n,  # keeps 1/n of S for itself
        busbw=lambda n: (n - 1) / n,
        gloo="all_to_all",
        sizes_may_differ=True,
        color="#882255",
    ),
    Collective(
        name="broadcast",
        kind="copy",
        rooted=True,
        operators={"broadcast_": 0},
        functions=("broadcast", "broadcast_object_list"),
        sent=lambda n: (n - 1) / n,  # n-1 ranks receive S once: (n-1) S in all
        busbw=lambda n: 1,
        tree_ways=1,
        gloo="broadcast",
        color="#CC79A7",
    ),
    Collective(
        name="reduce",
        kind="sum",
        rooted=True,
        operators={"reduce_": 0},
        functions=("reduce",),
        sent=lambda n: (n - 1) / n,  # a broadcast, the other way round
        busbw=lambda n: 1,
        tree_ways=1,
        gloo="reduce",
        gloo_sent=_gloo_reduce_bytes,
        color="#AA4499",
    ),
    Collective(
        name="gather",
        kind="copy",
        rooted=True,
        operators={"gather_": 1},
        functions=("gather", "gather_object"),
        sent=lambda n: (n - 1) / n**2,  # n-1 ranks send S/n each: (n-1)/n S in all
        busbw=lambda n: (n - 1) / n,
        gloo="gather",
        part_of_full=True,
        sizes_may_differ=True,
        color="#999933",
    ),
    Collective(
        name="scatter",
        kind="copy",
        rooted=True,
        operators={"scatter_": 0},
        functions=("scatter", "scatter_object_list"),
        sent=lambda n: (n - 1) / n**2,
        busbw=lambda n: (n - 1) / n,
        gloo="scatter",
        part_of_full=True,
        recorded_bare=True,
        sizes_may_differ=True,
        color="#DDCC77",
    ),
    Collective(
        name="send",
        kind="send",
        operators={"send": 0},
        functions=("send", "send_object_list"),
        sent=lambda n: 1,
        busbw=lambda n: 1,
        gloo="send",
        color="#5B3A8C",
    ),
    Collective(
        name="recv",
        kind="receive",
        operators={"recv_": 0, "recv_any_source_": 0},
        functions=("recv", "recv_object_list"),
        sent=lambda n: 0,
        busbw=lambda n: 1,
        gloo="recv",
        color="#C9BEDD",
    ),
    Collective(
        name="barrier",
        kind="meeting",
        operators={"barrier": None},
        functions=("barrier",),
        sent=lambda n: 0,
        busbw=None,
        gloo="barrier",
        recorded_bare=True,
        sizes_may_differ=True,
        color="#000000",
    ),
)
COLLECTIVES = {row.name: row for row in _ROWS}
