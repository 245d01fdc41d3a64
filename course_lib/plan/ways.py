"""What each way to train does, as data. The names are those of course_lib.demo, and two for clusters."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Way", "WAYS", "DEMO_MICROBATCHES"]

DEMO_MICROBATCHES = 8


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        stage: what is cut over the shards: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too.
        calls: collectives along dp, (op, how many times the parameters): once in a step; or, what gathers and
            reduces parameters and gradients that are cut, for each micro-batch.
        per_layer: they are called layer by layer.
        buckets: of gradients, which are closed when they hold so many MiB: the first, the others.
        dealt: how shards are made: "flat" equal pieces of each unit, "rows" of each tensor, "tensors" whole.
        ring: on the course's own ring, which sends what the textbook says.
        hides: the part of computing under which its messages may travel: backward 2/3, all 1, nothing 0.
        flat_grads: copies of all gradients that live beside them, in buckets.
        grads_stay: gradients live in buckets, which are never given back.
        layers_whole: of stage 3: how many layers' parameters are whole at once; 0: all, from forward on.
        mesh: (ranks) -> sizes of a Plan's axes; None where it cannot be.
        why: it is good for, in a few words.
    """

    stage: int = 0
    calls: tuple[tuple[str, float], ...] = ()
    per_layer: bool = False
    buckets: tuple[float, float] | None = None
    dealt: str = "flat"
    ring: bool = False
    hides: float = 0.0
    flat_grads: int = 0
    grads_stay: bool = False
    layers_whole: int = 1
    mesh: Callable[[int], dict | None] = lambda ranks: {"dp": ranks}
    why: str = ""


def _pairs(**axes) -> Callable[[int], dict | None]:
    """A mesh of pairs of ranks; dp, unless given, has the pairs (0: all ranks)."""
    dp = axes.pop("dp", 2)
    return lambda n: {"dp": n // dp if dp else n, **axes} if n >= 4 and n % 2 == 0 else None


_REDUCE, _GATHER, _ALL = "reduce_scatter", "all_gather", "all_reduce"
_OF_TORCH = (1, 25)  # DistributedDataParallel's buckets
_PIPE = {"microbatches": DEMO_MICROBATCHES}
_SHARD = {"per_layer": True, "dealt": "rows", "hides": 1.0}
WAYS = {
    "one process": Way(mesh=lambda ranks: {"dp": 1} if ranks == 1 else None, why="nothing travels"),
    "DDP": Way(calls=((_ALL, 1),), buckets=_OF_TORCH, hides=2 / 3, flat_grads=1, why="one sum of gradients"),
    "mini DDP": Way(
        calls=((_ALL, 1),), buckets=(25, 25), ring=True, grads_stay=True, why="one sum of gradients"
    ),
    "ZeroRedundancyOptimizer": Way(
        1,
        ((_ALL, 1), ("broadcast", 1)),
        buckets=_OF_TORCH,
        dealt="tensors",
        flat_grads=1,
        hides=1 / 3,
        why="states are cut",
    ),
    "mini ZeRO-1": Way(1, ((_REDUCE, 1), (_GATHER, 1)), ring=True, why="states are cut"),
    "mini ZeRO-2": Way(2, ((_REDUCE, 1), (_GATHER, 1)), per_layer=True, ring=True, why="gradients are cut"),
    "mini ZeRO-3": Way(3, ((_GATHER, 2), (_REDUCE, 1)), per_layer=True, ring=True, why="all is cut"),
    "fully_shard, no reshard": Way(3, ((_GATHER, 1), (_REDUCE, 1)), layers_whole=0, **_SHARD),
    "fully_shard": Way(3, ((_GATHER, 2), (_REDUCE, 1)), layers_whole=2, why="all is cut", **_SHARD),
    "pipeline, 1F1B": Way(
        mesh=lambda ranks: {"pp": ranks, **_PIPE} if 2 <= ranks <= 4 else None, why="little travels"
    ),
    "tensor parallel": Way(mesh=lambda ranks: {"tp": ranks} if ranks > 1 else None, why="layers are cut"),
    "data x tensor": Way(calls=((_ALL, 1),), grads_stay=True, mesh=_pairs(tp=2)),
    "data x pipeline": Way(calls=((_ALL, 1),), grads_stay=True, mesh=_pairs(pp=2, **_PIPE)),
    "hybrid sharding": Way(
        3, ((_GATHER, 2), (_REDUCE, 1)), layers_whole=2, mesh=_pairs(dp=0, shards=2), **_SHARD
    ),
    "ZeRO-1": Way(1, ((_REDUCE, 1), (_GATHER, 1)), hides=2 / 3, mesh=lambda ranks: None),
    "ZeRO-3": Way(3, ((_GATHER, 2), (_REDUCE, 1)), True, hides=1.0, mesh=lambda ranks: None),
}
