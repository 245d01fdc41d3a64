"""What if the ranks were put on a mesh: who talks to whom, and the bytes along each axis."""

import functools
import math
from collections.abc import Iterator
from itertools import product

import pandas as pd
from matplotlib.axes import Axes

from course_lib import theory
from course_lib.explore.panel import Explorer
from course_lib.mini import hybrid
from course_lib.plan import H100, Model, Plan, cost, transformer
from course_lib.plots import pictures
from course_lib.plots.units import Unit

__all__ = ["mesh"]

DP, TP = (1, 2), (1, 2, 4)  # more ranks could not be read
ALSO = {"no other axis": ("", 1)} | {
    f"{axis} {size}": (axis, size) for axis, size in product(("pp", "cp", "ep"), (2, 4))
}
DENSE = theory.published("llama3_405b")["rows"][0]  # what the bytes are counted for,
EXPERTS = theory.published("mixtures")["rows"][0]  # and with an axis of experts
KV_HEADS, HEAD_DIM = 8, 128  # of Llama 3 405B (the same paper, table 3)
TOKENS, ELEMENT_BYTES = 8192, 2  # of one sequence, of bf16


def mesh() -> Explorer:
    """A mesh of up to 32 ranks, and what a rank would send along each axis for one sequence of 8,192 tokens
    in bf16: of Llama 3 405B, or, where an axis deals out experts, of Mixtral 8x7B.
    """

    def draw(dp, also, tp) -> tuple[Axes, pd.DataFrame]:
        axis, size = also
        copies = "edp" if axis == "ep" else "dp"
        sizes = {name: n for name, n in ((copies, dp), (axis, size), ("tp", tp)) if n > 1} or {copies: 1}
        places = [hybrid.coordinates(rank, sizes) for rank in range(math.prod(sizes.values()))]
        groups = {name: hybrid.axis_groups(name, sizes) for name in sizes}
        words = "ranks of one server stand beside each other" + f"; in a box: {', '.join(sizes)}" * (
            len(sizes) > 2
        )
        ax = pictures.mesh(" x ".join(f"{name} {n}" for name, n in sizes.items()), words, places, groups)
        rows, sends = {}, f"a rank of {EXPERTS['model'] if axis == 'ep' else 'Llama 3 405B'} sends, the mean"
        for what, over, nbytes in (_with_experts if axis == "ep" else _dense)(dp, axis, size, tp):
            over = [name for name in over if name in sizes]
            alike = [  # they differ from rank 0 along these axes alone
                rank
                for rank, place in enumerate(places)
                if not any(at for name, at in place.items() if name not in over)
            ]
            if over:
                rows[what] = {
                    "over": ", ".join(over),
                    "groups": len(places) // len(alike),
                    "rank 0 is with": ", ".join(map(str, alike[1:])) or "nobody",
                    sends: Unit.of(nbytes).text(nbytes),
                }
        return ax, pd.DataFrame(rows).T

    controls = {"dp": DP, "also": ALSO, "tp": TP}
    return Explorer("A mesh of ranks", controls, draw, dp=2, tp=2)


def _dense(dp: int, axis: str, size: int, tp: int) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """What travels, over which axes, and the bytes of one rank."""
    pp, cp = (size if axis == name else 1 for name in ("pp", "cp"))
    # ranks of a cp group have pieces of one sequence, and otherwise do what those of dp do
    sent = cost(Plan("DDP", dp * cp, tp, pp), _model(dp * cp, TOKENS // cp), H100).sent
    yield "gradients, once a step", ("dp", "cp"), sent["dp"]
    yield "activations, at each cut", ("pp",), sent["pp"]
    if cp > 1:
        heads = DENSE["hidden"] // HEAD_DIM // tp, KV_HEADS // tp, HEAD_DIM
        each = theory.context_bytes("all_gather", 1, TOKENS, *heads, cp, ELEMENT_BYTES)
        yield "keys and values, in every layer", ("cp",), DENSE["layers"] * each
    yield "activations, in every layer", ("tp",), sent["tp"]


def _with_experts(dp: int, axis: str, size: int, tp: int) -> Iterator[tuple[str, tuple[str, ...], float]]:
    layers, hidden, top_k = (EXPERTS[name] for name in ("moe_layers", "hidden", "top_k"))
    of_layer = theory.expert_numel(hidden, EXPERTS["intermediate"], EXPERTS["num_experts"], top_k)["total"]
    experts, whole = layers * of_layer, EXPERTS["total"] * 1e9

    def summed(numel: float, ranks: int) -> float:
        return theory.collective_bytes("all_reduce", numel / tp * ELEMENT_BYTES, ranks)

    yield "gradients of experts, once a step", ("edp",), summed(experts / size, dp)
    yield "other gradients, once a step", ("edp", "ep"), summed(whole - experts, dp * size)
    there_and_back = theory.expert_parallel_bytes(TOKENS, hidden, top_k, size, ELEMENT_BYTES)
    yield "tokens, in every layer", ("ep",), layers * there_and_back
    in_layer = theory.tensor_parallel_bytes(1, TOKENS, hidden, tp, ELEMENT_BYTES)
    yield "activations, in every layer", ("tp",), layers * in_layer


@functools.cache
def _model(sequences: int, tokens: int) -> Model:
    """`transformer` adds a place's embedding for each token: then all parameters are as many as published."""
    layers, hidden = DENSE["layers"], DENSE["hidden"]
    numel = round(DENSE["model"] * 1e9 / layers) - tokens * hidden // layers
    return transformer(layers, hidden, tokens, sequences, vocab=0, block_numel=numel, flash=True)
