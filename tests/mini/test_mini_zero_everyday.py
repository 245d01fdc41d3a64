"""mini.zero with what everybody's training does around a model: equal to one process, or refused in one
sentence; never another result in silence.
"""

import pytest
import torch
import zero_everyday_workers as workers
from torch import nn

from course_lib import measure, run
from course_lib.mini import zero

in_all_stages = pytest.mark.parametrize("stage", [1, 2, 3])


def results(fn, *args, ranks: int = 2):
    return run(fn, *args, ranks=ranks, backend="gloo", timeout=300).results


def assert_small(told: dict) -> None:
    assert all(value < 1e-9 for value in told.values()), {
        name: value for name, value in told.items() if not value < 1e-9
    }


@in_all_stages
@pytest.mark.parametrize("clip", [False, True])
def test_a_scaler_skips_on_all_ranks_or_none(stage, clip):
    for apart, scale, alone in results(workers.scaled, stage, clip, ranks=3):
        assert apart < 1e-9 and scale == alone == 8.0


@in_all_stages
def test_torchs_clipping_is_that_of_one_process(stage):
    for told in results(workers.clipped, stage, ranks=3):
        assert_small(told)


@in_all_stages
def test_the_model_may_zero_the_gradients(stage):
    for told in results(workers.zeroed, stage):
        assert_small(told)


@in_all_stages
def test_outputs_may_hide(stage):
    for told in results(workers.hidden, stage):
        assert_small(told)


@in_all_stages
def test_sparse_gradients_are_summed_as_dense_ones(stage):
    assert max(results(workers.sparse, stage)) < 1e-9


@in_all_stages
def test_all_optimizers_that_are_let_in_equal_one_process(stage):
    for told in results(workers.optimizers, stage):
        assert len(told) == 16
        assert_small(told)


@in_all_stages
def test_ones_own_optimizer_that_is_elementwise_equals_one_process(stage):
    assert max(results(workers.own_optimizer, stage, ranks=3)) < 1e-9


@in_all_stages
def test_torch_saves_and_copies_the_state(stage):
    assert max(results(workers.saved_by_torch, stage, ranks=3)) < 1e-9


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_of_the_first_moment(stage, tmp_path):
    assert max(results(workers.from_the_start, stage, str(tmp_path))) < 1e-9


@in_all_stages
def test_it_is_an_optimizer(stage):
    assert results(workers.is_an_optimizer, stage)[0] == {
        "called": ["before", "after"],
        "loss": True,
        "lr": 0.1,
        "inner": 0.1,
        "repr": True,
    }


@in_all_stages
def test_what_is_written_when_gathered_stays(stage):
    assert max(results(workers.written, stage)) < 1e-9


@in_all_stages
def test_a_unit_may_rest(stage):
    assert max(results(workers.rests, stage)) < 1e-9


@in_all_stages
@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_and_trained_in_one_module_with_checkpoints(stage, reentrant):
    assert max(results(workers.mixed, stage, reentrant)) < 1e-9


@in_all_stages
def test_hybrid_sharding(stage):
    assert max(results(workers.in_hybrid, stage, ranks=4)) < 1e-9


@pytest.mark.parametrize("default_units", [True, False])
def test_tensor_parallel_inside(default_units):
    assert max(results(workers.tensor_parallel_inside, default_units, ranks=4)) < 1e-6


def test_a_weight_that_is_used_outside_of_its_module():
    assert "units=[...]" in results(workers.used_elsewhere, True)[0]
    assert max(results(workers.used_elsewhere, False)) < 1e-6


WHOLE = "it would see parts of flattened parameters"
EXPECTED = {
    "frozen": "in layers.0.weight requires_grad has changed since `shard`: freeze or unfreeze before it",
    "create_graph": "no graph of their own",
    "unfrozen": "in layers.0.weight, layers.0.bias requires_grad has changed since `shard`",
    "converted": "are other tensors since `shard`: move or convert the model",
    "grown": "layers.3.weight, layers.3.bias: new since `shard`",
    "masked": "mul_ on a gradient",
    "multiplies": "mul_ on a gradient",
    "square": "square on a gradient of mini.zero: each rank has a part of it only",
    "changed in place": "place",
    "add_param_group": "give all groups to shard",
    "deepcopy": "cannot be copied or pickled",
    "pickle": "cannot be copied or pickled",
    "twice": "its gradients have hooks already",
    "failed": "call optimizer.zero_grad()",
    "no optimizer's": "some are no parameters of the model",
    "there twice": "a parameter is there twice",
    "Adafactor": WHOLE,
    "Muon": WHOLE,
    "LBFGS": WHOLE,
    "SparseAdam": WHOLE,
    "Scaled": WHOLE,
    "partial": WHOLE,
    "<lambda>": WHOLE,
    "differentiable": "no gradient goes through that",
}
OF_STAGE = {
    1: {
        "unused": (
            "layers.2.weight, layers.2.bias: no gradient, but others of the unit have one, and AdamW would"
            " take it as zero"
        )
    },
    2: {"unused": "accepted"},
    3: {"unused": "accepted"},
}
WITH_GRADIENTS = {
    "assigned": "does not come from backward",
    "half unused": "layers.0.bias",
    "half zeroed": "some gradients of a unit were set to None",
}
IN_SHARDS = {
    "converted": "convert a model before `shard`",
    "converted in gathered": "are other tensors since `shard`",
    "backward in gathered": "no backward within",
    "state_dict": "within optimizer.gathered()",
    "state_dict of a part": "within optimizer.gathered()",
    "load_state_dict": "within optimizer.gathered()",
    "copied": "within optimizer.gathered() only",
    "used elsewhere": "Put the modules that use it",
    "used by its parent": "Put the modules that use it",
    "a part of its unit": "call the unit itself",
}


@in_all_stages
def test_refused_in_one_sentence(stage):
    expected = EXPECTED | OF_STAGE[stage] | (IN_SHARDS if stage == 3 else WITH_GRADIENTS)
    for told in results(workers.refused, stage):
        assert told.keys() == expected.keys()
        for what, words in expected.items():
            assert words in told[what] and "\n" not in told[what], (what, told[what])


def measured(stage: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())])
    model, optimizer = (
        zero.shard(net, stage, torch.optim.Adam) if stage else (net, torch.optim.Adam(net.parameters()))
    )
    for _ in range(2):
        with measure.step(model, optimizer):
            model(torch.ones(32, 64)).sum().backward()
            optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_ledger_sees_the_same_activations_in_all_stages(stage):
    """In stage 3 the unit keeps something else in place of what autograd saves; what is held is the input and
    three outputs all the same.
    """
    job = run(measured, stage, ranks=2)
    assert "activations" not in job.absent
    assert set(job.memory.query("category == 'activations'")["bytes"]) == {4 * 32 * 64 * 4}
