"""An instrument that cannot look steps aside: training goes on, the layer is absent with its reason, and
nothing stays attached.
"""

import functools

import instruments_workers as ranks
import pytest
import torch

from course_lib import run

WIDTH = ranks.WIDTH
ALWAYS = {"other memory"}  # absent on a CPU


# Correct training, each with what cannot be measured in it

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CASES = [
    (ranks.plain, SGD, set()),
    (ranks.per_sample_gradients, SGD, {"activations"}),
    (ranks.jacobian, SGD, {"activations"}),
    (ranks.without_hooks, SGD, {"activations"}),
    (ranks.csr, SGD, set()),
    (ranks.csc, SGD, set()),
    (ranks.mkldnn, SGD, {"activations"}),
    (ranks.nested, SGD, set()),
    (ranks.fake_quantized, SGD, set()),
    (ranks.gradient_penalty, SGD, set()),
    (ranks.compiled, SGD, set()),
    (ranks.compiled_optimizer, SGD, set()),
    (ranks.own_hooks, SGD, set()),
    (ranks.hooks_that_hide, SGD, {"activations"}),
    (ranks.a_copied_optimizer, SGD, set()),
    (ranks.a_copied_optimizer, ranks.Plain, set()),
    (ranks.own_profiler, SGD, {"timeline", "collective times"}),
    (ranks.patched_backward, SGD, set()),
    (ranks.plain, ranks.Slots, set()),
    (ranks.plain, ranks.Plain, set()),
    (ranks.plain, ranks.SealedSlots, {"model states"}),
    (ranks.plain, ranks.Delegating, set()),
    (ranks.with_closure, ranks.LBFGS, set()),
]


@pytest.mark.parametrize(
    "step, make_optimizer, absent", CASES, ids=lambda value: getattr(value, "__name__", "")
)
def test_correct_training_stays_correct_and_what_cannot_be_measured_is_absent(step, make_optimizer, absent):
    job = run(ranks.twice, step, make_optimizer, ranks=1)
    assert job.results == [(True, [])]
    assert set(job.absent) == ALWAYS | absent and all(len(reason) < 200 for reason in job.absent.values())
    rows = job.memory.set_index("category")["bytes"]
    assert ("activations" in rows) == ("activations" not in absent) and ("params" in rows) == (
        "model states" not in absent
    )
    assert ("timeline" in absent) == job.timeline.empty
    if "params" in rows:
        assert rows["params"] == 4 * WIDTH * (WIDTH + 1)
        if step not in (ranks.compiled_optimizer,):
            assert rows["grads"] == rows["params"], "counted right after the step, before zero_grad"


@pytest.mark.parametrize("step", [ranks.jacobian, ranks.without_hooks])
def test_who_disabled_the_hooks_on_what_is_saved_is_not_guessed(step):
    assert run(ranks.twice, step, SGD, ranks=1).absent["activations"] == (
        "hooks on what is saved for backward were disabled in the step, as torch.func does"
    )


def test_a_profiler_around_the_steps_keeps_its_record():
    job = run(ranks.around("profiler"), ranks=1)
    assert (
        job.results == [(0, True, [])] and job.absent["timeline"] == "another profiler ran in the traced step"
    )


def test_hooks_around_the_steps_go_on_working():
    job = run(ranks.around("hooks"), ranks=1)
    ((packed, _, left),) = job.results
    assert packed % 3 == 0 and packed and left == [] and set(job.absent) == ALWAYS


def test_hooks_that_outlive_the_step_stay():
    ((packed, left),) = run(ranks.entered_inside_left_outside, ranks=1).results
    assert packed >= 2 and left == []


# What is saved for backward: who holds it


WEIGHTS = 16 * 256 * 256 / (512 * 256)  # in units of one activation


@pytest.mark.parametrize(
    "way, tensors",
    [
        ("plain", 17),
        ("reentrant", 8),
        ("not reentrant", 8),
        ("without early stop", 8),
        ("save_on_cpu", 17),
        ("disk", 0),
        ("half", None),
        ("numpy", None),
    ],
)
def test_activations_are_what_is_really_held(way, tensors):
    """17: the input and 16 outputs of Tanh. Checkpoints: 4 inputs of segments, and 4 outputs within the one
    that is computed again.
    """
    job = run(ranks.segments, way, ranks=1)
    found = job.memory.set_index("category")["bytes"]["activations"] / (512 * 256 * 4)
    # A hook that makes a copy of all that it is given makes two of each tensor that two nodes save (a Tanh
    # its output, a Linear its input), and one of each weight but the first, whose input is the only one that
    # needs no gradient of another layer.
    if tensors is None:
        copies = 16 + 16 + WEIGHTS
        tensors = copies / 2 if way == "half" else copies
    assert found == pytest.approx(tensors, rel=1e-6), job.absent


# An instrument that fails while a step begins


# layer -> what breaks, in the middle of it where there is one, and what is absent
FAILING = {
    "activations": ("course_lib.torch_internals.push_saved_hooks", ranks.broken, {"activations"}),
    "model states": (
        "course_lib.measure.memory.register_optimizer_step_post_hook",
        ranks.broken,
        {"model states"},
    ),
    "collectives": ("torch.library.Library.impl", ranks.third(torch.library.Library.impl), {"collectives"}),
    "timeline": ("torch.profiler.profile.__enter__", ranks.broken, {"timeline", "collective times"}),
    "one call": ("course_lib.measure.calls._look_at", ranks.broken, {"collectives"}),
    "the record": (
        "course_lib.measure.tracing.read",
        ranks.broken,
        {"collectives", "timeline", "collective times"},
    ),
    "counting": ("course_lib.measure.memory.storage_bytes", ranks.broken, {"model states"}),
    "a saved tensor": ("course_lib.measure.activations.storages_of", ranks.broken, {"activations"}),
}


@pytest.mark.parametrize("layer", FAILING)
def test_an_instrument_that_breaks_is_absent_and_the_others_measure(layer):
    target, replacement, absent = FAILING[layer]
    job = run(ranks.with_a_broken_instrument, target, replacement, ranks=2)
    assert (
        job.results == [[[], [], []]] * 2
        and job.steps["phase"].tolist() == ["warm-up", "traced", "timed"] * 2
    )
    assert set(job.absent) == ALWAYS | absent
    assert all("broken in two lines" in job.absent[name] and "\n" not in job.absent[name] for name in absent)
    categories = set(job.memory["category"])
    assert ("activations" in categories) == ("activations" not in absent) and ("params" in categories) == (
        "model states" not in absent
    )
    assert job.comm.empty == ("collectives" in absent) and job.timeline.empty == ("timeline" in absent)
    job._repr_html_()


@pytest.mark.parametrize(
    "target",
    [
        "course_lib.torch_internals.push_saved_hooks",
        "course_lib.measure.memory.after_each_step",
        "torch.library.Library.impl",
        "course_lib.measure.tracing.profile",
        "course_lib.measure.tracing.Trace.begin",
        "course_lib.measure.wire.look",
    ],
)
def test_an_interrupt_while_a_step_begins_leaves_nothing_attached(target):
    job = run(ranks.interrupted_at, target, ranks=1)
    assert (
        job.results == [[(1, [])]]
        and job.steps["phase"].tolist() == ["warm-up", "traced", "timed"]
        and set(job.absent) == ALWAYS
    )


# Leaving a step


@pytest.mark.parametrize("way, steps", [("break", 3), ("return", 3), ("continue", 6), ("exception", 0)])
def test_a_step_that_is_left_early_is_a_step_unless_it_failed(way, steps):
    job = run(ranks.left_early, way, ranks=1)
    assert job.results == [[]] and len(job.steps) == steps
    assert set(job.memory["category"]) >= ({"params", "grads"} if steps else set())
