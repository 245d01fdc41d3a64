"""Compute that sleeps: a network whose layers take a set time and no core, so that many ranks are honest on
few cores.

What ranks say to each other is real; only the computing is replaced by `time.sleep`. A figure of such a run
must say so.
"""

import contextlib
import time

import torch
from torch import Tensor, nn

from course_lib import measure
from course_lib.arguments import number, whole

__all__ = ["SleepingNet", "SleepingStage"]


class SleepingNet(nn.Module):
    """Layers in a row, each with one weight, whose forward and backward sleep.

    A layer adds the mean of its weight to its input. So gradients are real, and depend on the data, but take
    next to no time.

    Args:
        layers: how many.
        layer_bytes: size of each layer's weight, fp32.
        backward_s: seconds that one layer's backward sleeps.
        forward_s: the same for its forward.
    """

    def __init__(
        self, layers: int = 8, layer_bytes: int = 2**20, backward_s: float = 0.01, forward_s: float = 0.0
    ) -> None:
        super().__init__()
        whole("layers", layers, most=4096)
        whole("layer_bytes", layer_bytes, least=4, most=2**33)
        self.weights = nn.ParameterList(torch.randn(layer_bytes // 4) for _ in range(layers))
        self.forward_s, self.backward_s = number("forward_s", forward_s), number("backward_s", backward_s)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the means of all weights. In the timeline, layer 3 is F3 and B3."""
        for layer, weight in enumerate(self.weights):
            x = _SleepingLayer.apply(x, weight, layer, self.forward_s, self.backward_s)
        return x


class SleepingStage(nn.Module):
    """One stage of a pipeline whose forward and backward sleep; what it returns has the shape of its input.

    The timeline shows nothing of its own: a pipeline names what it runs.

    Args:
        forward_s, backward_s: seconds for one micro-batch.
        weight_s: of backward_s, the seconds for the gradients of the weights, where a backward is done in two
            parts; None for half of it.
    """

    def __init__(
        self, forward_s: float = 0.01, backward_s: float = 0.02, weight_s: float | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.forward_s, self.backward_s = number("forward_s", forward_s), number("backward_s", backward_s)
        self.weight_s, self.rest = weight_s, _SleepingMatrix()

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the weight."""
        self.rest.backward_s = self.backward_s / 2 if self.weight_s is None else self.weight_s
        input_s = self.backward_s - self.rest.backward_s
        # x + weight has a gradient on the first stage, too
        return self.rest(_SleepingPart.apply(x + self.weight.mean(), self.forward_s, input_s))


class _SleepingMatrix(nn.Module):
    """What of a stage may wait: a weight of two dimensions, as a linear layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.backward_s = nn.Parameter(torch.zeros(1, 1)), 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + _SleepingPart.apply(self.weight, 0.0, self.backward_s).mean()


class _SleepingPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        _sleep("F", None, forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        _sleep("B", None, ctx.backward_s)
        return grad, None, None


class _SleepingLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, number: int | None, forward_s: float, backward_s: float
    ) -> Tensor:
        ctx.weight_shape, ctx.number, ctx.backward_s = weight.shape, number, backward_s
        _sleep("F", number, forward_s)
        return x + weight.mean()

    @staticmethod
    def backward(ctx, grad: Tensor):
        _sleep("B", ctx.number, ctx.backward_s)
        grad_weight = (grad.sum() / ctx.weight_shape.numel()).expand(ctx.weight_shape)
        return grad, grad_weight, None, None, None


def _sleep(kind: str, number: int | None, seconds: float) -> None:
    if seconds:
        with contextlib.nullcontext() if number is None else measure.span(f"{kind}{number}"):
            time.sleep(seconds)
