"""The instrument of course_lib.measure.moments, against steps whose bytes are known."""

import pytest
import torch
from torch import nn

from course_lib import torch_internals
from course_lib.measure.moments import Moments

P = 4 * (64 * 8 + 8 + 8 * 8 + 8)  # bytes of the parameters
STATES = 2 * P + 4 * 4  # Adam's: two moments, and a counter for each of four tensors
SAVED = 4 * 16 * (64 + 8)  # inputs of both layers, for 16 samples


def two_steps():
    """What is noted in two steps of a small model, each part of which is named."""
    with Moments() as moments:
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8))
        optimizer = torch.optim.Adam(model.parameters())
        moments.follow(model, optimizer)
        for _ in range(2):
            x = torch.ones(16, 64)
            moments.begin("forward")
            loss = model(x).sum()
            moments.begin("backward")
            loss.backward()
            moments.begin("optimizer")
            optimizer.step()
            moments.begin("zero_grad")
            optimizer.zero_grad()
            del x, loss
            torch.ones(1)  # one more operation, so that it is seen what is left
    return moments.rows


@pytest.fixture(scope="module")
def rows():
    return two_steps()


def of(rows, part, kind):
    return [held[kind] for name, held in rows if name == part]


def test_parameters_are_there_from_the_beginning_and_are_counted_to_the_byte(rows):
    assert {held["params"] for _, held in rows} == {P}


def test_activations_rise_in_forward_and_are_gone_after_backward(rows):
    assert max(of(rows, "forward", "activations")) == SAVED
    assert max(of(rows, "backward", "activations")) == SAVED  # and no more than in forward
    assert set(of(rows, "optimizer", "activations")) == {0}


def test_gradients_come_in_backward_and_go_with_zero_grad(rows):
    half = len(rows) // 2
    assert set(of(rows[:half], "forward", "grads")) == {0}
    assert set(of(rows, "optimizer", "grads")) == {P}
    assert of(rows, "zero_grad", "grads")[-1] == 0


def test_the_states_come_in_the_first_step_of_the_optimizer(rows):
    first = next(name for name, held in rows if held["optimizer_states"])
    assert first == "optimizer" and rows[-1][1]["optimizer_states"] == STATES
    assert set(of(rows, "forward", "optimizer_states")) == {0, STATES}


def test_what_nobody_knows_is_other_and_nothing_is_left_of_it(rows):
    # the output of the first layer, while ReLU makes another one; both are there
    assert max(of(rows, "forward", "other")) >= 4 * 16 * 8
    assert rows[-1][1]["other"] <= 4  # of the last operation itself


def test_training_is_not_changed():
    def train(watched):
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        optimizer = torch.optim.Adam(model.parameters())
        if watched is not None:
            watched.follow(model, optimizer)
        model(torch.ones(4, 8)).square().sum().backward()
        optimizer.step()
        return model.weight.detach().clone()

    alone = train(None)
    with Moments() as moments:
        found = train(moments)
    assert torch.equal(found, alone)


def test_after_the_block_nobody_looks_any_more():
    with Moments() as moments:
        model = nn.Linear(8, 8)
        moments.follow(model, torch.optim.SGD(model.parameters(), 0.1))
        model(torch.ones(1, 8))
    noted = len(moments.rows)
    model(torch.ones(1, 8)).sum().backward()
    assert noted and len(moments.rows) == noted
    assert torch_internals.saved_hooks(tracing=True) is None


def test_what_is_no_model_is_refused():
    with Moments() as moments, pytest.raises(TypeError, match="model"):
        moments.follow("a model", None)
