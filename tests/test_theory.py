"""Every closed form against something that does not know it: a simulation that counts, torch itself, or the
table in the paper.
"""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib import theory

RANKS = [1, 2, 3, 4, 7, 8]


# -- collectives: count what is sent


def ring_all_reduce(values: list[list[int]]) -> tuple[list[int], list[int]]:
    """Pass chunks around a ring until every rank holds every sum; chunks that each rank sent in either
    half.
    """
    n = len(values)
    sent = [0, 0]
    for shift in range(n - 1):  # reduce-scatter: rank i sends chunk i - shift to i + 1
        moving = [(i, (i - shift) % n, values[i][(i - shift) % n]) for i in range(n)]
        for i, chunk, value in moving:
            values[(i + 1) % n][chunk] += value
        sent[0] += 1
    for shift in range(n - 1):  # all-gather: rank i holds the sum of chunk i + 1
        moving = [(i, (i + 1 - shift) % n, values[i][(i + 1 - shift) % n]) for i in range(n)]
        for i, chunk, value in moving:
            values[(i + 1) % n][chunk] = value
        sent[1] += 1
    return values, sent


@pytest.mark.parametrize("n", RANKS)
def test_ring_collectives_send_what_a_ring_sends(n):
    values = [[random.randrange(1000) for _ in range(n)] for _ in range(n)]
    sums = [sum(column) for column in zip(*values)]
    after, (first_half, second_half) = ring_all_reduce(values)
    assert all(row == sums for row in after)
    chunk_bytes = 40
    assert theory.collective_bytes("reduce_scatter", n * chunk_bytes, n) == pytest.approx(
        first_half * chunk_bytes
    )
    assert theory.collective_bytes("all_gather", n * chunk_bytes, n) == pytest.approx(
        second_half * chunk_bytes
    )
    assert theory.collective_bytes("all_reduce", n * chunk_bytes, n) == pytest.approx(
        (first_half + second_half) * chunk_bytes
    )
    assert theory.collective_bytes("all_to_all", n * chunk_bytes, n) == pytest.approx((n - 1) * chunk_bytes)


@pytest.mark.parametrize("n", RANKS)
def test_rooted_collectives_are_means_over_the_ranks(n):
    S, have, sent = 60.0 * n, 1, 0
    while have < n:  # binomial tree: whoever has the tensor passes it on
        new = min(have, n - have)
        have, sent = have + new, sent + new * S
    assert (
        theory.collective_bytes("broadcast", S, n)
        == theory.collective_bytes("reduce", S, n)
        == pytest.approx(sent / n)
    )
    chunks = sum(S / n for rank in range(n) if rank != 0)
    assert (
        theory.collective_bytes("gather", S, n)
        == theory.collective_bytes("scatter", S, n)
        == pytest.approx(chunks / n)
    )


def test_point_to_point_and_barrier():
    assert [theory.collective_bytes(op, 10, 2) for op in ("send", "recv", "barrier")] == [10, 0, 0]


@pytest.mark.parametrize("op, rounds", [("all_reduce", 6), ("reduce_scatter", 3), ("all_gather", 3)])
def test_ring_seconds_by_message(op, rounds):
    S, a, b, g = 4000, 1e-3, 1e-6, 1e-7
    seconds = sum(
        a + S / 4 * b + (S / 4 * g if op != "all_gather" and turn < 3 else 0) for turn in range(rounds)
    )
    assert theory.ring_seconds(op, S, 4, a, b, g) == pytest.approx(seconds)
    assert theory.ring_seconds(op, S, 4, 0, 1) == pytest.approx(theory.collective_bytes(op, S, 4))
    in_turn = sum(theory.ring_seconds(op, S / 8, 4, a, b, g) for _ in range(8))
    assert theory.ring_seconds(op, S, 4, a, b, g, calls=8) == pytest.approx(in_turn)
    assert theory.ring_seconds(op, S, 1, a, b, g) == 0


def test_bandwidths_as_nccl_tests_count_them():
    assert theory.bandwidth("all_reduce", 1e9, 0.5, 8) == (2e9, 2e9 * 14 / 8)
    assert theory.bandwidth("all_gather", 1e9, 0.5, 8) == (2e9, 2e9 * 7 / 8)
    assert theory.bandwidth("broadcast", 1e9, 0.5, 8) == (2e9, 2e9)
    # A ring whose links carry B shows busbw = B for any number of ranks: that is what the factor is for.
    for n in (2, 3, 8):
        assert theory.bandwidth("all_reduce", 1e6, theory.ring_seconds("all_reduce", 1e6, n, 0, 1e-9), n)[
            1
        ] == pytest.approx(1e9)


def test_step_bytes_add_up_from_collectives():
    P, n = 1200, 4
    sent = lambda *ops: pytest.approx(sum(theory.collective_bytes(op, P, n) for op in ops))
    assert theory.step_bytes("data_parallel", P, n) == sent("all_reduce")
    assert (
        theory.step_bytes("zero_1", P, n)
        == theory.step_bytes("zero_2", P, n)
        == sent("reduce_scatter", "all_gather")
    )
    assert (
        theory.step_bytes("zero_3", P, n)
        == sent("all_gather", "all_gather", "reduce_scatter")
        == pytest.approx(2.25 * P)
    )
    assert (
        theory.step_bytes("fully_shard_gloo", P, n)
        == sent("all_gather", "all_gather", "all_reduce")
        == pytest.approx(3.0 * P)
    )
    assert (
        theory.step_bytes("zero_redundancy_optimizer", P, n)
        == sent("all_reduce", "broadcast")
        == pytest.approx(2.25 * P)
    )


# -- memory


def test_zero_table_1_to_the_last_digit_printed():
    table = theory.published("zero_table_1")
    assert len(table["rows"]) == 18
    for row in table["rows"]:
        for stage in (1, 2, 3):
            states = theory.zero_memory(row["model"] * 1e9, row["devices"], stage, "mixed")
            # in the first row nothing is sharded yet
            printed = row[f"stage_{stage}"] if row["devices"] > 1 else row["model"] * 16
            digits = len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0
            # The paper rounds some entries and cuts others off (4187.5 is printed as 4187).
            assert abs(sum(states.values()) / 1e9 - printed) < 10**-digits, (row, stage)


def test_zero_table_2_theory_column_is_32_gb_over_stage_1():
    largest = 32e9 / sum(theory.zero_memory(1, 64, 1, "mixed").values()) / 1e9
    for row in theory.published("zero_table_2")["rows"]:
        assert row["theory"] == pytest.approx(largest * row["model_parallel_size"], rel=0.01)
        assert row["measured"] < row["theory"]


@pytest.mark.parametrize("precision, whole", [("fp32", (4, 4, 8)), ("mixed", (2, 2, 12))])
def test_zero_stages_shard_one_thing_after_the_other(precision, whole):
    for n in RANKS:
        for stage, sharded in enumerate([(1, 1, 1), (1, 1, n), (1, n, n), (n, n, n)]):
            states = theory.zero_memory(1000, n, stage, precision)
            assert list(states) == ["params", "grads", "optimizer_states"]
            assert list(states.values()) == [
                pytest.approx(1000 * size / parts) for size, parts in zip(whole, sharded)
            ]


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_state_is_exact(optimizer_type):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in [(3, 5), (7,), (), (2, 3, 4), (0, 4)]]
    optimizer = optimizer_type(params)
    sum(p.sum() for p in params).backward()
    optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert (
        theory.adam_state_bytes(p.shape for p in params) == theory.adam_state_bytes([15, 7, 1, 24, 0]) == held
    )


@pytest.mark.parametrize("shape", [(1,), (4,), (5,), (10, 3), (7, 2, 2), (3, 0), (0, 3)])
@pytest.mark.parametrize("n", RANKS)
def test_fully_shard_deals_rows_as_torch_chunk_does(shape, n):
    chunks = list(torch.ones(shape).chunk(n)) if shape[0] else []
    numels = [chunk.numel() for chunk in chunks] + [0] * (n - len(chunks))
    assert [theory.fully_shard_local_numel(shape, rank, n) for rank in range(n)] == numels
    assert {theory.fully_shard_local_numel(shape, rank, n, padded=True) for rank in range(n)} == {max(numels)}


def test_activation_bytes_of_korthikanti_table_2():
    s, b, h, a, t = 2048, 4, 6144, 64, 8
    sbh, scores = s * b * h, 5 * a * s / h
    size = lambda **options: theory.activation_bytes(b, s, h, a, **options)
    assert size() == size(sequence_parallel=True) == pytest.approx(sbh * (34 + scores))
    assert size(tp_size=t) == pytest.approx(sbh * (10 + 24 / t + scores / t))
    assert size(tp_size=t, sequence_parallel=True) == pytest.approx(sbh / t * (34 + scores))
    assert size(tp_size=t, recompute="selective") == pytest.approx(sbh * (10 + 24 / t))
    assert size(tp_size=t, sequence_parallel=True, recompute="selective") == pytest.approx(34 * sbh / t)
    assert size(recompute="full") == 2 * sbh


def test_tensor_parallel_bytes():
    assert theory.tensor_parallel_bytes(2, 8, 16, 4) == pytest.approx(8 * 2 * 8 * 16 * 3 / 4 * 4)
    assert theory.tensor_parallel_bytes(2, 8, 16, 1) == 0


def test_context_parallel_bytes():
    """Of keys of 100 bytes and queries of 800: a ring of four; a gathering; an all_to_all."""
    sizes = {"batch": 1, "sequence": 5, "heads": 8, "kv_heads": 1, "head_dim": 5, "cp_size": 4}
    found = {method: theory.context_bytes(method, **sizes) for method in ("ring", "all_gather", "ulysses")}
    assert found == {"ring": 450, "all_gather": 300, "ulysses": 675}
    forward = [theory.context_bytes(method, **sizes, backward=False) for method in found]
    assert forward == [150, 150, 337.5]
    assert all(theory.context_bytes(method, **sizes | {"cp_size": 1}) == 0 for method in found)


def test_keys_that_a_rank_holds():
    held = {
        method: [theory.keys_held_bytes(method, 60, n) for n in (1, 2, 4)]
        for method in ("all_gather", "ring", "ulysses")
    }
    assert held == {"all_gather": [120] * 3, "ring": [120, 120, 60], "ulysses": [120, 60, 30]}


@pytest.mark.parametrize("sequence, n", [(16, 4), (17, 4), (23, 3), (2, 2), (5, 1)])
def test_causal_pairs_are_those_of_the_positions(sequence, n):
    pairs = [position + 1 for position in range(sequence)]
    cut = [list(part) for part in np.array_split(pairs, n)]
    assert theory.causal_pairs("contiguous", sequence, n) == [sum(part) for part in cut]
    halves = [sum(part) for part in np.array_split(pairs, 2 * n)]
    zigzag = theory.causal_pairs("zigzag", sequence, n)
    assert zigzag == [halves[rank] + halves[2 * n - 1 - rank] for rank in range(n)]
    assert sum(zigzag) == sequence * (sequence + 1) / 2


def test_ring_efficiency_is_work_over_the_time_of_the_slowest_in_each_step():
    for n in (1, 2, 4, 8):
        step_times = [0.5] + [1.0] * (n - 1)  # the diagonal, then a full block on the last rank
        work = n * 0.5 + sum(range(n))
        assert theory.ring_efficiency("contiguous", n) == pytest.approx(work / (n * sum(step_times)))
        assert theory.ring_efficiency("zigzag", n) == 1
    for row in theory.published("causal_ring")["rows"]:
        assert abs(row["ring"] / 100 - theory.ring_efficiency("contiguous", 8)) < 0.03
        assert row["ring"] < row["striped"] < row["zigzag"] < 100


def test_expert_parallel_bytes_do_not_grow_with_the_ranks_and_those_of_gathered_tokens_do():
    assert theory.expert_parallel_bytes(10, 16, 2, 4) == 4 * 2 * 10 * 16 * 3 / 4 * 4
    assert theory.expert_parallel_bytes(10, 16, 2, 1) == 0
    assert all(theory.expert_parallel_bytes(10, 16, 1, n) < 4 * 10 * 16 * 4 for n in (2, 64, 1024))
    gathered = [theory.expert_parallel_bytes(10, 16, k, 8, gathered=True) for k in (1, 2)]
    assert gathered == [4 * 7 * 10 * 16 * 4] * 2


def test_compressed_bytes_that_are_gathered_grow_with_the_ranks_and_sums_do_not():
    numel, plain = 4096 * 256, theory.collective_bytes("all_reduce", 4 * 4096 * 256, 4)
    assert theory.compressed_bytes("rounded", numel, 4) == plain / 2
    assert theory.compressed_bytes("eight_bit", numel, 4) == plain / 4
    assert theory.compressed_bytes("top_k", numel, 4, share=1.0) == 3 * 8 * numel
    assert theory.compressed_bytes("top_k", 10, 2, share=0.01) == 8  # one number, at least
    assert theory.compressed_bytes("one_bit", 9, 3) == 2 * (2 + 4)
    low = theory.compressed_bytes("low_rank", (4096, 256), 4, rank=3)
    assert low == 2 * 3 / 4 * 4 * 3 * (4096 + 256)
    assert low == theory.compressed_bytes("low_rank", (4096, 16, 16), 4, rank=3)  # rows, and all the rest
    assert theory.compressed_bytes("low_rank", (4, 4), 4) == theory.compressed_bytes("low_rank", 16, 4)
    # one bit of 32, gathered: n / 64 of an all_reduce
    for n in (2, 64):
        whole = theory.collective_bytes("all_reduce", 4 * numel, n)
        assert theory.compressed_bytes("one_bit", numel, n) / whole == pytest.approx(n / 64, rel=1e-4)
    assert all(theory.compressed_bytes(name, 16, 1) == 0 for name in ("rounded", "top_k", "one_bit"))


def test_expert_numel_gives_the_parameters_that_papers_print():
    for row in theory.published("mixtures")["rows"]:
        one = theory.expert_numel(
            row["hidden"],
            row["intermediate"],
            row["num_experts"],
            row["top_k"],
            num_shared=row["num_shared"],
        )
        total, active = (row["moe_layers"] * one[which] / 1e9 for which in ("total", "active"))
        rest = row["total"] - total  # attention, embeddings, dense layers: every token meets them
        assert 0 < rest < 0.05 * row["total"]
        assert rest + active == pytest.approx(row["active"], rel=0.03)


# -- pipelines: play the schedule out


def play(orders: list[list[tuple[str, int, int]]], num_chunks: int = 1) -> tuple[float, list[int]]:
    """Run (kind, chunk, micro-batch) lists, one per stage, each piece one slot long, as early as what it
    waits for allows.

    Returns the fraction of idle time, and the most micro-batches that each stage held between forward and
    backward.
    """
    p, done, clocks, next_piece = len(orders), {}, [0] * len(orders), [0] * len(orders)
    live, most = [0] * p, [0] * p
    while any(next_piece[s] < len(orders[s]) for s in range(p)):
        for s in range(p):
            if next_piece[s] == len(orders[s]):
                continue
            kind, chunk, m = orders[s][next_piece[s]]
            position, last = chunk * p + s, num_chunks * p - 1
            if kind == "F":
                waits = [("F", position - 1, m)] if position else []
            else:
                waits = [("F", position, m)] + ([("B", position + 1, m)] if position < last else [])
            if all(w in done for w in waits):
                clocks[s] = done[kind, position, m] = max([clocks[s], *(done[w] for w in waits)]) + 1
                next_piece[s] += 1
                live[s] += 1 if kind == "F" else -1
                most[s] = max(most[s], live[s])
    busy = sum(len(order) for order in orders)
    return 1 - busy / (p * max(clocks)), most


def gpipe(p, m, stage):
    return [("F", 0, i) for i in range(m)] + [("B", 0, i) for i in range(m)]


def one_f_one_b(p, m, stage):
    warm = min(p - stage - 1, m)
    order = [("F", 0, i) for i in range(warm)]
    for i in range(m - warm):
        order += [("F", 0, warm + i), ("B", 0, i)]
    return order + [("B", 0, i) for i in range(m - warm, m)]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 4, 16])
@pytest.mark.parametrize("name, schedule", [("gpipe", gpipe), ("1f1b", one_f_one_b)])
def test_bubble_and_activations_in_flight_of_a_schedule_played_out(p, m, name, schedule):
    bubble, most = play([schedule(p, m, stage) for stage in range(p)])
    assert theory.bubble_fraction(p, m) == pytest.approx(bubble)
    assert [theory.microbatches_in_flight(name, stage, p, m) for stage in range(p)] == most


@pytest.mark.parametrize("p, m, v", [(2, 4, 2), (4, 8, 2), (4, 4, 3)])
def test_interleaved_bubble(p, m, v):
    forward = [("F", chunk, group + i) for group in range(0, m, p) for chunk in range(v) for i in range(p)]
    assert theory.bubble_fraction(p, m, v) == pytest.approx(play([forward] * p, v)[0])


def seconds(orders: list[list[tuple[str, int, int]]], forward: float, backward: float, late: float) -> float:
    """How long a step takes if a message needs `late` from the end of what made it."""
    ends, clocks, left = {}, [0.0] * len(orders), [list(order) for order in orders]
    while any(left):
        for s, order in enumerate(left):
            while order:
                kind, _, m = order[0]
                source = s - 1 if kind == "F" else s + 1
                if 0 <= source < len(orders) and (kind, m, source) not in ends:
                    break
                there = ends[kind, m, source] + late if 0 <= source < len(orders) else 0.0
                clocks[s] = max(clocks[s], there) + (forward if kind == "F" else backward)
                ends[kind, m, s] = clocks[s]
                order.pop(0)
    return max(clocks)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 8, 13])
@pytest.mark.parametrize("name, schedule", [("gpipe", gpipe), ("1f1b", one_f_one_b)])
@pytest.mark.parametrize("forward, backward, late", [(1, 2, 0.25), (1, 1, 1), (1, 2, 5)])
def test_a_step_with_late_messages_played_out(p, m, name, schedule, forward, backward, late):
    found = seconds([schedule(p, m, stage) for stage in range(p)], forward, backward, late)
    waited = theory.messages_waited_for(name, p, m) * late
    assert found == pytest.approx((m + p - 1) * (forward + backward) + waited)


def test_gpipe_with_many_microbatches_comes_near_the_model():
    rows = [
        row
        for row in theory.published("gpipe_speedup")["rows"]
        if row["model"] == "Transformer" and row["num_microbatches"] == 32
    ]
    for row in rows:
        model = (
            row["num_stages"]
            * (1 - theory.bubble_fraction(row["num_stages"], 32))
            / (2 * (1 - theory.bubble_fraction(2, 1)))
        )
        assert 0.9 * model < row["speedup"] < model
    assert len(rows) == 3


def test_on_gpus_amoebanet_lies_between_the_paper_and_the_model():
    def speedups(table):
        rows = [row for row in theory.published(table)["rows"] if row["model"] == "AmoebaNet"]
        return {(row["num_stages"], row["num_microbatches"]): row["speedup"] for row in rows}

    paper, gpus = speedups("gpipe_speedup"), speedups("torchgpipe_speedup")
    assert paper.keys() == gpus.keys()
    for k in (2, 4, 8):
        assert paper[k, 32] < gpus[k, 32] < k * 32 / (32 + k - 1)


# -- speed-up laws


def test_speed_up_laws_agree_with_each_other():
    for n in (2, 4, 100):
        for f in (0.0, 0.05, 0.5, 1.0):
            assert theory.karp_flatt(theory.amdahl(n, f), n) == pytest.approx(f)
            scaled = f + (1 - f) * n  # the work that n ranks did in one unit of time, on one rank
            assert theory.gustafson(n, f) == pytest.approx(scaled)
            assert theory.amdahl(n, f / scaled) == pytest.approx(scaled)
    assert theory.amdahl(1, 0.3) == theory.gustafson(1, 0.3) == 1
    assert theory.amdahl(1e12, 0.1) == pytest.approx(10)
    assert theory.speedup(6.0, 2.0) == 3 and theory.efficiency(3.0, 4) == 0.75


# -- published tables, errors, weight


def test_every_published_table_can_be_read_and_names_its_source():
    with pytest.raises(ValueError, match="zero_table_1") as error:
        theory.published("nothing")
    names = str(error.value).rstrip(".").partition("one of ")[2].replace("'", "").split(", ")
    assert len(names) >= 10
    for name in names:
        table = theory.published(name)
        assert len(table["source"]) > 20 and table["title"] and table["unit"]
        assert all(list(row) == table["columns"] for row in table["rows"]) and table["rows"]


def test_goyal_gradients_are_fp32():
    (row,) = theory.published("goyal_resnet50")["rows"]
    assert row["gradient_mb"] == 25 * 4 and row["base_gpus"] < row["gpus"]


def test_megatron_percentages_are_of_the_a100_peak():
    for row in theory.published("megatron_table_1")["rows"]:
        assert round(row["tflops_per_gpu"] / 312 * 100) == row["percent_of_peak"]


def test_megatron_configurations_fit_the_models_and_the_gpus():
    rows = theory.published("megatron_configurations")["rows"]
    for row, measured in zip(rows, theory.published("megatron_table_1")["rows"], strict=True):
        h, replicas = row["hidden"], row["gpus"] // (row["tp_size"] * row["pp_size"])
        numel = row["layers"] * (12 * h**2 + 13 * h) + (51200 + 2048) * h
        assert round(numel / 1e9, 1) == pytest.approx(row["model"], abs=0.11) and (
            row["model"],
            row["gpus"],
        ) == (measured["model"], measured["gpus"])
        assert (
            replicas * row["tp_size"] * row["pp_size"] == row["gpus"] and row["layers"] % row["pp_size"] == 0
        )
        assert row["batch_size"] % (replicas * row["micro_batch_size"]) == 0


def test_llama3_took_six_flops_per_parameter_and_token():
    (row,) = theory.published("llama3_405b")["rows"]
    passes = theory.pass_flop(row["model"] * 1e9, row["tokens"] * 1e12)
    assert sum(passes.values()) == pytest.approx(row["flops"] * 1e25, rel=0.01)


def test_a_pass_has_the_flop_that_torch_counts():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 4, bias=False))
    numel, x = sum(p.numel() for p in layers.parameters()), torch.ones(5, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = layers(x).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}
    assert theory.pass_flop(numel, 5) == counted


def test_megatron_tensor_parallel_models_grow_with_the_gpus_and_lose_a_little_each_time():
    rows = theory.published("megatron_tensor_parallel")["rows"]
    assert all(0.8 < row["model"] / row["tp_size"] / rows[0]["model"] < 1.01 for row in rows)
    efficiencies = [row["efficiency_percent"] for row in rows]
    assert efficiencies[0] == 100 and efficiencies == sorted(efficiencies, reverse=True)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: theory.collective_bytes("allreduce", 8, 2), "'all_reduce', 'reduce_scatter'"),
        (lambda: theory.collective_bytes("all_reduce", -1, 2), "payload_bytes"),
        (lambda: theory.collective_bytes("all_reduce", math.nan, 2), "payload_bytes"),
        (lambda: theory.collective_bytes("all_reduce", 8, 0), "group_size"),
        (lambda: theory.collective_bytes("all_reduce", 8, 2.5), "group_size"),
        (lambda: theory.bandwidth("all_reduce", 8, 0, 2), "seconds"),
        (
            lambda: theory.ring_seconds("broadcast", 8, 2, 0, 0),
            "'all_reduce', 'reduce_scatter', 'all_gather'",
        ),
        (lambda: theory.step_bytes("zero_4", 8, 2), "data_parallel"),
        (lambda: theory.zero_memory(8, 2, 4), "0, 1, 2, 3"),
        (lambda: theory.zero_memory(8, 2, True), "stage"),
        (lambda: theory.zero_memory(8, 2, 1, "bf16"), "'fp32', 'mixed'"),
        (lambda: theory.fully_shard_local_numel((), 0, 2), "at least one dimension"),
        (lambda: theory.fully_shard_local_numel((4,), 2, 2), "less than 2"),
        (lambda: theory.bubble_fraction(0, 4), "num_stages"),
        (lambda: theory.microbatches_in_flight("zero bubble", 0, 2, 4), "'gpipe', '1f1b'"),
        (lambda: theory.microbatches_in_flight("1f1b", 2, 2, 4), "less than 2"),
        (lambda: theory.activation_bytes(1, 8, 8, 2, recompute="some"), "selective"),
        (lambda: theory.amdahl(4, 1.5), "from 0 to 1"),
        (lambda: theory.amdahl(0.5, 0.5), "at least 1"),
        (lambda: theory.karp_flatt(1.0, 1), "one rank"),
        (lambda: theory.speedup(1.0, 0.0), "t_n"),
        (lambda: theory.ring_seconds("all_reduce", 8, 2, 0, 0, calls=0), "calls"),
        (lambda: theory.server_with_straggler(2, 0.1, 0.5), "slower=0.5"),
        (lambda: theory.mtbf_seconds(100, 0, 8, 8), "failures"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_theory_imports_nothing_heavy():
    program = (
        "import sys; from course_lib import theory; print(*{'torch', 'numpy', 'pandas', 'matplotlib'} &"
        " set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


# -- trees, and hosts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_tree_takes_its_levels_and_the_pieces_that_follow(n, pieces):
    """A rank passes one piece on at a time, the next one when its children have the last."""
    children = {rank: [c for c in (2 * rank + 1, 2 * rank + 2) if c < n] for rank in range(n)}
    has = {0: [0] * pieces}  # when each piece is there
    for rank in range(n):
        free = 0
        for child in children[rank]:
            has[child] = []
        for at in has[rank]:
            free = max(free, at) + 1
            for child in children[rank]:
                has[child].append(free)
    last = max(max(times) for times in has.values())
    alpha, beta, nbytes = 0.5, 0.25, 12.0
    each = alpha + nbytes / pieces * beta
    found = theory.tree_seconds("broadcast", nbytes, n, alpha, beta, pieces)
    depth = (n.bit_length() - 1) if n > 1 else 0  # of this tree
    assert last == (depth + pieces - 1 if n > 1 else 0)
    levels = math.ceil(math.log2(n)) if n > 1 else 0  # of one that doubles: never less
    assert found == pytest.approx((levels + pieces - 1) * each if n > 1 else 0) and levels >= depth
    assert theory.tree_seconds("all_reduce", nbytes, n, alpha, beta, pieces) == pytest.approx(2 * found)


def exchanges(algorithm: str, n: int) -> list[list[tuple[int, int, float]]]:
    """The rounds of an all_reduce, one after the other, each with its messages (from, to, share of S)."""
    if algorithm == "star":  # the root takes one message after the other
        return [[(rank, 0, 1.0)] for rank in range(1, n)] + [[(0, rank, 1.0)] for rank in range(1, n)]
    ring = [(rank, (rank + 1) % n) for rank in range(n)]
    if algorithm in ("ring", "whole tensors"):
        rounds, share = (2 * (n - 1), 1 / n) if algorithm == "ring" else (n - 1, 1.0)
        return [[(*pair, share) for pair in ring] for _ in range(rounds)]
    distances = [2**k for k in range(n.bit_length() - 1)]
    down = [
        [(rank, rank ^ far, 1.0 if algorithm == "doubling" else 0.5 ** (k + 1)) for rank in range(n)]
        for k, far in enumerate(distances)
    ]
    return down if algorithm == "doubling" else down + down[::-1]


@pytest.mark.parametrize("algorithm", ["star", "whole tensors", "ring", "doubling", "halving-doubling"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_an_all_reduce_takes_what_its_rounds_take(algorithm, n):
    alpha, beta, S = 0.5, 0.25, 48.0
    if n == 3 and "doubling" in algorithm:
        with pytest.raises(ValueError, match="power of two"):
            theory.all_reduce_seconds(algorithm, S, n, alpha, beta)
        return
    rounds = exchanges(algorithm, n) if n > 1 else []
    # in a round all links work at once, each way; a round takes as long as its longest message
    took = sum(alpha + max(share for _, _, share in messages) * S * beta for messages in rounds)
    assert theory.all_reduce_seconds(algorithm, S, n, alpha, beta) == pytest.approx(took)
    if algorithm == "ring":
        assert took == pytest.approx(theory.ring_seconds("all_reduce", S, n, alpha, beta))


@pytest.mark.parametrize("hosts, per_host", [(1, 4), (2, 2), (2, 8), (3, 2), (4, 1)])
def test_what_leaves_a_host_is_what_a_ring_sends_over_its_border(hosts, per_host):
    n = hosts * per_host
    _, (first_half, second_half) = ring_all_reduce([[1] * n for _ in range(n)])
    chunk = 7.0
    crossing = (first_half + second_half) * chunk if hosts > 1 else 0  # by one rank of each host
    assert theory.host_bytes(n * chunk, hosts, per_host) == pytest.approx(crossing)
    _, (first_half, second_half) = ring_all_reduce([[1] * hosts for _ in range(hosts)])
    of_sums = (first_half + second_half) * n * chunk / hosts
    assert theory.host_bytes(n * chunk, hosts, per_host, hosts_first=True) == pytest.approx(of_sums)


# -- cables


def all_to_all(n):
    return [(a, b) for a in range(n) for b in range(n) if a != b]


def in_a_ring(order):
    return list(zip(order, order[1:] + order[:1]))


@pytest.mark.parametrize("over", [1, 2, 4])
def test_a_fat_tree_is_as_narrow_as_its_way_up(over):
    n, leaf, options = 32, 8, {"leaf": 8, "oversubscribed": over}
    assert theory.cable_load("fat tree", n, in_a_ring([*range(n)]), **options) == max(1, over / leaf)
    far = in_a_ring([leaf * (i % 4) + i // 4 for i in range(n)])  # nobody's neighbour is on its leaf
    assert theory.cable_load("fat tree", n, far, **options) == over
    up = over * (n - leaf) / (n - 1)  # of what a server sends, what leaves its leaf
    assert theory.cable_load("fat tree", n, all_to_all(n), **options) == pytest.approx(max(1, up))
    assert theory.cable_load("switch", n, far) == theory.cable_load("switch", n, all_to_all(n)) == 1


@pytest.mark.parametrize("side", [4, 8, 12])
def test_a_torus_likes_neighbours_and_its_side_counts_for_all_to_all(side):
    n = side**2
    assert theory.cable_load("torus", n, in_a_ring([*range(n)])) == 1
    # the mean way is side / 4 along each axis, and a server has four cables
    assert theory.cable_load("torus", n, all_to_all(n)) == pytest.approx(side / 8 * n / (n - 1))
    opposite = [(0, side // 2 * side + side // 2)]
    assert theory.cable_load("torus", n, opposite) == n  # one message, one cable at a time


def test_cables_count_each_way_and_each_message():
    assert theory.cable_load("switch", 3, [(0, 1), (2, 1)]) == 2 * 3 / 2
    assert theory.cable_load("switch", 2, [(0, 1), (1, 0)]) == 1
    assert theory.cable_load("switch", 2, [(0, 0)]) == 0
    assert theory.cable_load("torus", 16, [(0, 3), (3, 0)]) == 16 / 2, "around the end, one cable, each way"
    assert theory.cable_load("torus", 16, [(0, 3), (4, 2)]) == 16 / 2, "rows have cables of their own"
    with pytest.raises(ValueError, match="a torus has a square"):
        theory.cable_load("torus", 8, [(0, 1)])
    with pytest.raises(ValueError, match="pairs of servers"):
        theory.cable_load("switch", 2, [(0, 2)])


# -- buckets: play them through


@pytest.mark.parametrize("backward_s, communication_s", [(8.0, 3.0), (3.0, 8.0), (4.0, 4.0), (5.0, 0.0)])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_buckets_travel_when_they_are_ready_and_the_link_is_free(backward_s, communication_s, k):
    forward_s, free, found = 2.0, 0.0, []
    for nth in range(1, k + 1):
        begin = max(forward_s + backward_s * nth / k, free)
        free = begin + communication_s / k
        found.append((begin, free))
    given = forward_s, backward_s, communication_s, k
    for mine, theirs in zip(found, theory.bucket_seconds(*given), strict=True):
        assert mine == pytest.approx(theirs)
    assert theory.overlapped_seconds(*given) == pytest.approx(free)
    one = theory.overlapped_seconds(*given[:3], 1)
    assert one == pytest.approx(forward_s + backward_s + communication_s)  # nothing is hidden
    ends = forward_s + backward_s
    beside = sum(min(end, ends) - min(begin, ends) for begin, end in found)  # what travels in backward
    hidden = theory.hidden_fraction(*given[1:])
    assert hidden * communication_s == pytest.approx(beside)
    assert free - ends == pytest.approx((1 - hidden) * communication_s)  # the rest is exposed


# -- servers, staleness, local steps: play them through


def served(seconds: list, updates: int, bound: float) -> tuple[list[int], float]:
    """Staleness of each update, and when the last one came, by workers that need so long for a gradient, or
    for each of their gradients.
    """
    W = len(seconds)
    clocks, waiting, given, now = [0] * W, list(range(W)), 0, 0.0
    under_way: list[tuple[float, int, int]] = []
    staleness: list[int] = []
    for version in range(updates):
        for worker in list(waiting):
            if given < updates and clocks[worker] <= min(clocks) + bound:
                its = seconds[worker]
                took = its[clocks[worker]] if isinstance(its, list) else its
                under_way.append((now + took, worker, version))
                waiting.remove(worker)
                given += 1
        now, worker, pulled = min(under_way)
        under_way.remove((now, worker, pulled))
        staleness.append(version - pulled)
        clocks[worker] += 1
        waiting.append(worker)
    return staleness, now


@pytest.mark.parametrize("seconds", [[1.0] * 3, [1.0, 1.5, 7.0], [3.0, 1.0, 1.0, 1.2, 9.0]])
def test_staleness_is_that_of_a_server_that_is_played_through(seconds):
    W, N = len(seconds), 40 * len(seconds)
    free, _ = served(seconds, N, math.inf)
    assert sum(free) / N == pytest.approx(theory.mean_staleness(W, N))
    in_step, _ = served(seconds, N, 0)
    assert sum(in_step) / N == pytest.approx(theory.mean_staleness(W, N, bound=0))
    for bound in (0, 1, 3):
        assert max(served(seconds, N, bound)[0]) <= theory.most_staleness(W, bound)
    with pytest.raises(ValueError, match="who is slow"):
        theory.mean_staleness(W, N, bound=2)


@pytest.mark.parametrize("seconds", [[1.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0, 1.3], [1.0, 2.5]])
@pytest.mark.parametrize("bound", [1, 3])
def test_behind_a_straggler_a_bounded_server_is_as_stale_as_one_that_waits_for_all(seconds, bound):
    W, N = len(seconds), 600 * len(seconds)
    late = served(seconds, N, bound)[0][N // 2 :]  # the lead is used up
    found = theory.mean_staleness(W, N, bound, one_is_slow=True)
    assert sum(late) / len(late) == pytest.approx(found, rel=1e-2) and max(late) == W - 1


def test_the_bound_of_staleness_is_reached():
    # one is two ahead when it becomes slow, and the other catches up with it and goes two ahead
    hare, tortoise = [0.1, 0.1, 100.0, 0.1], [1.0, *[0.1] * 9]
    assert max(served([hare, tortoise], 8, 2)[0]) == theory.most_staleness(2, 2)
    assert theory.most_staleness(4, math.inf) == math.inf


def test_updates_per_second_are_those_of_a_server_that_is_played_through():
    seconds = [0.01, 0.01, 0.04]
    for bound, waits in ((0, True), (2, True), (math.inf, False)):
        took = served(seconds, 900, bound)[1]
        assert 900 / took == pytest.approx(theory.updates_per_second(seconds, waits), rel=0.02)


@pytest.mark.parametrize("slower", [1, 1.3, 4])
@pytest.mark.parametrize("bound", [0, 2, math.inf])
def test_a_server_with_a_straggler_is_one_that_is_played_through(slower, bound):
    W, N = 4, 6000
    staleness, took = served([0.02] * (W - 1) + [slower * 0.02], N, bound)
    found = theory.server_with_straggler(W, 0.02, slower, bound)
    assert N / took == pytest.approx(found["updates_per_second"], rel=0.01)
    late = staleness[N // 2 :]  # the lead is used up
    assert sum(late) / len(late) == pytest.approx(found["staleness"], rel=0.01)


@pytest.mark.parametrize("staleness", [0, 1, 2, 8])
def test_a_parabola_rests_below_the_limit_and_not_above(staleness):
    for factor, rests in ((0.97, True), (1.03, False)):
        rate, x = factor * theory.stale_rate_limit(staleness, curvature=3.0), [1.0] * (staleness + 1)
        for _ in range(20_000):
            x.append(min(max(x[-1] - rate * 3.0 * x[-1 - staleness], -1e9), 1e9))
        assert (abs(x[-1]) < 1e-3) == rests


def test_bytes_and_seconds_of_servers_and_of_local_steps():
    assert theory.parameter_server_bytes(100, workers=4, updates=8) == {"server": 1200, "worker": 200}
    assert theory.server_round_seconds(100, 50, workers=3) == 12
    ring = theory.collective_bytes("all_reduce", 100, 4)
    assert theory.local_sgd_bytes(100, 4, 1) == ring and theory.local_sgd_bytes(100, 4, 50) == ring / 50


def test_a_step_waits_for_what_reading_takes_longer_than_computing():
    found = [theory.waiting_fraction(0.032, 0.020, workers) for workers in (0, 1, 2, 4)]
    assert found == pytest.approx([32 / 52, 12 / 32, 0, 0])
    assert theory.waiting_fraction(0.0, 0.1, 0) == 0
