"""What the books and papers say: closed forms for bytes, memory and time, each with its units and its source.

The letters are the same throughout: n ranks, S bytes of a full tensor, P bytes of all parameters, r =
(n-1)/n; in pipelines, p stages and m micro-batches. A rank that has nobody to talk to (n = 1) sends nothing.
Nothing is measured here, and nothing heavy is imported.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from course_lib.arguments import instance, listed, number, one_of, whole
from course_lib.collectives import COLLECTIVES

__all__ = [
    "collective_bytes",
    "gloo_bytes",
    "bandwidth",
    "ring_seconds",
    "all_reduce_path",
    "all_reduce_seconds",
    "tree_seconds",
    "host_bytes",
    "cable_load",
    "step_bytes",
    "compressed_bytes",
    "zero_memory",
    "adam_state_bytes",
    "fully_shard_local_numel",
    "bubble_fraction",
    "zero_bubble_fraction",
    "microbatches_in_flight",
    "messages_waited_for",
    "tensor_parallel_bytes",
    "activation_bytes",
    "context_bytes",
    "keys_held_bytes",
    "causal_pairs",
    "ring_efficiency",
    "expert_parallel_bytes",
    "expert_numel",
    "mtbf_seconds",
    "checkpoint_interval",
    "lost_steps",
    "goodput",
    "goodput_shares",
    "parameter_server_bytes",
    "mean_staleness",
    "most_staleness",
    "stale_rate_limit",
    "updates_per_second",
    "server_with_straggler",
    "server_round_seconds",
    "local_sgd_bytes",
    "waiting_fraction",
    "bucket_seconds",
    "overlapped_seconds",
    "hidden_fraction",
    "pass_flop",
    "amdahl",
    "gustafson",
    "karp_flatt",
    "speedup",
    "efficiency",
    "published",
]

PUBLISHED_FILE = Path(__file__).resolve().parents[1] / "data" / "published.json"

# Bytes sent in one training step, over r P.
_STEP = {
    "data_parallel": 2,  # one all_reduce of the gradients
    "zero_1": 2,  # reduce_scatter of gradients, all_gather of parameters
    "zero_2": 2,  # the same, gradient by gradient
    "zero_3": 3,  # all_gather of parameters for forward and again for backward, reduce_scatter of gradients
    # as zero_3, but gloo's reduce_scatter is an all_reduce (2 r) of which a rank keeps one chunk
    "fully_shard_gloo": 4,
    # DDP's all_reduce (2 r), then the owner of each parameter broadcasts it (r, as the mean over ranks)
    "zero_redundancy_optimizer": 3,
}
# Bytes per parameter: params, grads, optimizer_states.
_STATES = {
    "fp32": (4, 4, 8),  # Adam keeps two moments in fp32
    "mixed": (2, 2, 12),  # fp16 params and grads; an fp32 copy of the params and two moments
}


def collective_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """Bytes that one rank sends for one collective by the textbook (bandwidth-optimal) algorithm; the mean
    over ranks where they differ.

    Args:
        op: a name as torch.distributed spells it: "all_reduce", or another one in `collectives`.
        payload_bytes: S, the full tensor: what all_gather and gather produce, what reduce_scatter and scatter
            start from.
        group_size: ranks that take part.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3; Thakur and Gropp
        2003, section 4.
    """
    factor = one_of("op", op, COLLECTIVES).sent(whole("group_size", group_size))
    return float(number("payload_bytes", payload_bytes) * factor)


def gloo_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """Bytes that one rank sends for one collective as gloo runs it; the mean over ranks where they differ
    (broadcast, reduce, gather, scatter).

    As `collective_bytes`, but for two. reduce_scatter is an all_reduce, of which a rank keeps one chunk.
    reduce is a ring reduce-scatter, then rank 0 gathers the chunks: (n-1) S + r S over all ranks; and where
    S/n is above 2 MiB, its ring goes round for longer than it need, up to n S + r S.

    Source: gloo's reduce.cc; within 2% of what the operating system counts from 1 MB up
        (tests/measure/test_ledger.py, torch 2.13).
    """
    row = one_of("op", op, COLLECTIVES)
    if row.gloo_sent is None:
        return collective_bytes(row.gloo, payload_bytes, group_size)
    return row.gloo_sent(number("payload_bytes", payload_bytes), whole("group_size", group_size))


def bandwidth(op: str, payload_bytes: float, seconds: float, group_size: int) -> tuple[float, float]:
    """algbw and busbw in bytes per second: S/t, and S/t times a factor that makes numbers of ranks
    comparable.

    (Some tools report 2 S/t for an all_reduce; this is S/t.) Source: nccl-tests, doc/PERFORMANCE.md; gather
    and scatter from its sources.
    """
    factor = one_of("op", op, _known("busbw"))(whole("group_size", group_size))
    algbw = number("payload_bytes", payload_bytes) / number("seconds", seconds, above=True)
    return algbw, algbw * factor


def ring_seconds(
    op: str,
    payload_bytes: float,
    group_size: int,
    alpha_s: float,
    beta_s: float,
    gamma_s: float = 0.0,
    calls: float = 1,
) -> float:
    """Seconds for a ring all_reduce, reduce_scatter or all_gather: steps * alpha + bytes sent * beta + bytes
    added up * gamma.

    Args:
        alpha_s: seconds to start one message.
        beta_s: seconds per byte sent.
        gamma_s: seconds per byte that is added up.
        calls: the payload goes in so many collectives of one size, one after the other, as gradients do in
            buckets: each pays for all its messages.

    Source: Thakur and Gropp 2003, "Improving the performance of collective operations in MPICH", sections 3
        and 4.
    """
    steps = one_of("op", op, _known("ring_steps"))(whole("group_size", group_size))
    chunk_bytes = number("payload_bytes", payload_bytes) / group_size
    added_bytes = (group_size - 1) * chunk_bytes if COLLECTIVES[op].kind == "sum" else 0
    started_s = number("calls", calls, above=True) * number("alpha_s", alpha_s)
    sending_s = steps * (started_s + chunk_bytes * number("beta_s", beta_s))
    return sending_s + added_bytes * number("gamma_s", gamma_s)


def all_reduce_path(algorithm: str, group_size: int) -> tuple[int, float]:
    """The longest way through an all_reduce over links that each rank has to itself: messages one after the
    other, and what passes the busiest link, over S.

        star                2 (n-1)   2 (n-1)     all to one root, which sends the sum to all
        whole tensors       n-1       n-1         a ring that passes whole tensors on
        ring                2 (n-1)   2 (n-1)/n   a ring in chunks
        doubling            log2 n    log2 n      partners exchange whole tensors
        halving-doubling    2 log2 n  2 (n-1)/n   they exchange halves, quarters, ..., and all the way back

    Both kinds of doubling want a power of two.

    Source: Thakur and Gropp 2003, "Improving the performance of collective operations in MPICH", section 4;
        the star from the messages at its root, one after the other.
    """
    one_of("algorithm", algorithm, ("star", "whole tensors", "ring", "doubling", "halving-doubling"))
    n = whole("group_size", group_size)
    rounds = (n - 1).bit_length()
    if "doubling" in algorithm and 2**rounds != n:
        raise ValueError(f"group_size={n}: {algorithm} wants a power of two.")
    return {
        "star": (2 * (n - 1), 2.0 * (n - 1)),
        "whole tensors": (n - 1, float(n - 1)),
        "ring": (2 * (n - 1), 2 * (n - 1) / n),
        "doubling": (rounds, float(rounds)),
        "halving-doubling": (2 * rounds, 2 * (n - 1) / n),
    }[algorithm]


def all_reduce_seconds(
    algorithm: str, payload_bytes: float, group_size: int, alpha_s: float, beta_s: float
) -> float:
    """Seconds of an all_reduce by one of five algorithms: its messages * alpha + the bytes on its busiest
    link * beta. What is added up counts as free.

    Args:
        algorithm: a name in the table of `all_reduce_path`, whose source this is, too.
        alpha_s, beta_s: as for `ring_seconds`.
    """
    messages, share = all_reduce_path(algorithm, group_size)
    on_link_bytes = share * number("payload_bytes", payload_bytes)
    return messages * number("alpha_s", alpha_s) + on_link_bytes * number("beta_s", beta_s)


def tree_seconds(
    op: str, payload_bytes: float, group_size: int, alpha_s: float, beta_s: float, pieces: int = 1
) -> float:
    """Seconds for an all_reduce, a reduce or a broadcast over a binary tree: levels * (alpha + S beta), once
    down for a broadcast, once up for a reduce, both for an all_reduce; ceil(lg n) levels.

    Args:
        alpha_s, beta_s: as for `ring_seconds`.
        pieces: cut into so many, which follow each other, the tree takes (levels + pieces - 1) *
            (alpha + S / pieces beta) each way.

    What is added up counts as free, and so does that a rank sends to two others, or hears from two: double
    binary trees give every rank one such place, for half of S.

    Source: Thakur and Gropp 2003, section 4.2, for one piece; Sanders, Speck and Träff 2009, "Two-tree
        algorithms for full bandwidth broadcast, reduction and scan", section 3, for double trees, which NCCL
        has.
    """
    ways = one_of("op", op, _known("tree_ways"))
    levels, count = (whole("group_size", group_size) - 1).bit_length(), whole("pieces", pieces)
    piece_s = number("alpha_s", alpha_s) + number("payload_bytes", payload_bytes) / count * number(
        "beta_s", beta_s
    )
    return ways * (levels + count - 1) * piece_s if levels else 0.0


def host_bytes(payload_bytes: float, hosts: int, ranks_per_host: int, hosts_first: bool = False) -> float:
    """Bytes that leave each host for an all_reduce over all its ranks and those of other hosts.

    One ring over all n ranks, host after host: one rank of each host sends on to the next, 2 (n-1)/n S. With
    `hosts_first`, a sum inside each host comes first, and only sums travel on: 2 (h-1)/h S.

    Args:
        payload_bytes: S, the full tensor.
        hosts: h.

    Source: the ring of Patarasuk and Yuan 2009, section 3, over n ranks and over h hosts.
    """
    per_host = whole("ranks_per_host", ranks_per_host)
    parts = whole("hosts", hosts) * (1 if instance("hosts_first", hosts_first, bool) else per_host)
    return 0.0 if hosts == 1 else collective_bytes("all_reduce", payload_bytes, parts)


def cable_load(
    wiring: str,
    servers: int,
    messages: Sequence[tuple[int, int]],
    leaf: int = 8,
    oversubscribed: float = 1.0,
) -> float:
    """What the busiest cable carries of messages of one size, over what a server sends on average.

    Each message is routed, cable by cable; each cable carries both ways at once, each way by itself.

    Args:
        wiring: "switch": all servers hang on one, by a cable each. "fat tree": on leaf switches, `leaf` in a
            row on each, and leaves on spines, by leaf / oversubscribed cables that share the load evenly.
            "torus": in a square, row by row, with cables to four neighbours and around the ends; a message
            goes along its row, then along its column, the shorter way.
        messages: (from, to), servers from 0 on.

    Source: Al-Fares, Loukissas and Vahdat 2008, "A scalable, commodity data center network architecture",
        section 2, for fat trees; Dally and Towles 2004, "Principles and practices of interconnection
        networks", sections 5.2 and 8.4, for the torus.
    """
    n, leaf = whole("servers", servers), whole("leaf", leaf)
    route = one_of("wiring", wiring, {"switch": _by_switch, "fat tree": _by_tree, "torus": _by_torus})
    side, share = math.isqrt(n), number("oversubscribed", oversubscribed, above=True) / leaf
    if wiring == "torus" and side**2 != n:
        raise ValueError(f"servers={n}: a torus has a square of them.")
    pairs = listed("messages", messages, "pairs of servers", lambda its: _is_pair(its, n))
    passed = Counter(cable for pair in pairs for cable in route(*pair, leaf, side))
    load = (count * (share if cable[0] in ("up", "down") else 1) for cable, count in passed.items())
    return max(load, default=0.0) * n / len(pairs)


def _is_pair(its, n: int) -> bool:
    return isinstance(its, tuple) and len(its) == 2 and all(type(one) is int and 0 <= one < n for one in its)


def _by_switch(source: int, target: int, leaf: int, side: int) -> list[tuple]:
    return [("out", source), ("in", target)] if source != target else []


def _by_tree(source: int, target: int, leaf: int, side: int) -> list[tuple]:
    over = [("up", source // leaf), ("down", target // leaf)] if source // leaf != target // leaf else []
    return _by_switch(source, target, leaf, side) + over


def _by_torus(source: int, target: int, leaf: int, side: int) -> Iterator[tuple]:
    at = list(divmod(source, side))
    for axis, end in ((1, target % side), (0, target // side)):
        far = (end - at[axis]) % side
        # two ways may be as short: every second server takes the other one
        step = 1 if 2 * far < side or 2 * far == side and at[axis] % 2 else -1
        while at[axis] != end:
            yield "along", axis, step, *at
            at[axis] = (at[axis] + step) % side


def step_bytes(strategy: str, param_bytes: float, world_size: int) -> float:
    """Bytes that one rank sends in one training step: 2, 3 or 4 times r P.

    Args:
        strategy: by the paper: "data_parallel" 2, "zero_1" 2, "zero_2" 2, "zero_3" 3. As torch does it:
            "fully_shard_gloo" 4 (where every module is gathered anew for backward; what the root module holds
            itself is gathered once), "zero_redundancy_optimizer" 3 (the mean: a rank that owns more sends
            more).
        param_bytes: P, bytes of what is communicated: parameters as large as their gradients, padding
            included.

    Source: Rajbhandari et al. 2020, "ZeRO", section 7; the last two from torch's sources, and to be seen on
        the wire.
    """
    r = (whole("world_size", world_size) - 1) / world_size
    return one_of("strategy", strategy, _STEP) * r * number("param_bytes", param_bytes)


def compressed_bytes(
    method: str,
    shape: int | Sequence[int],
    world_size: int,
    share: float = 0.01,
    rank: int = 2,
    element_bytes: int = 4,
) -> float:
    """Bytes that one rank sends to average one gradient of N numbers, compressed: r = (n-1)/n.

        rounded     4 r N                       an all_reduce of 16-bit numbers
        top_k       (n-1) (element + 4) k       an all_gather of k = share N numbers and their places, int32
        one_bit     (n-1) (N / 8 + element)     an all_gather of signs, and of one size
        low_rank    2 r element rank (a + b)    two all_reduces of thin matrices, for a gradient of a x b;
                                                2 r element N if that is less, and for a vector
        eight_bit   2 r N                       an all_to_all and an all_gather of bytes (without scales)

    What is gathered grows with n; what is summed up on its way does not.

    Args:
        shape: of the gradient, or N. Of more than two dimensions, the first are the rows.
        share: of top_k, above 0, at most 1. No less than one number is kept.
        rank: of low_rank.
        element_bytes: of a number that is not compressed.

    Source: Aji and Heafield 2017, "Sparse communication"; Seide et al. 2014, "1-bit SGD"; Vogels et al. 2019,
        "PowerSGD", table 1.
    """
    one_of("method", method, ("rounded", "top_k", "one_bit", "low_rank", "eight_bit"))
    numel, n = _numel(shape), whole("world_size", world_size)
    size, q, r = whole("element_bytes", element_bytes), whole("rank", rank), (n - 1) / n
    if not 0 < number("share", share) <= 1:
        raise ValueError(f"share={share!r}: it must be above 0, and 1 at most.")
    thin = numel
    if isinstance(shape, Sequence) and len(shape) > 1 and numel:
        thin = min(numel, q * (shape[0] + numel // shape[0]))
    return {
        "rounded": 4 * r * numel,
        "top_k": (n - 1) * (size + 4) * max(1, round(share * numel)),
        "one_bit": (n - 1) * (-(-numel // 8) + size),
        "low_rank": 2 * r * size * thin,
        "eight_bit": 2 * r * numel,
    }[method]


def zero_memory(numel: float, world_size: int, stage: int, precision: str = "fp32") -> dict[str, float]:
    """Bytes that one rank holds with Adam, as a dict of params, grads and optimizer_states.

    Args:
        numel: parameters of the whole model.
        stage: 0 shards nothing (data parallel), 1 the optimizer states, 2 the gradients too, 3 the parameters
            too.
        precision: "fp32", 4+4+8 bytes per parameter, or "mixed", 2+2+12 as in the paper. Both are 16, split
            differently.

    Source: Rajbhandari et al. 2020, "ZeRO", section 5 and figure 1. Padding and Adam's step counters are not
        in it: see `fully_shard_local_numel` and `adam_state_bytes`, which are exact.
    """
    whole("world_size", world_size)
    sharded_from = {"params": 3, "grads": 2, "optimizer_states": 1}
    one_of("stage", stage, (0, 1, 2, 3))
    per_param = zip(sharded_from, one_of("precision", precision, _STATES))
    return {
        name: number("numel", numel) * size / (world_size if stage >= sharded_from[name] else 1)
        for name, size in per_param
    }


def adam_state_bytes(params: Iterable[int | tuple[int, ...]]) -> int:
    """Bytes of torch.optim.Adam's (or AdamW's) state for fp32 parameters: two moments, 8 bytes per element,
    and a 4-byte step counter per tensor.

    Args:
        params: one entry per parameter tensor that gets gradients: its shape, or its number of elements (of a
            shard: the local ones).
    """
    if not isinstance(params, Iterable):
        raise TypeError(
            f"params={params!r}: it must be a list with one entry per parameter tensor, its shape or its"
            " number of elements."
        )
    return sum(8 * _numel(param) + 4 for param in list(params))


def fully_shard_local_numel(shape: tuple[int, ...], rank: int, world_size: int, padded: bool = False) -> int:
    """Elements of one parameter that `rank` keeps under fully_shard: rows are dealt out as torch.chunk does,
    ceil(rows / n) to a rank.

    The last ranks may get fewer rows, or none. In memory each shard of params and grads takes the full
    ceil(rows / n) rows (padded=True); Adam's moments take only the rows that are there (padded=False).

    Source: torch documentation of torch.distributed.fsdp.fully_shard: "dim-0 per-parameter sharding".
    """
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)) or not shape:
        raise ValueError(
            f"shape={shape!r}: it must be a shape with at least one dimension, because fully_shard deals out"
            " rows."
        )
    rows, row_numel = whole("shape[0]", shape[0], least=0), _numel(tuple(shape[1:]))
    if not 0 <= whole("rank", rank, least=0) < whole("world_size", world_size):
        raise ValueError(f"rank={rank}: with world_size={world_size} it must be less than {world_size}.")
    chunk_rows = -(-rows // world_size)
    return row_numel * (chunk_rows if padded else max(0, min(chunk_rows, rows - rank * chunk_rows)))


def bubble_fraction(num_stages: int, num_microbatches: int, num_chunks: int = 1) -> float:
    """Fraction of a step's time in which a pipeline stage is idle: (p-1)/(m+p-1), or interleaved with v
    chunks per stage (p-1)/(v m + p-1).

    The same for GPipe and 1F1B; communication counts as free. (Narayanan et al. divide by the ideal time
    without bubble: (p-1)/(v m).)

    Source: Huang et al. 2019, "GPipe", section 2.3; Narayanan et al. 2021, "Efficient large-scale language
        model training", section 2.2.
    """
    idle = whole("num_stages", num_stages) - 1
    return idle / (whole("num_chunks", num_chunks) * whole("num_microbatches", num_microbatches) + idle)


def zero_bubble_fraction(
    num_stages: int,
    num_microbatches: int,
    forward_s: float = 1.0,
    input_s: float = 1.0,
    weight_s: float = 1.0,
) -> float:
    """Fraction of a step's time in which a rank of ZB-H1 is idle: (p-1)(F+I-W) / (m (F+I+W) + (p-1)(F+I-W)).

    From m = p on, where F is the longest of the three or I is, and I at least as long as W; communication
    counts as free. With F = I = W it is (p-1) / (3 m + p-1).

    Args:
        forward_s, input_s, weight_s: F, I and W: a micro-batch's forward, the gradient of its input, the
            gradients of the weights, on one stage. (Only their ratios count.)

    Source: Qi et al. 2023, "Zero bubble pipeline parallelism", section 2.3, table 2: there the bubble is in
        seconds, (p-1)(T_F + T_B - T_W), T_B is the time of I alone, and rates are over the ideal time.
    """
    lengths = number("forward_s", forward_s), number("input_s", input_s), number("weight_s", weight_s)
    idle_s = (whole("num_stages", num_stages) - 1) * (lengths[0] + lengths[1] - lengths[2])
    return idle_s / (whole("num_microbatches", num_microbatches) * sum(lengths) + idle_s)


def microbatches_in_flight(
    schedule: str, stage: int, num_stages: int, num_microbatches: int, num_chunks: int = 1
) -> int:
    """Most micro-batches whose activations a stage (counted from 0) holds at once: "gpipe" m,
    "1f1b" min(p - stage, m); "zb_h1" min(p, m) on every stage, some of them between the two parts of their
    backward, of which less is kept.

    "interleaved": min(2 (p - 1 - rank) + (v-1) p + 1, v m) on the rank of this number, for a multiple m of p;
    counted once per stage, each of 1/v the size.

    Source: Narayanan et al. 2021, section 2.2; Qi et al. 2023, "Zero bubble pipeline parallelism", section 2.
    """
    if not 0 <= whole("stage", stage, least=0) < whole("num_stages", num_stages):
        raise ValueError(f"stage={stage}: with num_stages={num_stages} it must be less than {num_stages}.")
    whole("num_microbatches", num_microbatches)
    one_of("schedule", schedule, ("gpipe", "1f1b", "interleaved", "zb_h1"))
    v, after = whole("num_chunks", num_chunks), num_stages - 1 - stage
    most = {
        "gpipe": num_microbatches,
        "1f1b": after + 1,
        "zb_h1": num_stages,
        "interleaved": 2 * after + (v - 1) * num_stages + 1,
    }
    return min(most[schedule], v * num_microbatches)


def messages_waited_for(schedule: str, num_stages: int, num_microbatches: int) -> int:
    """How many messages a step of a pipeline waits for, one after the other: by so many times the time that a
    message is on its way the step is longer than (m+p-1)(f+b).

    "gpipe" 2(p-1): messages stream, and what counts is one way down and one way up. "1f1b" as many, and
    2 floor((m-1)(p-1)/p): every p micro-batches a round trip through all stages.

    Source: the lists of both schedules, played out (tests/test_theory.py).
    """
    once = whole("num_stages", num_stages) - 1
    later = (whole("num_microbatches", num_microbatches) - 1) * once // num_stages
    return 2 * (once if one_of("schedule", schedule, ("gpipe", "1f1b")) == "gpipe" else once + later)


def tensor_parallel_bytes(
    batch: int, sequence: int, hidden: int, tp_size: int, element_bytes: int = 4
) -> float:
    """Bytes that one rank sends per transformer layer and micro-batch: 8 b s h (t-1)/t elements.

    Four all_reduces of b s h elements: one after attention and one after the MLP, in forward and again in
    backward. (Of one MLP alone, half.)

    Source: Narayanan et al. 2021, section 3.2; Shoeybi et al. 2019, "Megatron-LM", section 3.
    """
    elements = whole("batch", batch) * whole("sequence", sequence) * whole("hidden", hidden)
    return 4 * collective_bytes("all_reduce", elements * whole("element_bytes", element_bytes), tp_size)


def activation_bytes(
    batch: int,
    sequence: int,
    hidden: int,
    heads: int,
    tp_size: int = 1,
    sequence_parallel: bool = False,
    recompute: str = "none",
) -> float:
    """Bytes of activations that one rank keeps for backward, per transformer layer and micro-batch, in 16-bit
    precision with dropout.

    Args:
        recompute: "none"; "selective" computes the attention scores again in backward; "full" keeps only the
            layer's input.

    Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", table 2.
    """
    sbh = whole("sequence", sequence) * whole("batch", batch) * whole("hidden", hidden)
    t = whole("tp_size", tp_size)
    if one_of("recompute", recompute, ("none", "selective", "full")) == "full":
        return 2.0 * sbh
    scores = 5 * whole("heads", heads) * sequence / hidden if recompute == "none" else 0.0
    return sbh * ((34 / t if sequence_parallel else 10 + 24 / t) + scores / t)


def context_bytes(
    method: str,
    batch: int,
    sequence: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    cp_size: int,
    element_bytes: int = 4,
    backward: bool = True,
) -> float:
    """Bytes that one rank sends for one attention layer over a sequence that is cut, forward and backward.

    K are the bytes of all keys, Q those of all queries, r = (n-1)/n; forward + backward:

        ring         2 r K + 4 r K            blocks of K and V; backward, their gradients, too
        all_gather   2 r K + 2 r K            K and V, which are kept; backward, a reduce_scatter of gradients
        ulysses      2 r (Q + K) / n, twice   an all_to_all of q, k, v and one of the output

    Args:
        sequence: tokens of the whole sequence.
        kv_heads: heads of keys; fewer than `heads` where groups of queries share them.
        backward: False for the forward alone.

    Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers", section 3; Jacobs et al. 2023,
        "DeepSpeed Ulysses", section 3.2.
    """
    one_of("method", method, ("ring", "all_gather", "ulysses"))
    per_head = whole("batch", batch) * whole("sequence", sequence) * whole("head_dim", head_dim)
    per_head *= whole("element_bytes", element_bytes)
    queries, keys = whole("heads", heads) * per_head, whole("kv_heads", kv_heads) * per_head
    r = (whole("cp_size", cp_size) - 1) / cp_size
    if method == "ulysses":
        return 2 * r * (queries + keys) / cp_size * (2 if backward else 1)
    return 2 * r * keys * ((3 if method == "ring" else 2) if backward else 1)


def keys_held_bytes(method: str, keys_bytes: float, cp_size: int) -> float:
    """The most bytes of keys and values at once on one rank, in forward: "all_gather" all, 2 K; "ring" two
    blocks, 4 K / n (the one at work, and the one that comes); "ulysses" all of some heads, 2 K / n.

    Args:
        keys_bytes: K, of the keys of the whole sequence.
    """
    n, pair = whole("cp_size", cp_size), 2 * number("keys_bytes", keys_bytes)
    return {"all_gather": pair, "ring": min(2, n) * pair / n, "ulysses": pair / n}[
        one_of("method", method, ("all_gather", "ring", "ulysses"))
    ]


def causal_pairs(order: str, sequence: int, cp_size: int) -> list[int]:
    """How many pairs of query and key each rank works out under a causal mask: a token sees those before it
    and itself.

    Args:
        order: "contiguous", one piece for each rank; "zigzag", of 2n pieces i and 2n-1-i for rank i. The
            first pieces are longer by one where the lengths differ.

    Source: Brandon et al. 2023, "Striped Attention", section 3; Llama team 2024, section 3.3.2.
    """
    n, t = whole("cp_size", cp_size), whole("sequence", sequence)
    pieces = {"contiguous": n, "zigzag": 2 * n}[one_of("order", order, ("contiguous", "zigzag"))]
    ends = [t // pieces * (piece + 1) + min(piece + 1, t % pieces) for piece in range(pieces)]
    before = [end * (end + 1) // 2 for end in [0, *ends]]
    of_piece = [after - first for first, after in zip(before, before[1:])]
    return of_piece if order == "contiguous" else [a + b for a, b in zip(of_piece[:n], of_piece[::-1])]


def ring_efficiency(order: str, cp_size: int) -> float:
    """The share of a ring's time in which its ranks compute under a causal mask, if messages are hidden: the
    work of all, over n times the time until all are done.

    In a step of the ring all wait for the slowest. With n pieces, some rank works out a full block in every
    step but the first: time n - 1/2, work n / 2 per rank, "contiguous" n / (2n - 1). "zigzag" 1.

    Source: Brandon et al. 2023, "Striped Attention", section 3.
    """
    n = whole("cp_size", cp_size)
    return {"contiguous": n / (2 * n - 1), "zigzag": 1.0}[one_of("order", order, ("contiguous", "zigzag"))]


def expert_parallel_bytes(
    tokens: int, hidden: int, top_k: int, ep_size: int, element_bytes: int = 4, gathered: bool = False
) -> float:
    """Bytes that one rank sends per layer of experts and step, forward and backward, where its tokens go to
    all ranks alike: 4 k T h (n-1)/n elements.

    Four all_to_alls of k rows for each token: to the experts and back, and their gradients the same ways.
    (The numbers of rows, which travel ahead, are not counted.)

    Args:
        tokens: T, of this rank.
        gathered: all tokens come to all ranks (all_gather), and the sums of their outputs go back
            (reduce_scatter): 4 (n-1) T h elements, whatever k is.

    Source: Lepikhin et al. 2020, "GShard", section 3 (its AllToAll).
    """
    n, rows = whole("ep_size", ep_size), whole("tokens", tokens, least=0) * (1 if gathered else top_k)
    row_bytes = whole("hidden", hidden) * whole("element_bytes", element_bytes)
    return 4 * rows * row_bytes * (n - 1) / (1 if gathered else n)


def expert_numel(
    hidden: int, intermediate: int, num_experts: int, top_k: int, matrices: int = 3, num_shared: int = 0
) -> dict[str, int]:
    """Parameters of one layer of experts, without biases: "total", and "active", those that one token meets.

    Args:
        intermediate: width inside of an expert.
        matrices: of hidden x intermediate in each expert: 2, or 3 with a gate (SwiGLU).
        num_shared: experts that every token meets, beside the num_experts of which the router, hidden x
            num_experts, chooses top_k.

    Source: Jiang et al. 2024, "Mixtral of experts", section 2.1; DeepSeek-AI 2024, "DeepSeek-V3", section
        2.1.2.
    """
    one = whole("matrices", matrices) * whole("hidden", hidden) * whole("intermediate", intermediate)
    router = hidden * whole("num_experts", num_experts)
    chosen, shared = whole("top_k", top_k, most=num_experts), whole("num_shared", num_shared, least=0)
    return {"total": router + (num_experts + shared) * one, "active": router + (chosen + shared) * one}


def mtbf_seconds(observed_s: float, failures: float, observed_ranks: int, ranks: int) -> float:
    """M, the mean time between failures of a job of n ranks, where another one of N ranks had F failures in T
    seconds: T N / (F n). Any rank that fails ends a job, so twice the ranks fail twice as often.

    Args:
        observed_s, failures, observed_ranks: T, F and N, all above 0.
        ranks: n.

    Source: rates of failures that do not depend on each other add up; Schroeder and Gibson 2007,
        "Understanding failures in petascale computers", finds them in proportion to the processors.
    """
    per_rank = number("failures", failures, above=True) / whole("observed_ranks", observed_ranks)
    return number("observed_s", observed_s, above=True) / per_rank / whole("ranks", ranks)


def checkpoint_interval(save_s: float, mtbf_s: float, order: str = "daly") -> float:
    """Seconds of work between two saves at which a job loses least: "young", sqrt(2 C M), or "daly", sqrt(2 C
    M) (1 + sqrt(C / 2M) / 3 + (C / 2M) / 9) - C, and M where C is at least 2 M.

    Args:
        save_s: C, for which a save keeps training waiting; above 0.
        mtbf_s: M, the mean time between failures of the whole job; above 0.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval"; Daly 2006, "A higher
        order estimate of the optimum checkpoint interval for restart dumps", equation 37.
    """
    c, m = number("save_s", save_s, above=True), number("mtbf_s", mtbf_s, above=True)
    first = math.sqrt(2 * c) * math.sqrt(m)
    if one_of("order", order, ("young", "daly")) == "young":
        return first
    share = c / 2 / m
    return first * (1 + math.sqrt(share) / 3 + share / 9) - c if share < 1 else float(m)


def lost_steps(every: int, mtbf_steps: float) -> float:
    """Finished steps that a failure throws away on average, with a save after every k-th step: 1/(e^(1/M) -
    1) - k/(e^(k/M) - 1), which is about (k-1)/2 where failures are rare.

    Args:
        every: k.
        mtbf_steps: M, the mean time between failures in steps; a failure is as likely at any moment, and a
            step in which one comes is not finished.

    Source: the mean of j with weights e^(-j/M), j = 0 to k-1 (tests/test_checkpoints.py plays it).
    """
    k, m = whole("every", every), number("mtbf_steps", mtbf_steps, above=True)
    return _over_expm1(1, 1 / m) - _over_expm1(k, k / m) if k > 1 else 0.0


def goodput(interval_s: float, save_s: float, mtbf_s: float, restart_s: float = 0.0) -> float:
    """The part of a job's time in which it gets on: t / (M e^(R/M) (e^((t+C)/M) - 1)), t being the seconds of
    work between two saves.

    The rest is spent in saves, in work that is lost and done again, and in restarts, during which failures
    come, too. 0 where hardly an interval ends without one.

    Args:
        save_s: C, for which a save keeps training waiting.
        mtbf_s: M, the mean time between failures of the whole job.
        restart_s: R, from a failure until training goes on.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps": the
        work over the whole wall clock time of its complete model.
    """
    t, m = number("interval_s", interval_s, above=True), number("mtbf_s", mtbf_s, above=True)
    c, r = number("save_s", save_s), number("restart_s", restart_s)
    if (t + c + r) / m > 700:  # e^700 is about the largest number
        return 0.0
    return t / m / (math.exp(r / m) * math.expm1((t + c) / m))


def goodput_shares(
    interval_s: float, save_s: float, mtbf_s: float, restart_s: float = 0.0
) -> dict[str, float]:
    """Where a job's time goes, in parts of 1: "useful", its goodput; "saves", those that were finished;
    "restarts"; and "work done again", with the saves that were cut off.

    Of the time a part of 1 - e^(-R/M) is spent in restarts, however often one saves; each useful interval of
    t seconds has a save of C.

    Args: as for `goodput`, and from the same source: the parts of its total time.
    """
    useful = goodput(interval_s, save_s, mtbf_s, restart_s)
    saves, restarts = useful * save_s / interval_s, -math.expm1(-restart_s / mtbf_s)
    return {
        "useful": useful,
        "saves": saves,
        "restarts": restarts,
        "work done again": max(0.0, 1 - useful - saves - restarts),
    }


def parameter_server_bytes(param_bytes: float, workers: int, updates: int) -> dict[str, float]:
    """Bytes sent while so many gradients are applied: by the "server", and by a "worker" that makes its even
    share of them.

    Each update brings one gradient in and the weights out again; at the end every worker gets the last
    weights: (updates + workers) S out of the server, updates S into it.

    Source: Li et al. 2014, "Scaling distributed machine learning with the parameter server", section 2.
    """
    S, W = number("param_bytes", param_bytes), whole("workers", workers)
    return {"server": float((whole("updates", updates) + W) * S), "worker": updates / W * S}


def mean_staleness(workers: int, updates: int, bound: float = math.inf, one_is_slow: bool = False) -> float:
    """How many other updates lie on the mean between the weights that a gradient was computed from and its
    own update.

    Where nobody waits: (W-1) (1 - W / 2N) for W workers and N updates, however fast each worker is. (Between
    two updates of one worker lie all those that the others make meanwhile; at the end W are left over.) With
    a bound of 0, all wait for all, in whole rounds: (W-1) / 2.

    Args:
        bound: 0 or infinity; between them it depends on the workers' speeds.
        one_is_slow: one worker always needs longer than the others, which are alike. Then any bound will do:
            once the fast ones have used up their lead, each gradient of the slow one lets each of them begin
            one, so the mean is (W-1) / 2 as well. (The slow one's own are W-1 old.) Of many updates: the lead
            itself is not counted.
    """
    W, N = whole("workers", workers), whole("updates", updates, least=workers)
    waits = {0: (W - 1) / 2, math.inf: (W - 1) * (1 - W / (2 * N))}
    if number("bound", bound, finite=False) < math.inf and instance("one_is_slow", one_is_slow, bool):
        return (W - 1) / 2
    if bound not in waits:
        raise ValueError(f"bound={bound}: it must be 0 or infinity; else the mean depends on who is slow.")
    return waits[bound]


def most_staleness(workers: int, bound: float) -> float:
    """The most other updates between weights and the gradient that was computed from them, where no worker
    begins more than `bound` gradients ahead of the slowest: (W-1) (2 bound + 1).

    Source: Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server",
        section 2, counted in updates.
    """
    return (whole("workers", workers) - 1) * (2 * number("bound", bound, finite=False) + 1)


def stale_rate_limit(staleness: int, curvature: float = 1.0) -> float:
    """The learning rate below which SGD with gradients that are so many updates old comes to rest on a
    parabola: 2 sin(pi / (4 staleness + 2)) / curvature. Without staleness, 2 / curvature.

    Source: Levin and May 1976, "A note on difference-delay equations": x[t+1] = x[t] - a x[t-k].
    """
    k = whole("staleness", staleness, least=0)
    return 2 * math.sin(math.pi / (4 * k + 2)) / number("curvature", curvature, above=True)


def updates_per_second(compute_s: Sequence[float], waits: bool) -> float:
    """Updates per second by workers that need so many seconds for a gradient, each always the same, and none
    for sending it.

    Args:
        compute_s: of each worker.
        waits: they wait for each other, at once or a bounded number of gradients later: W / max(t). If not,
            the sum of 1 / t.
    """

    def good(seconds) -> bool:
        return not isinstance(seconds, bool) and isinstance(seconds, (int, float)) and seconds > 0

    times = listed("compute_s", compute_s, "a list of seconds above 0, one for each worker", good)
    return len(times) / max(times) if waits else sum(1 / seconds for seconds in times)


def server_with_straggler(
    workers: int, compute_s: float, slower: float, bound: float = math.inf
) -> dict[str, float]:
    """Updates per second, and their mean "staleness", at a server one of whose workers always needs `slower`
    times as long as each other one. In the long run: leads are used up, and sending takes no time.

    Whoever may be ahead by a bounded number of gradients waits for the straggler in the end; where all are
    alike, nobody gets ahead, and only a bound of 0 makes them wait.

    Args:
        compute_s: seconds of the others for one gradient.
        slower: at least 1.
        bound: how many gradients a worker may be ahead of the slowest; 0: all wait for all.

    Returns:
        "updates_per_second", as the function of this name, and "staleness", as `mean_staleness`.
    """
    if number("slower", slower) < 1:
        raise ValueError(f"slower={slower!r}: it must be at least 1.")
    W, t = whole("workers", workers), number("compute_s", compute_s, above=True)
    waits = number("bound", bound, finite=False) == 0 or bound < math.inf and slower > 1
    return {
        "updates_per_second": updates_per_second([t] * (W - 1) + [slower * t], waits),
        "staleness": (W - 1) / 2 if waits else W - 1.0,
    }


def server_round_seconds(param_bytes: float, bytes_per_s: float, workers: int) -> float:
    """Seconds in which a server of one link takes a gradient of each worker and gives each the weights, one
    message after the other: 2 W S / B.

    Where gradients come in while weights go out, half of it: no order is faster.
    """
    one_s = number("param_bytes", param_bytes) / number("bytes_per_s", bytes_per_s, above=True)
    return 2 * whole("workers", workers) * one_s


def local_sgd_bytes(param_bytes: float, ranks: int, local_steps: int) -> float:
    """Bytes that one rank sends per step where weights are averaged every H steps: 2 (n-1)/n S / H.

    Source: Stich 2018, "Local SGD converges fast and communicates little".
    """
    return collective_bytes("all_reduce", param_bytes, ranks) / whole("local_steps", local_steps)


def waiting_fraction(read_s: float, compute_s: float, workers: int) -> float:
    """The share of a step, 0 to 1, in which a rank waits for its data. Workers read ahead, each a batch of
    its own, so a step takes the longer of the two; without workers the rank reads, and then computes.

    Args:
        read_s: seconds that one reader needs for a batch.
        compute_s: seconds of a step without reading.
        workers: processes that read for this rank; 0: it reads by itself.
    """
    number("read_s", read_s)
    number("compute_s", compute_s, above=True)
    if not whole("workers", workers, least=0):
        return float(read_s / (read_s + compute_s))
    return float(1 - compute_s / max(compute_s, read_s / workers))


def bucket_seconds(
    forward_s: float, backward_s: float, communication_s: float, num_buckets: int
) -> list[tuple[float, float]]:
    """When each of K equal buckets of gradients travels, (begin, end) in seconds since the step began, where
    backward makes one after the other and the link carries one at a time.

    Bucket k, from 0, begins at F + B/K + k max(B, C)/K, and takes C/K.

    Args:
        forward_s, backward_s: F and B, of all layers together.
        communication_s: C, of all buckets together, one after the other and nothing else.

    Source: Li et al. 2020, "PyTorch Distributed", section 3.2.3, for buckets of one size.
    """
    f, b = number("forward_s", forward_s), number("backward_s", backward_s)
    c, k = number("communication_s", communication_s), whole("num_buckets", num_buckets, most=2**20)
    begins = [f + b / k + nth * max(b, c) / k for nth in range(k)]
    return [(begin, begin + c / k) for begin in begins]


def overlapped_seconds(
    forward_s: float, backward_s: float, communication_s: float, num_buckets: int
) -> float:
    """Seconds of a step whose gradients travel in K equal buckets while backward goes on: F + max(B, C) +
    min(B, C)/K. One bucket hides nothing: F + B + C.

    Args: as for `bucket_seconds`, whose last bucket this is the end of.
    """
    f, b = number("forward_s", forward_s), number("backward_s", backward_s)
    c = number("communication_s", communication_s)
    return f + max(b, c) + min(b, c) / whole("num_buckets", num_buckets)


def hidden_fraction(backward_s: float, communication_s: float, num_buckets: int) -> float:
    """The share of communication, 0 to 1, that K equal buckets hide behind backward: (1 - 1/K) min(1, B/C).
    The rest is **exposed**: the step is longer by it.

    Args: as for `bucket_seconds`; where C is 0, as for a very short one.
    """
    b, c = number("backward_s", backward_s), number("communication_s", communication_s)
    return (1 - 1 / whole("num_buckets", num_buckets)) * (min(1.0, b / c) if c else 1.0)


def pass_flop(numel: float, samples: float) -> dict[str, float]:
    """FLOP of a "forward", 2 N D, and of a "backward", 4 N D: of a sample each weight takes a product and a
    sum forward, and twice these backward, for the gradients of inputs and of weights. Together 6 N D.

    Args:
        numel: N, weights of matrices that each sample meets once. Attention's own products are not in it.
        samples: D; of a language model, tokens.

    Source: Kaplan et al. 2020, "Scaling laws for neural language models", section 2.1.
    """
    one = 2 * number("numel", numel) * number("samples", samples)
    return {"forward": one, "backward": 2 * one}


def amdahl(ranks: float, serial_fraction: float) -> float:
    """Speed-up of a fixed problem (strong scaling) of whose time on one rank a fraction f cannot be split:
    1 / (f + (1-f)/n).

    Source: Amdahl 1967, "Validity of the single processor approach".
    """
    return 1 / (_fraction(serial_fraction) + (1 - serial_fraction) / _ranks(ranks))


def gustafson(ranks: float, serial_fraction: float) -> float:
    """Speed-up of a problem that grows with the ranks (weak scaling), f being the serial fraction of the time
    on n ranks: n - f (n-1).

    Source: Gustafson 1988, "Reevaluating Amdahl's law".
    """
    return _ranks(ranks) - _fraction(serial_fraction) * (ranks - 1)


def karp_flatt(measured_speedup: float, ranks: int) -> float:
    """Serial fraction that a measured speed-up betrays: (1/speedup - 1/n) / (1 - 1/n). Grows with n where
    overhead does.

    Source: Karp and Flatt 1990, "Measuring parallel processor performance".
    """
    if _ranks(ranks) == 1:
        raise ValueError("ranks=1: one rank says nothing about the serial fraction.")
    return (1 / number("measured_speedup", measured_speedup, above=True) - 1 / ranks) / (1 - 1 / ranks)


def speedup(t_1: float, t_n: float) -> float:
    """t_1 / t_n, for seconds of the same work on one rank and on n."""
    return number("t_1", t_1, above=True) / number("t_n", t_n, above=True)


def efficiency(measured_speedup: float, ranks: int) -> float:
    """speedup / n: the part of n ranks that is put to use."""
    return number("measured_speedup", measured_speedup) / _ranks(ranks)


def published(name: str) -> dict:
    """A table from a paper: `title`, `source`, `unit` of its numbers, and `rows`, one dict per row
    (`pandas.DataFrame(table["rows"])`).

    Errors: ValueError if there is no table of this name; the message lists those that there are.
    """
    table = one_of("name", name, json.loads(PUBLISHED_FILE.read_text(encoding="utf-8")))
    return {**table, "rows": [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]}


def _known(what: str) -> dict:
    """What the rows of collectives say of it, by name, where they say something."""
    return {op: told for op, row in COLLECTIVES.items() if (told := getattr(row, what)) is not None}


def _numel(param) -> int:
    """Elements of a shape, or a number of elements as it is."""
    if isinstance(param, Sequence) and not isinstance(param, (str, bytes)):
        return math.prod(whole("a dimension", size, least=0) for size in param)
    return whole("a number of elements", param, least=0)


def _over_expm1(numerator: float, exponent: float) -> float:
    """numerator / (e^exponent - 1); 0 where that is too large a number."""
    return numerator / math.expm1(exponent) if exponent < 700 else 0.0


def _fraction(value):
    if not 0 <= number("serial_fraction", value) <= 1:
        raise ValueError(f"serial_fraction={value!r}: it must be from 0 to 1.")
    return value


def _ranks(value):
    if number("ranks", value) < 1:  # a curve may ask for 1.5 ranks
        raise ValueError(f"ranks={value!r}: it must be at least 1.")
    return value
