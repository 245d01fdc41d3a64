"""mini.zero on real ranks: equal to one process in all stages; memory to the byte; bytes on the wire; what is
alive when; checkpoints.
"""

import functools
import math
import sys

import pytest
import torch
import zero_workers

import course_lib
from course_lib import held, theory

# generous, for machines that have other work
run = functools.partial(course_lib.run, timeout=300)
NAMES = ("MLP", "CNN", "TinyGPT")
on_all_ranks = pytest.mark.parametrize("ranks", [2, 3, 4])
in_all_stages = pytest.mark.parametrize("stage", [1, 2, 3])
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


@functools.cache
def trained(stage: int, ranks: int, name: str = "MLP"):
    return run(zero_workers.trained, stage, name, ranks=ranks, backend="gloo")


def padded(units: dict[str, int], ranks: int) -> list[int]:
    """Elements of each unit's shard."""
    return [math.ceil(numel / ranks) for numel in units.values()]


# Values


@on_all_ranks
def test_ten_steps_equal_one_process(ranks):
    options = {
        "MLP": {"adam": True, "clip": 0.01},
        "CNN": {"adam": True, "groups": True},
        "TinyGPT": {"units": "blocks", "clip": 0.01},
    }
    cases = [
        (name, stage, torch.float64, 13 if name == "CNN" else 12, options[name])
        for name in NAMES
        for stage in (1, 2, 3)
    ]
    # a unit for each layer
    cases += [("TinyGPT", 3, torch.float64, 13, {"adam": True})] if ranks == 2 else []
    for result in run(zero_workers.parity, cases, ranks=ranks, backend="gloo").results:
        for case, told in zip(cases, result, strict=True):
            assert (
                told["weights"] < 1e-6
                and told["norms"] < 1e-6
                and told["frozen"] == 0
                and told["moved"] > 1e-3
            ), (case, told)


def test_single_precision_equals_one_process():
    cases = [("TinyGPT", stage, torch.float32, 12, {"units": "blocks"}) for stage in (1, 2, 3)]
    for result in run(zero_workers.parity, cases, ranks=2, backend="gloo").results:
        for case, told in zip(cases, result, strict=True):
            assert told["weights"] < 1e-5, (case, told)


@in_all_stages
def test_unusual_forwards_and_backwards(stage):
    for told in run(zero_workers.special, stage, ranks=2, backend="gloo").results:
        assert all(value < 1e-12 for value in told.values()), told


def test_refusals_are_explained():
    for told in run(zero_workers.refusals, ranks=2, backend="gloo").results:
        assert told == {
            "stage": "stage=4: it must be 1, 2 or 3.",
            "units": "units: Linear is no part of the model.",
            "params": (
                "params has no layers.0.bias: one optimizer has all that learns, so freeze them"
                " (requires_grad_(False)), or make them a group of their own."
            ),
            "zero_grad": (
                "a gradient has come after the gradients were averaged: call optimizer.zero_grad() between"
                " step() and backward."
            ),
        }


@in_all_stages
def test_a_group_shards_among_itself(stage):
    before, after = zip(*run(zero_workers.in_pairs, stage, ranks=4, backend="gloo").results)
    assert (
        torch.equal(before[0], before[2])
        and torch.equal(before[1], before[3])
        and not torch.equal(before[0], before[1])
    )
    for rank in range(4):
        assert torch.allclose(before[rank] - after[rank], torch.full((1, 3), 1.0 + rank % 2))


def test_a_scheduler_takes_the_optimizer():
    assert run(zero_workers.scheduled, 2, ranks=2, backend="gloo").results[0] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("stage", [1, 3])
def test_what_three_ranks_save_two_ranks_load(stage, tmp_path):
    path = str(tmp_path)
    whole = run(zero_workers.saved, stage, path, slice(6), ranks=3, backend="gloo").results[0]
    run(zero_workers.saved, stage, path, slice(3), save=True, ranks=3, backend="gloo")
    back = run(zero_workers.saved, stage, path, slice(3, 6), load=True, ranks=2, backend="gloo").results[1]
    assert zero_workers.difference(back, whole) < 1e-12


def test_a_look_at_the_states_changes_nothing():
    assert run(zero_workers.looked_at_before_the_first_step, 2, ranks=2, backend="gloo").results == [0.0, 0.0]


# Bytes


@on_all_ranks
@in_all_stages
def test_memory_is_the_closed_form_plus_padding(stage, ranks):
    job = trained(stage, ranks)
    units = job.results[0]["units"]
    shards = padded(units, ranks)
    numel, with_padding = sum(units.values()), ranks * sum(shards)
    assert len(units) == (1 if stage == 1 else 6) and numel <= with_padding < numel + ranks * len(units)
    assert numel < with_padding or ranks == 3, "there is padding"
    wanted = {
        "params": 4 * (sum(shards) if stage == 3 else with_padding),
        "grads": 4 * (with_padding if stage == 1 else sum(shards)),
        "optimizer_states": theory.adam_state_bytes(shards),
    }
    assert held(job)[list(wanted)].to_dict("records") == [wanted] * ranks
    for category, bytes_ in theory.zero_memory(numel, ranks, stage).items():
        assert held(job)[category][0] == pytest.approx(bytes_, rel=1e-3)


@needs_counters
@on_all_ranks
@in_all_stages
def test_a_step_sends_two_or_three_times_the_parameters(stage, ranks):
    job = trained(stage, ranks)
    params = 4 * sum(job.results[0]["units"].values())
    sent = job.steps[job.steps["step"] >= 2]["wire_bytes"]
    assert ((sent / theory.step_bytes(f"zero_{stage}", params, ranks) - 1).abs() < 0.03).all(), sent.tolist()


@needs_counters
def test_a_tied_weight_is_gathered_once_more():
    job, free = trained(3, 2, "tied"), trained(3, 2, "TinyGPT")
    for one in (job, free):
        told = one.results[0]
        sent = one.steps[one.steps["step"] >= 2]["wire_bytes"]
        assert max(told["gathered"].values()) == (3 if one is job else 2)
        expected = sum(4 * numel * (told["gathered"][name] + 1) / 2 for name, numel in told["units"].items())
        assert ((sent / expected - 1).abs() < 0.03).all()


@pytest.mark.parametrize(
    "name, ranks",
    [("MLP", 2), ("MLP", 3), ("MLP", 4), ("frozen", 2), ("TinyGPT", 2), ("tied", 2), ("tied", 4)],
)
def test_at_most_two_units_are_whole_at_once(name, ranks):
    for told in trained(3, ranks, name).results:
        assert len(told["units"]) >= 5 and 1 <= told["most"] <= 2, told
        assert set(told["gathered"].values()) <= {2, 3} and told["after"] == 0, told


def test_the_allocator_sees_two_layers_at_most():
    layer = 4 * (600 * 600 + 600)
    most = {
        stage: run(zero_workers.most_on_the_heap, stage, ranks=2, backend="gloo").results[0]
        for stage in (1, 2, 3)
    }
    shards = most[1]["params"] / 2
    assert most[1]["most"] > most[1]["params"]
    # of gradients: the shards, and one or two layers in full
    assert most[2]["most"] < shards + 2.6 * layer
    # and the parameters of one or two layers
    assert most[3]["most"] < shards + 3.5 * layer
