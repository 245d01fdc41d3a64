"""The network that sleeps has real gradients and a set duration."""

import time

import pytest
import torch

from course_lib.stand_ins.sleeping import SleepingNet, SleepingStage


def test_gradients_are_real():
    net = SleepingNet(layers=3, layer_bytes=64, backward_s=0.0).double()
    x = torch.arange(4.0, dtype=torch.float64)
    (net(x) * x).sum().backward()
    mean = [weight.detach().clone().requires_grad_() for weight in net.weights]
    ((x + sum(weight.mean() for weight in mean)) * x).sum().backward()
    for weight, same in zip(net.weights, mean):
        assert (
            weight.nbytes == 2 * 64 and torch.allclose(weight.grad, same.grad) and same.grad.abs().min() > 0
        )


def test_layers_take_the_time_they_are_told():
    net = SleepingNet(layers=4, layer_bytes=64, backward_s=0.02, forward_s=0.01)
    begin = time.perf_counter()
    y = net(torch.ones(1)).sum()
    middle = time.perf_counter()
    y.backward()
    assert middle - begin >= 0.04 and time.perf_counter() - middle >= 0.08


def test_a_layer_has_at_least_one_weight():
    with pytest.raises(ValueError, match="layer_bytes=3: it must be a whole number from 4"):
        SleepingNet(layer_bytes=3)


def test_a_stage_sleeps_in_forward_and_in_backward_and_its_gradients_are_real():
    stage, x = SleepingStage(forward_s=0.01, backward_s=0.03), torch.arange(4.0, requires_grad=True)
    begin = time.perf_counter()
    y = stage(x)
    middle = time.perf_counter()
    (y * torch.arange(4.0)).sum().backward()
    assert y.shape == x.shape and middle - begin >= 0.01 and time.perf_counter() - middle >= 0.03
    assert stage.weight.grad.item() == 6 and torch.equal(x.grad, torch.arange(4.0))
