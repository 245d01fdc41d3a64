"""The ledger is right: bytes, memory and times of real ranks against closed forms."""

import functools
import json
import math
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import workers

from course_lib import Job, held, measure, run, theory
from course_lib.collectives import COLLECTIVES
from course_lib.measure.ledger import MEASURES
from course_lib.measure.storages import storage_bytes
from course_lib.ranks import devices, worker

RANKS = (2, 3, 4)
PAYLOADS = (1_000_004, 5_242_892)  # bytes; as numbers of floats, 3 and 4 ranks don't divide both
OPS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "send",
)
NOT_ALONE = {"recv": "the other end of a send", "barrier": "carries no data"}
TOLERANCE = 0.02
COMPUTING = ("forward", "backward", "optimizer")
TABLES = ("steps", "comm", "memory", "timeline")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
needs_two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="there are fewer than two GPUs here"
)
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)
on_all_ranks = pytest.mark.parametrize("ranks", RANKS)


@functools.cache
def job(name: str, ranks: int, *args, **kwargs) -> Job:
    """Run one of the workers' functions on the CPU. Several tests look at the same job."""
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
        return run(getattr(workers, name), *args, ranks=ranks, backend="gloo", **kwargs)


def learning_shapes(told: dict) -> list[tuple]:
    return [shape for shape, learns in zip(told["shapes"], told["learns"]) if learns]


def wire(job: Job, step: int = -1) -> pd.Series:
    """Bytes that each rank sent in a step (by default the last one), in rank order."""
    table = job.steps.pivot(index="rank", columns="step", values="wire_bytes").astype(float)
    return table[table.columns[step]]


def memory(job: Job, category: str) -> list[int]:
    """Bytes of a category, in rank order."""
    return held(job)[category].tolist()


def comm_of(job: Job, rank: int = 0) -> pd.DataFrame:
    return job.comm[job.comm["rank"] == rank]


def close(value: float):
    return pytest.approx(value, rel=TOLERANCE)


# Bytes: one collective at a time


def test_every_collective_with_a_row_is_counted():
    assert set(OPS) == set(COLLECTIVES) - set(NOT_ALONE)


@needs_counters
@on_all_ranks
@pytest.mark.parametrize("op", OPS)
def test_wire_bytes_of_every_collective_are_what_gloo_sends(op, ranks):
    done = job("collectives", ranks, PAYLOADS)
    steps = [2 + i for i, name in enumerate(done.results[0]["order"]) if name == op]
    assert len(steps) == len(PAYLOADS)
    for step, payload in zip(steps, PAYLOADS):
        sent = wire(done, step)
        assert sent.mean() == close(theory.gloo_bytes(op, payload, ranks))
        if op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"):
            assert sent.max() - sent.min() < TOLERANCE * sent.mean(), "every rank sends the same"
        if op == "scatter":
            assert sent[0] == close((ranks - 1) / ranks * payload) and sent[1:].max() < 1000, (
                "the root sends everything"
            )
        if op == "gather":
            assert sent[0] < 1000 and sent[1:].tolist() == [close(payload / ranks)] * (ranks - 1), (
                "the root sends nothing"
            )
        # above, gloo sends more than the algorithm needs
        if op == "reduce" and payload / ranks < 2**21:
            assert sent[0] == close((ranks - 1) / ranks * payload) and sent[1:].tolist() == [
                close(payload)
            ] * (ranks - 1)
        if op == "broadcast":
            assert sent.sum() == close((ranks - 1) * payload), "n-1 ranks receive the tensor once"


@on_all_ranks
def test_comm_has_one_row_per_call_with_payload_and_algorithm_bytes(ranks):
    done = job("collectives", ranks, PAYLOADS)
    payload, r = PAYLOADS[0], (ranks - 1) / ranks
    rounded = math.ceil(payload // 4 / ranks) * ranks * 4
    algorithm = {
        "all_reduce": 2 * r,
        "all_gather": r,
        "reduce_scatter": r,
        "all_to_all": r,
        "send": 1,
        "recv": 0,
        "barrier": 0,
    }
    for rank in range(ranks):
        rows = comm_of(done, rank).set_index("op")
        assert sorted(rows.index) == sorted((*OPS, "recv", "barrier"))
        for op, row in rows.iterrows():
            needs_equal_parts = op in ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
            assert row["payload_bytes"] == (
                0 if op == "barrier" else rounded if needs_equal_parts else payload
            ), op
            assert row["algorithm_bytes"] == pytest.approx(
                theory.collective_bytes(op, row["payload_bytes"], ranks)
            ), op
            if op in algorithm:
                assert row["algorithm_bytes"] == pytest.approx(algorithm[op] * row["payload_bytes"]), op
            assert row["group_size"] == ranks and row["group"] == ",".join(map(str, range(ranks)))
            assert row["dtype"] == ("" if op == "barrier" else "float32")


@needs_counters
def test_subgroups_have_their_own_sizes_members_and_bytes():
    done = job("groups", 4)
    bytes_16, bytes_32 = 300_001 * 2, 300_001 * 4
    for rank in range(4):
        rows = comm_of(done, rank)
        assert rows["op"].tolist() == ["all_reduce"] * 3
        assert rows["group"].tolist() == [
            f"{rank % 2},{rank % 2 + 2}",
            f"{rank // 2 * 2},{rank // 2 * 2 + 1}",
            "0,1,2,3",
        ]
        assert rows["group_size"].tolist() == [2, 2, 4]
        assert rows["dtype"].tolist() == ["float16", "float16", "float32"]
        assert rows["payload_bytes"].tolist() == [bytes_16, bytes_16, bytes_32]
        assert rows["algorithm_bytes"].tolist() == [bytes_16, bytes_16, 1.5 * bytes_32]
    assert wire(done).tolist() == [close(2 * bytes_16 + 1.5 * bytes_32)] * 4, "the bytes of all groups add up"


# Bytes: whole steps


@needs_counters
@on_all_ranks
def test_ddp_sends_the_gradients_around_once(ranks):
    done = job("ddp", ranks, width=1201)
    grads = done.results[0]["grads"]
    for step in range(4):
        assert (
            wire(done, step).tolist() == [close(theory.step_bytes("data_parallel", grads, ranks))] * ranks
            or step == 0
        )
    rows = comm_of(done)
    reduced = rows[rows["op"] == "all_reduce"]
    assert reduced["payload_bytes"].sum() == grads, "frozen parameters are not sent, the tied weight once"
    assert reduced["algorithm_bytes"].sum() == pytest.approx(2 * (ranks - 1) / ranks * grads)
    assert set(reduced["dtype"]) == {"float32"}


@needs_counters
@on_all_ranks
def test_the_fp16_hook_halves_the_bytes(ranks):
    done = job("ddp", ranks, width=1201, hook="fp16")
    grads = done.results[0]["grads"]
    rows = comm_of(done)
    reduced = rows[rows["op"] == "all_reduce"]
    assert set(reduced["dtype"]) == {"float16"} and reduced["payload_bytes"].sum() == grads // 2
    assert wire(done).tolist() == [close((ranks - 1) / ranks * grads)] * ranks


@needs_counters
@on_all_ranks
def test_accumulation_without_sync_sends_as_much_as_one_micro_batch(ranks):
    one, three = job("ddp", ranks, width=1201), job("ddp", ranks, width=1201, accumulate=3)
    assert wire(three).mean() == close(wire(one).mean())
    assert comm_of(three)["op"].tolist().count("all_reduce") == comm_of(one)["op"].tolist().count(
        "all_reduce"
    )
    assert set(three.steps["samples"]) == {24} and set(one.steps["samples"]) == {8}


@needs_counters
@on_all_ranks
def test_zero_redundancy_optimizer_broadcasts_what_it_updates(ranks):
    done = job("ddp", ranks, width=1201, zero=True)
    grads, learning = done.results[0]["grads"], done.results[0]["learning"]
    sent = wire(done)
    assert sent.mean() == close(theory.step_bytes("zero_redundancy_optimizer", grads, ranks))
    owned = [4 * sum(map(math.prod, result["mine"])) for result in done.results]
    assert sent.idxmax() == owned.index(max(owned)) and sent.max() > 1.05 * sent.min(), (
        "who owns more sends more"
    )
    rows = comm_of(done)
    # smaller: DDP's buffer and bucket sizes
    broadcast = rows[(rows["op"] == "broadcast") & (rows["payload_bytes"] > 100)]
    assert len(broadcast) == learning and broadcast["payload_bytes"].sum() == grads


@needs_counters
@on_all_ranks
@pytest.mark.parametrize("reshard", [True, False])
def test_fully_shard_sends_four_thirds_of_its_theory_on_gloo(ranks, reshard):
    done = job("sharded", ranks, reshard=reshard)
    told, r = done.results[0], (ranks - 1) / ranks
    # Each parameter's rows are dealt out in equal numbers, so the last ranks carry padding: 333 rows on 2
    # ranks are 2 x 167.
    gathered, reduced = (
        padded_bytes(told, ranks, 0) * ranks,
        padded_bytes(told, ranks, 0, learning=True) * ranks,
    )
    gathers = 2 if reshard else 1  # for forward, and anew for backward
    rows = comm_of(done).groupby("op")[["payload_bytes", "algorithm_bytes"]].sum()
    assert Counter(comm_of(done)["op"]) == {"all_gather": 3 * gathers, "reduce_scatter": 3}
    assert rows.loc["all_gather", "payload_bytes"] == gathers * gathered
    assert rows.loc["reduce_scatter", "payload_bytes"] == reduced
    assert rows["algorithm_bytes"].sum() == pytest.approx(r * (gathers * gathered + reduced))
    assert wire(done).tolist() == [close(r * (gathers * gathered + 2 * reduced))] * ranks
    # Padding is under 1% here, so the round numbers hold: 3 r P asked for and 4 r P sent, or 2 and 3 without
    # the second gathering.
    assert rows["algorithm_bytes"].sum() == close((gathers + 1) * r * told["params"])
    assert wire(done).mean() == close((gathers + 2) * r * told["params"])


@needs_counters
@on_all_ranks
def test_tensor_parallel_layers_reduce_activations_forward_and_backward(ranks):
    done = job("tensor_parallel", ranks)
    activation = 256 * 64 * 4
    for rank in range(ranks):
        rows = comm_of(done, rank)
        assert rows["op"].tolist() == ["all_reduce"] * 4, "two layers, each once forward and once backward"
        assert set(rows["payload_bytes"]) == {activation} and set(rows["group_size"]) == {ranks}
        assert rows["start_s"].is_unique and rows["start_s"].is_monotonic_increasing, (
            "calls of one size have times of their own"
        )
    assert wire(done).tolist() == [close(4 * 2 * (ranks - 1) / ranks * activation)] * ranks


@needs_counters
@on_all_ranks
def test_pipeline_stages_send_activations_forward_and_gradients_back(ranks):
    done = job("torch_pipeline", ranks, num_microbatches=4)
    boundary = 64 // 4 * 256 * 4  # bytes of one micro-batch between two stages
    for rank in range(ranks):
        neighbours = (rank > 0) + (rank < ranks - 1)
        rows = comm_of(done, rank)
        assert Counter(rows["op"]) == {"send": 4 * neighbours, "recv": 4 * neighbours}
        assert set(rows["payload_bytes"]) == {boundary}
        assert rows["algorithm_bytes"].sum() == 4 * neighbours * boundary
        assert wire(done)[rank] == close(4 * neighbours * boundary)


@needs_counters
@on_all_ranks
def test_hand_written_sends_count_where_they_leave(ranks):
    done = job("send_receive", ranks)
    for rank in range(ranks):
        sends, receives = 1 + (rank == 0), 1 + (rank == 1)
        rows = comm_of(done, rank)
        assert Counter(rows["op"]) == {"send": sends, "recv": receives}
        assert set(rows["dtype"]) == {"float64"} and set(rows["payload_bytes"]) == {800_000}
        assert rows["algorithm_bytes"].sum() == sends * 800_000
        assert wire(done)[rank] == close(sends * 800_000)


# Memory, to the byte


def padded_bytes(told: dict, ranks: int, rank: int, learning: bool = False) -> int:
    shapes = learning_shapes(told) if learning else told["shapes"]
    return sum(4 * theory.fully_shard_local_numel(shape, rank, ranks, padded=True) for shape in shapes)


@on_all_ranks
@pytest.mark.parametrize("bucket_view", [False, True])
def test_ddp_holds_everything_on_every_rank(ranks, bucket_view):
    done = (
        job("ddp", ranks, width=1201, bucket_view=bucket_view)
        if bucket_view
        else job("ddp", ranks, width=1201)
    )
    told = done.results[0]
    assert told["params"] > told["grads"], "one layer is frozen"
    assert memory(done, "params") == [told["params"]] * ranks
    assert memory(done, "grads") == [told["grads"]] * ranks
    # 4: Adam's step counter
    assert memory(done, "optimizer_states") == [2 * told["grads"] + 4 * told["learning"]] * ranks
    assert memory(done, "buffers") == [5 * 4] * ranks
    assert min(memory(done, "peak")) > 0


@on_all_ranks
def test_zero_redundancy_optimizer_holds_the_state_of_its_own_parameters(ranks):
    done = job("ddp", ranks, width=1201, zero=True)
    told = done.results[0]
    mine = [result["mine"] for result in done.results]
    assert Counter(shape for shapes in mine for shape in shapes) == Counter(learning_shapes(told)), (
        "each parameter has one owner"
    )
    assert memory(done, "optimizer_states") == [theory.adam_state_bytes(shapes) for shapes in mine]
    assert (
        memory(done, "params") == [told["params"]] * ranks
        and memory(done, "grads") == [told["grads"]] * ranks
    )


@on_all_ranks
@pytest.mark.parametrize("name", ["sharded", "sharded_gpt"])
def test_fully_shard_holds_padded_shards_and_the_state_of_what_is_there(ranks, name):
    done = job(name, ranks, reshard=True) if name == "sharded" else job(name, ranks)
    told = done.results[0]
    if name == "sharded_gpt":
        assert told["shapes"].count((256, 64)) == 1 + 2, (
            "head and embedding are one weight; the MLP of each block has another such"
        )
    assert not all(told["learns"]), "something is frozen"
    assert memory(done, "params") == [padded_bytes(told, ranks, rank) for rank in range(ranks)]
    assert memory(done, "grads") == [padded_bytes(told, ranks, rank, learning=True) for rank in range(ranks)]
    assert memory(done, "optimizer_states") == [
        theory.adam_state_bytes(
            [theory.fully_shard_local_numel(shape, rank, ranks) for shape in learning_shapes(told)]
        )
        for rank in range(ranks)
    ]
    assert max(memory(done, "params")) < 1.05 * told["params"] / ranks, "it is really sharded"


@on_all_ranks
def test_tensor_parallel_holds_its_part_of_the_weights(ranks):
    done = job("tensor_parallel", ranks)
    # per layer: up and down, up's bias; down's bias is whole
    numel = 2 * (2 * 64 * 516 // ranks + 516 // ranks + 64)
    assert memory(done, "params") == memory(done, "grads") == [4 * numel] * ranks
    assert memory(done, "optimizer_states") == [8 * numel + 4 * 8] * ranks


def test_gradients_of_shards_are_gradients_and_copies_of_parameters_are_optimizer_states():
    done = job("master_copies", 2)
    for rank, told in enumerate(done.results):
        assert told["numel"] < 2 * told["shard"] + 2 and memory(done, "params")[rank] == 2 * told["numel"]
        assert memory(done, "grads")[rank] == 4 * told["shard"], (
            "the gradients of the parameters are gone, those of the shard are there"
        )
        assert memory(done, "optimizer_states")[rank] == (4 + 8) * told["shard"] + 4


def test_shards_that_are_views_of_the_parameters_count_once():
    done = job("views_of_parameters", 1)
    assert [memory(done, category) for category in ("params", "grads", "optimizer_states")] == [
        [400],
        [200],
        [200],
    ]
    unknown = job("views_of_parameters", 1, model_known=False)
    assert [memory(unknown, category) for category in ("params", "grads", "optimizer_states")] == [
        [0],
        [0],
        [200],
    ], "no model: only states"


@pytest.mark.parametrize("options", [{}, {"classify": True}, {"accumulate": 3}, {"wrap": True}], ids=str)
def test_activations_of_an_mlp_are_its_inputs_hidden_layers_and_output(options):
    widths, batch = (64, 129, 50, 10), 33
    done = job("mlp", 2, widths, batch, **options)
    saved = 4 * batch * sum(widths)  # each Linear its input, and the loss its output: every number once
    if options.get("classify"):
        # the labels, int64, and the loss's total weight; the scores became log-probabilities of the same size
        saved += 8 * batch + 4
    assert memory(done, "activations") == [saved] * 2


def test_a_storage_counts_once():
    flat = torch.zeros(100)
    assert (
        storage_bytes([flat[:10], flat[50:], flat.view(10, 10), torch.zeros(3, dtype=torch.float64)])
        == 400 + 24
    )
    seen = set()
    assert storage_bytes([flat], seen) == 400 and storage_bytes([flat[1:], torch.empty(0)], seen) == 0


def test_sparse_gradients_count_as_indices_and_values():
    done = job("sparse_gradients", 2)
    assert (
        memory(done, "params") == [100 * 8 * 4] * 2 and memory(done, "optimizer_states")[0] >= 2 * 100 * 8 * 4
    )
    assert memory(done, "grads") == [2 * 8 + 2 * 8 * 4] * 2, "two rows: their int64 indices and fp32 values"
    rows = comm_of(done)
    reduced = rows[rows["op"] == "all_reduce"]
    assert reduced["payload_bytes"].sum() == 3 * 8 + 3 * 8 * 4 and reduced["algorithm_bytes"].isna().all()


def test_nothing_is_held_on_the_meta_device():
    done = job("on_meta", 1)
    assert memory(done, "params") == memory(done, "grads") == memory(done, "activations") == [0]


# Steps


def test_each_step_has_one_duty():
    steps = job("ddp", 2, width=1201).steps
    assert steps["rank"].tolist() == [0] * 4 + [1] * 4 and steps["step"].tolist() == [0, 1, 2, 3] * 2
    assert steps["phase"].tolist() == ["warm-up", "traced", "timed", "timed"] * 2
    assert steps["seconds"].isna().tolist() == [True, True, False, False] * 2
    assert (steps["seconds"].dropna() > 0).all()


def test_instruments_are_attached_in_the_traced_step_only():
    for told in job("instruments", 2).results:
        for step, (before, inside, after) in enumerate(told):
            assert before == after == [] and len(inside) == (7 if step == 1 else 0), (
                step,
                before,
                inside,
                after,
            )


def test_outside_a_job_a_step_does_nothing():
    model, before = torch.nn.Linear(2, 2), torch.utils._python_dispatch._len_torch_dispatch_stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        with measure.step(model, optimizer, samples=2), measure.step(), measure.span("inner"):
            assert workers.attached(optimizer) == []
            assert torch.utils._python_dispatch._len_torch_dispatch_stack() == before
    with pytest.raises(ZeroDivisionError):
        with measure.step():
            1 / 0


def test_steps_cannot_be_nested():
    assert all("cannot be nested" in told for told in job("nested", 2).results)


def test_an_exception_passes_through_a_traced_step_and_leaves_nothing_behind():
    done = job("fails_in_the_traced_step", 2)
    assert done.results == [{"same": True, "cause": True, "left": []}] * 2
    assert done.steps["phase"].tolist() == ["warm-up", "traced", "timed", "timed"] * 2, (
        "the next step is traced instead"
    )
    assert memory(done, "params") == [(64 * 128 + 128 + 128 * 10 + 10) * 4] * 2


def test_a_profiler_of_the_learner_leaves_the_bytes():
    done = job("own_profiler", 2)
    assert (
        done.absent["timeline"]
        == done.absent["collective times"]
        == "another profiler ran in the traced step"
    )
    assert (
        comm_of(done)["op"].tolist().count("all_reduce") >= 1
        and comm_of(done)["seconds"].isna().all()
        and done.timeline.empty
    )
    assert memory(done, "params") == [(64 * 128 + 128 + 128 * 10 + 10) * 4] * 2


def test_what_a_step_cannot_count_is_refused_in_one_sentence():
    cases = [
        ({"model": 3}, "a model of type int"),
        ({"model": ["x"]}, "a model of type list"),
        ({"optimizer": "adam"}, "an optimizer of type str"),
        ({"optimizer": [None, None]}, "If there are several, leave it out"),
        ({"samples": "many"}, "samples='many'"),
        ({"samples": -1}, "samples=-1"),
        ({"samples": 1.5}, "samples=1.5"),
    ]
    done = run(workers.refused, [options for options, _ in cases], ranks=1, backend="gloo")
    assert len(done.results[0]) == len(cases)
    for told, (_, words) in zip(done.results[0], cases):
        assert words in told and "\n" not in told
    assert done.steps["samples"].tolist() == [5, 5] and memory(done, "params") == [4 * (6 + 12)], (
        "after a refusal it still works"
    )


def test_a_scheduler_keeps_its_hold_on_the_optimizer():
    for heard, still_there in job("scheduled", 1).results:
        assert still_there and not heard


# Times


@on_all_ranks
@pytest.mark.parametrize("name", ["collectives", "ddp"])
def test_collectives_have_times_inside_their_step(name, ranks):
    done = job("collectives", ranks, PAYLOADS) if name == "collectives" else job("ddp", ranks, width=1201)
    befores, begins, ends = zip(*(result["clock"][1] for result in done.results))
    # times count from a moment between: when the first rank's step began
    earliest, latest = [min(befores)], [min(begins)]
    for rank, (begin, end) in enumerate(zip(begins, ends)):
        rows = comm_of(done, rank)
        assert len(rows) and (rows["seconds"] > 0).all()
        # counted from an earlier one, this call would start before its step
        earliest.append(begin - rows["start_s"].min())
        latest.append(end - (rows["start_s"] + rows["seconds"]).max())
    assert max(earliest) < min(latest) + 0.01, (
        "one moment fits the calls of all ranks (the profiler's clock is read in much less)"
    )


def test_the_timeline_shows_each_kind_and_a_rank_computes_one_thing_at_a_time():
    done = job("drawn", 2)
    assert set(done.timeline["kind"]) == {*COMPUTING, "communication", "span"}
    for rank in range(2):
        rows = done.timeline[done.timeline["rank"] == rank]
        assert rows[rows["kind"] == "span"]["name"].tolist() == ["wait", "short", "micro-batch 1"]
        assert rows[rows["kind"] == "span"]["seconds"].iloc[0] >= 0.01
        assert len(rows[rows["kind"] == "communication"]) == len(comm_of(done, rank))
        lane = rows[rows["kind"] != "communication"].sort_values("start_s")
        ends = lane["start_s"] + lane["seconds"]
        assert (lane["start_s"].iloc[1:].to_numpy() >= ends.iloc[:-1].to_numpy() - 1e-6).all(), (
            lane.to_string()
        )
        first = {kind: rows[rows["kind"] == kind]["start_s"].min() for kind in COMPUTING}
        assert first["forward"] < first["backward"] < first["optimizer"]


# A job on paper


def test_a_saved_job_comes_back_equal(tmp_path):
    done = job("ddp", 2, width=1201)
    done.save(tmp_path / "job.json")
    back = Job.load(tmp_path / "job.json")
    for name in TABLES:
        assert len(getattr(done, name))
        pd.testing.assert_frame_equal(getattr(back, name), getattr(done, name))
    for name in ("label", "ranks", "backend", "device", "hardware", "seconds", "output", "absent", "where"):
        assert getattr(back, name) == getattr(done, name), name
    assert back.records["seconds"] == done.records["seconds"]
    back.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "job.json").read_text()


def test_results_that_json_cannot_hold_are_kept_as_text(tmp_path):
    results = [1, 2.5, "three", None, [4, {"five": 6}], torch.tensor([7.0]), (8,), {9: 10}, float("nan")]
    Job("mixed", len(results), "gloo", "cpu", "paper", 1.0, results, [""] * len(results)).save(
        tmp_path / "job.json"
    )
    back = Job.load(tmp_path / "job.json").results
    assert (
        back[:5] == results[:5] and back[5] == "tensor([7.])" and back[6] == "(8,)" and back[7] == "{9: 10}"
    )


def load_problem(path: Path) -> str | None:
    """The one sentence with which a file is refused; None if it is read and its tables and text can be
    shown.
    """
    try:
        loaded = Job.load(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path)) and str(error).endswith("."), str(
            error
        )
        return str(error)
    repr(loaded), loaded._repr_html_(), loaded.where, [getattr(loaded, name) for name in TABLES]
    return None


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a saved job"),
        (b"3", "not a saved job"),
        (b'{"format": "something else"}', "not a saved job"),
        (b"[" * 100_000, "damaged or not a saved job"),
        (b'{"format": "course_lib.Job", "version": 2, "label": "x"}', "version 2"),
        (b'{"format": "course_lib.Job", "version": 1}', "'label'"),
        (pickle.dumps({"format": "course_lib.Job"}), "not JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_job_is_refused_in_one_sentence(tmp_path, content, reason):
    (tmp_path / "job.json").write_bytes(content)
    assert reason in load_problem(tmp_path / "job.json")


def test_a_damaged_job_is_refused_or_can_be_shown(tmp_path):
    path = tmp_path / "job.json"
    job("nested", 2).save(path)
    text = path.read_text()
    assert load_problem(path) is None
    for cut in (1, len(text) // 2, len(text) - 2):
        path.write_text(text[:cut])
        assert load_problem(path)
    chance = random.Random(0)
    refused = 0
    for number in range(250):  # one value anywhere is replaced, or one entry taken away
        content = json.loads(text)
        *way, last = chance.choice(list(places(content)))
        inner = functools.reduce(lambda value, key: value[key], way, content)
        if number % 3:
            inner[last] = chance.choice([None, -1, 10**30, 1.5, True, "text", [], {}, [1], {"a": 1}, ["a"]])
        else:
            del inner[last]
        path.write_text(json.dumps(content))
        refused += load_problem(path) is not None
    assert refused > 100


def places(value, way=()):
    """The way to every entry of nested dicts and lists."""
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*way, key)
        yield from places(inner, (*way, key))


def test_loading_never_unpickles(tmp_path, monkeypatch):
    job("nested", 2).save(tmp_path / "job.json")

    def refuse(*args, **kwargs):
        raise AssertionError("a file was unpickled")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (pd, "read_pickle"),
    ):
        monkeypatch.setattr(module, name, refuse)
    assert Job.load(tmp_path / "job.json").ranks == 2


# Elsewhere: torchrun, GPUs

TORCHRUN_SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
import workers
torch.set_num_threads(1)
dist.init_process_group("gloo")
told = workers.ddp(width=1201)
with open(os.path.join(sys.argv[1], f"{dist.get_rank()}.json"), "w") as file:
    json.dump(told["checksum"], file)
dist.destroy_process_group()
"""


def test_the_same_function_runs_under_torchrun(tmp_path):
    (tmp_path / "train.py").write_text(TORCHRUN_SCRIPT)
    folders = [str(Path(workers.__file__).parent), str(Path(workers.__file__).parents[1])]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "GLOO_SOCKET_IFNAME": devices.loopback(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        str(tmp_path / "train.py"),
        str(tmp_path),
    ]
    finished = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    under_run = [result["checksum"] for result in job("ddp", 2, width=1201).results]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == pytest.approx(
        under_run, rel=1e-6
    )
    assert under_run[0] == under_run[1]


@needs_gpu
def test_nccl_on_one_gpu():
    done = run(workers.ddp, ranks=1, backend="nccl", width=1201)
    told = done.results[0]
    assert done.backend == "nccl" and done.device == "cuda" and torch.cuda.get_device_name(0) in done.where
    assert {"wire bytes", "collective times"} <= set(done.absent)
    assert done.steps["wire_bytes"].isna().all() and done.comm["seconds"].isna().all()
    assert comm_of(done)["op"].tolist().count("all_reduce") >= 1
    assert memory(done, "params") == [told["params"]] and memory(done, "grads") == [told["grads"]]
    assert memory(done, "peak")[0] >= told["params"] + told["grads"] + 2 * told["grads"]
    assert len(memory(done, "other")) == 1
    assert "backward" in set(done.timeline["kind"])


@needs_two_gpus
def test_nccl_on_two_gpus():
    done = run(workers.ddp, ranks=2, backend="nccl", width=1201)
    assert done.backend == "nccl" and done.results[0]["checksum"] == pytest.approx(
        done.results[1]["checksum"]
    )
    assert comm_of(done)["payload_bytes"].max() <= done.results[0]["grads"]


@needs_gpu
def test_gloo_with_two_ranks_on_one_gpu():
    done = run(workers.ddp, ranks=2, backend="gloo", width=1201)
    grads = done.results[0]["grads"]
    assert done.backend == "gloo" and done.device == "cuda" and torch.cuda.get_device_name(0) in done.where
    assert wire(done).tolist() == [close(grads)] * 2
    assert memory(done, "grads") == [grads] * 2
    assert min(memory(done, "peak")) >= grads and len(memory(done, "other")) == 2


def test_roles_wait_for_those_alone_that_measure(tmp_path):
    """Else each trace of workers would wait for seconds for a server that measures nothing."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    meet, always = (worker._meeting_point(store, 3, roles) for roles in (True, False))
    for _ in range(2):
        meet(MEASURES, 0.0)
    store.add("traced", 1)
    meet("traced", 3600.0)
    begin = time.monotonic()
    always("timed", 2 * worker.ROLES_S)
    meet("ended", 2 * worker.ROLES_S)  # one that measures is still under way
    assert time.monotonic() - begin >= 4 * worker.ROLES_S


class TestTold:
    """What a step tells who watches the job, and nothing else."""

    @pytest.fixture
    def told(self):
        told = []
        ledger = measure.start_ledger(
            report=lambda *step: told.append(step), meet=lambda *of: None, each_step=True
        )
        yield told
        measure.stop_ledger(ledger)

    @pytest.mark.parametrize("loss", [0.5, torch.tensor([[0.5]]), torch.nn.Parameter(torch.tensor(0.5))])
    def test_number_total_and_loss(self, told, loss):
        for number in (7, 8):
            with measure.step(number=number, total=40) as step:
                step.loss = loss
            assert step.loss is None  # its graph is let go
        with measure.step():
            pass
        assert [step[:4] for step in told] == [(0, 7, 40, 0.5), (1, 8, 40, 0.5), (2, None, None, None)]
        assert [row["phase"] for *_, new in told for row in new["steps"]] == ["warm-up", "traced", "timed"]
        assert measure.last_step() == 2

    @pytest.mark.parametrize("loss", ["0.5", True, torch.ones(2), [0.5]])
    def test_what_is_no_loss_is_refused_in_one_sentence(self, told, loss):
        with pytest.raises(TypeError, match="^step.loss was set to a .*must be a number"):
            with measure.step() as step:
                step.loss = loss

    def test_a_total_that_is_none_is_refused(self, told):
        with pytest.raises(ValueError, match="total=0"):
            with measure.step(total=0):
                pass


def test_outside_a_job_a_loss_may_be_told_and_nothing_happens():
    with measure.step(total=3) as step:
        step.loss = "anything"
    assert measure.last_step() is None
