"""What the books and papers say: closed forms for bytes, memory and time, each with its units and its source.

The letters are the same throughout: n ranks, S bytes of a full tensor, P bytes of all parameters, r = (n-1)/n; in pipelines, p stages and
m micro-batches. A rank that has nobody to talk to (n = 1) sends nothing. Nothing is measured here, and nothing heavy is imported.
"""
import json
import math
from collections.abc import Iterable
from pathlib import Path

__all__ = ["collective_bytes", "gloo_bytes", "bandwidth", "ring_seconds", "tree_broadcast_seconds", "step_bytes", "zero_memory", "adam_state_bytes",
           "fully_shard_local_numel", "bubble_fraction", "microbatches_in_flight", "tensor_parallel_bytes", "activation_bytes",
           "amdahl", "gustafson", "karp_flatt", "speedup", "efficiency", "published"]

PUBLISHED_FILE = Path(__file__).resolve().parents[1] / "data" / "published.json"

# Bytes that one rank sends, over S. Where ranks send different amounts (a root, a leaf), the mean over the ranks.
_SENT = {
    "all_reduce": lambda n: 2 * (n - 1) / n,      # reduce-scatter, then all-gather
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,          # keeps 1/n of S for itself
    "broadcast": lambda n: (n - 1) / n,           # n-1 ranks receive S once: (n-1) S in all
    "reduce": lambda n: (n - 1) / n,              # the same tree, the other way round
    "gather": lambda n: (n - 1) / n**2,           # n-1 ranks send S/n each: (n-1)/n S in all
    "scatter": lambda n: (n - 1) / n**2,
    "send": lambda n: 1,
    "recv": lambda n: 0,
    "barrier": lambda n: 0,                       # carries no data
}
_BUSBW = {"all_reduce": lambda n: 2 * (n - 1) / n, "broadcast": lambda n: 1, "reduce": lambda n: 1, "send": lambda n: 1, "recv": lambda n: 1,
          **dict.fromkeys(("reduce_scatter", "all_gather", "all_to_all", "gather", "scatter"), lambda n: (n - 1) / n)}
_RING_STEPS = {"all_reduce": lambda n: 2 * (n - 1), "reduce_scatter": lambda n: n - 1, "all_gather": lambda n: n - 1}

# Bytes sent in one training step, over r P.
_STEP = {
    "data_parallel": 2,                   # one all_reduce of the gradients
    "zero_1": 2,                          # reduce_scatter of gradients, all_gather of parameters
    "zero_2": 2,                          # the same, gradient by gradient
    "zero_3": 3,                          # all_gather of parameters for forward and again for backward, reduce_scatter of gradients
    "fully_shard_gloo": 4,                # as zero_3, but gloo's reduce_scatter is an all_reduce (2 r) of which a rank keeps one chunk
    "zero_redundancy_optimizer": 3,       # DDP's all_reduce (2 r), then the owner of each parameter broadcasts it (r, as the mean over ranks)
}
# Bytes per parameter: params, grads, optimizer_states.
_STATES = {
    "fp32": (4, 4, 8),                    # Adam keeps two moments in fp32
    "mixed": (2, 2, 12),                  # fp16 params and grads; an fp32 copy of the params and two moments
}


def collective_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """Bytes that one rank sends for one collective by the textbook (bandwidth-optimal) algorithm; the mean over ranks where they differ.

    Args:
        op: a name as torch.distributed spells it: all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, reduce, gather, scatter,
            send, recv, barrier.
        payload_bytes: S, the full tensor: what all_gather and gather produce, what reduce_scatter and scatter start from.
        group_size: ranks that take part.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3; Thakur and Gropp 2003, section 4.
    """
    factor = _one_of("op", op, _SENT)(_whole("group_size", group_size))
    return float(_number("payload_bytes", payload_bytes) * factor)


def gloo_bytes(op: str, payload_bytes: float, group_size: int) -> float:
    """Bytes that one rank sends for one collective as gloo runs it; the mean over ranks where they differ (broadcast, reduce, gather, scatter).

    As `collective_bytes`, but for two. reduce_scatter is an all_reduce, of which a rank keeps one chunk. reduce is a ring reduce-scatter, then rank
    0 gathers the chunks: (n-1) S + r S over all ranks; and where S/n is above 2 MiB, its ring goes round for longer than it need, up to n S + r S.

    Source: gloo's reduce.cc; within 2% of what the operating system counts from 1 MB up (tests/test_ledger.py, torch 2.13).
    """
    if op == "reduce":
        return _gloo_reduce_bytes(_number("payload_bytes", payload_bytes), _whole("group_size", group_size))
    return collective_bytes("all_reduce" if op == "reduce_scatter" else op, payload_bytes, group_size)


def _gloo_reduce_bytes(payload_bytes: float, group_size: int) -> float:
    """Each rank has a chunk of so many segments, at least two. In the ring, a rank sends all segments but the last two of its own chunk."""
    if group_size == 1 or not payload_bytes:
        return 0.0
    segment = min(payload_bytes / (2 * group_size), 2**20)
    per_rank = math.ceil(payload_bytes / segment / group_size)
    ends = [min((rank + 1) * per_rank * segment, payload_bytes) for rank in range(group_size)]
    held_back = [max(end - ((rank + 1) * per_rank - 2) * segment, 0) for rank, end in enumerate(ends)]
    ring, gather = group_size * payload_bytes - sum(held_back), payload_bytes - ends[0]
    return (ring + gather) / group_size


def bandwidth(op: str, payload_bytes: float, seconds: float, group_size: int) -> tuple[float, float]:
    """algbw and busbw in bytes per second: S/t, and S/t times a factor that makes numbers of ranks comparable.

    (Some tools report 2 S/t for an all_reduce; this is S/t.) Source: nccl-tests, doc/PERFORMANCE.md; gather and scatter from its sources.
    """
    factor = _one_of("op", op, _BUSBW)(_whole("group_size", group_size))
    algbw = _number("payload_bytes", payload_bytes) / _number("seconds", seconds, above=True)
    return algbw, algbw * factor


def ring_seconds(op: str, payload_bytes: float, group_size: int, alpha_s: float, beta_s: float, gamma_s: float = 0.0) -> float:
    """Seconds for a ring all_reduce, reduce_scatter or all_gather: steps * alpha + bytes sent * beta + bytes added up * gamma.

    Args:
        alpha_s: seconds to start one message. beta_s: seconds per byte sent. gamma_s: seconds per byte that is added up.

    Source: Thakur and Gropp 2003, "Improving the performance of collective operations in MPICH", sections 3 and 4.
    """
    steps = _one_of("op", op, _RING_STEPS)(_whole("group_size", group_size))
    chunk_bytes = _number("payload_bytes", payload_bytes) / group_size
    added_bytes = 0 if op == "all_gather" else (group_size - 1) * chunk_bytes
    return steps * (_number("alpha_s", alpha_s) + chunk_bytes * _number("beta_s", beta_s)) + added_bytes * _number("gamma_s", gamma_s)


def tree_broadcast_seconds(payload_bytes: float, group_size: int, alpha_s: float, beta_s: float) -> float:
    """Seconds for a broadcast along a binomial tree, ceil(log2 n) (alpha + S beta). Source: Thakur and Gropp 2003, section 4."""
    rounds = (_whole("group_size", group_size) - 1).bit_length()
    return rounds * (_number("alpha_s", alpha_s) + _number("payload_bytes", payload_bytes) * _number("beta_s", beta_s))


def step_bytes(strategy: str, param_bytes: float, world_size: int) -> float:
    """Bytes that one rank sends in one training step: 2, 3 or 4 times r P.

    Args:
        strategy: by the paper: "data_parallel" 2, "zero_1" 2, "zero_2" 2, "zero_3" 3. As torch does it: "fully_shard_gloo" 4 (where every
            module is gathered anew for backward; what the root module holds itself is gathered once), "zero_redundancy_optimizer" 3 (the mean:
            a rank that owns more sends more).
        param_bytes: P, bytes of what is communicated: parameters as large as their gradients, padding included.

    Source: Rajbhandari et al. 2020, "ZeRO", section 7; the last two from torch's sources, and to be seen on the wire.
    """
    r = (_whole("world_size", world_size) - 1) / world_size
    return _one_of("strategy", strategy, _STEP) * r * _number("param_bytes", param_bytes)


def zero_memory(numel: float, world_size: int, stage: int, precision: str = "fp32") -> dict[str, float]:
    """Bytes that one rank holds with Adam, as a dict of params, grads and optimizer_states.

    Args:
        numel: parameters of the whole model.
        stage: 0 shards nothing (data parallel), 1 the optimizer states, 2 the gradients too, 3 the parameters too.
        precision: "fp32", 4+4+8 bytes per parameter, or "mixed", 2+2+12 as in the paper. Both are 16, split differently.

    Source: Rajbhandari et al. 2020, "ZeRO", section 5 and figure 1. Padding and Adam's step counters are not in it: see
    `fully_shard_local_numel` and `adam_state_bytes`, which are exact.
    """
    _whole("world_size", world_size)
    sharded_from = {"params": 3, "grads": 2, "optimizer_states": 1}
    _one_of("stage", stage, (0, 1, 2, 3))
    per_param = zip(sharded_from, _one_of("precision", precision, _STATES))
    return {name: _number("numel", numel) * size / (world_size if stage >= sharded_from[name] else 1) for name, size in per_param}


def adam_state_bytes(params: Iterable[int | tuple[int, ...]]) -> int:
    """Bytes of torch.optim.Adam's (or AdamW's) state for fp32 parameters: two moments, 8 bytes per element, and a 4-byte step counter per tensor.

    Args:
        params: one entry per parameter tensor that gets gradients: its shape, or its number of elements (of a shard: the local ones).
    """
    numels = [math.prod(param) if isinstance(param, Iterable) else param for param in params]
    return sum(8 * _whole("numel", numel, least=0) + 4 for numel in numels)


def fully_shard_local_numel(shape: tuple[int, ...], rank: int, world_size: int, padded: bool = False) -> int:
    """Elements of one parameter that `rank` keeps under fully_shard: rows are dealt out as torch.chunk does, ceil(rows / n) to a rank.

    The last ranks may get fewer rows, or none. In memory each shard of params and grads takes the full ceil(rows / n) rows (padded=True); Adam's
    moments take only the rows that are there (padded=False).

    Source: torch documentation of torch.distributed.fsdp.fully_shard: "dim-0 per-parameter sharding".
    """
    if not shape:
        raise ValueError("shape=(): fully_shard deals out rows, and a parameter without dimensions has none.")
    rows, row_numel = _whole("rows", shape[0], least=0), math.prod(shape[1:])
    if not 0 <= _whole("rank", rank, least=0) < _whole("world_size", world_size):
        raise ValueError(f"rank={rank}: with world_size={world_size} it must be less than {world_size}.")
    chunk_rows = -(-rows // world_size)
    return row_numel * (chunk_rows if padded else max(0, min(chunk_rows, rows - rank * chunk_rows)))


def bubble_fraction(num_stages: int, num_microbatches: int, num_chunks: int = 1) -> float:
    """Fraction of a step's time in which a pipeline stage is idle: (p-1)/(m+p-1), or interleaved with v chunks per stage (p-1)/(v m + p-1).

    The same for GPipe and 1F1B; communication counts as free. (Narayanan et al. divide by the ideal time without bubble: (p-1)/(v m).)

    Source: Huang et al. 2019, "GPipe", section 2.3; Narayanan et al. 2021, "Efficient large-scale language model training", section 2.2.
    """
    idle = _whole("num_stages", num_stages) - 1
    return idle / (_whole("num_chunks", num_chunks) * _whole("num_microbatches", num_microbatches) + idle)


def microbatches_in_flight(schedule: str, stage: int, num_stages: int, num_microbatches: int) -> int:
    """Most micro-batches whose activations a stage (counted from 0) holds at once: "gpipe" m, "1f1b" min(p - stage, m).

    Source: Narayanan et al. 2021, section 2.2.
    """
    if not 0 <= _whole("stage", stage, least=0) < _whole("num_stages", num_stages):
        raise ValueError(f"stage={stage}: with num_stages={num_stages} it must be less than {num_stages}.")
    _whole("num_microbatches", num_microbatches)
    return num_microbatches if _one_of("schedule", schedule, ("gpipe", "1f1b")) == "gpipe" else min(num_stages - stage, num_microbatches)


def tensor_parallel_bytes(batch: int, sequence: int, hidden: int, tp_size: int, element_bytes: int = 4) -> float:
    """Bytes that one rank sends per transformer layer and micro-batch: 8 b s h (t-1)/t elements.

    Four all_reduces of b s h elements: one after attention and one after the MLP, in forward and again in backward. (Of one MLP alone, half.)

    Source: Narayanan et al. 2021, section 3.2; Shoeybi et al. 2019, "Megatron-LM", section 3.
    """
    elements = _whole("batch", batch) * _whole("sequence", sequence) * _whole("hidden", hidden)
    return 4 * collective_bytes("all_reduce", elements * _whole("element_bytes", element_bytes), tp_size)


def activation_bytes(batch: int, sequence: int, hidden: int, heads: int, tp_size: int = 1, sequence_parallel: bool = False,
                     recompute: str = "none") -> float:
    """Bytes of activations that one rank keeps for backward, per transformer layer and micro-batch, in 16-bit precision with dropout.

    Args:
        recompute: "none"; "selective" computes the attention scores again in backward; "full" keeps only the layer's input.

    Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models", table 2.
    """
    sbh = _whole("sequence", sequence) * _whole("batch", batch) * _whole("hidden", hidden)
    t = _whole("tp_size", tp_size)
    if _one_of("recompute", recompute, ("none", "selective", "full")) == "full":
        return 2.0 * sbh
    scores = 5 * _whole("heads", heads) * sequence / hidden if recompute == "none" else 0.0
    return sbh * ((34 / t if sequence_parallel else 10 + 24 / t) + scores / t)


def amdahl(ranks: float, serial_fraction: float) -> float:
    """Speed-up of a fixed problem (strong scaling) of whose time on one rank a fraction f cannot be split: 1 / (f + (1-f)/n).

    Source: Amdahl 1967, "Validity of the single processor approach".
    """
    return 1 / (_fraction(serial_fraction) + (1 - serial_fraction) / _ranks(ranks))


def gustafson(ranks: float, serial_fraction: float) -> float:
    """Speed-up of a problem that grows with the ranks (weak scaling), f being the serial fraction of the time on n ranks: n - f (n-1).

    Source: Gustafson 1988, "Reevaluating Amdahl's law".
    """
    return _ranks(ranks) - _fraction(serial_fraction) * (ranks - 1)


def karp_flatt(measured_speedup: float, ranks: int) -> float:
    """Serial fraction that a measured speed-up betrays: (1/speedup - 1/n) / (1 - 1/n). Grows with n where overhead does.

    Source: Karp and Flatt 1990, "Measuring parallel processor performance".
    """
    if _ranks(ranks) == 1:
        raise ValueError("ranks=1: one rank says nothing about the serial fraction.")
    return (1 / _number("measured_speedup", measured_speedup, above=True) - 1 / ranks) / (1 - 1 / ranks)


def speedup(t_1: float, t_n: float) -> float:
    """t_1 / t_n, for seconds of the same work on one rank and on n."""
    return _number("t_1", t_1, above=True) / _number("t_n", t_n, above=True)


def efficiency(measured_speedup: float, ranks: int) -> float:
    """speedup / n: the part of n ranks that is put to use."""
    return _number("measured_speedup", measured_speedup) / _ranks(ranks)


def published(name: str) -> dict:
    """A table from a paper: `title`, `source`, `unit` of its numbers, and `rows`, one dict per row (`pandas.DataFrame(table["rows"])`).

    Errors: ValueError if there is no table of this name; the message lists those that there are.
    """
    table = _one_of("name", name, json.loads(PUBLISHED_FILE.read_text(encoding="utf-8")))
    return {**table, "rows": [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]}


def _one_of(name: str, value, allowed):
    """The entry for `value` where `allowed` is a dict, else `value` itself."""
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value not in allowed:
        raise ValueError(f"{name}={value!r}: it must be one of {', '.join(map(str, allowed))}.")
    return allowed[value] if isinstance(allowed, dict) else value


def _whole(name: str, value, least: int = 1) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name}={value!r}: it must be a whole number of at least {least}.")
    return value


def _number(name: str, value, above: bool = False):
    if isinstance(value, bool) or not hasattr(value, "__float__") or not (value > 0 or value == 0 and not above) or value == math.inf:
        raise ValueError(f"{name}={value!r}: it must be a number {'above 0' if above else 'of at least 0'}.")
    return value


def _fraction(value):
    if not 0 <= _number("serial_fraction", value) <= 1:
        raise ValueError(f"serial_fraction={value!r}: it must be from 0 to 1.")
    return value


def _ranks(value):
    if _number("ranks", value) < 1:                # a curve may ask for 1.5 ranks
        raise ValueError(f"ranks={value!r}: it must be at least 1.")
    return value
