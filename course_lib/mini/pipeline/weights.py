"""A backward in two parts: gradients of weights that wait.

While `waiting_weights` is open, what each layer with a matrix for a weight computes is cut out of the graph
of autograd and has a small graph of its own. When backward comes there, it asks this small graph for the
gradient of the layer's input alone, goes on with it, and leaves behind what the other half needs: the small
graph, and the gradient of its output. `accumulate` asks for that half, whenever it likes. Nothing is computed
twice, and what other layers have saved is let go at once.

What has no matrix (norms, biases of a model's own), or takes more than one tensor, has its gradients at once:
they cost next to nothing, and the sum is right in any case.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from course_lib.arguments import takes
from course_lib.mini.pipeline import refusals as refuse

__all__ = ["Waiting", "waiting_weights", "accumulate"]

# of each layer: its output, the gradient of that, its weights
Waiting = list[tuple[GradientEdge, Tensor, list[nn.Parameter]]]


@contextlib.contextmanager
def waiting_weights(stage: nn.Module, waiting: Waiting | None) -> Iterator[None]:
    """Let the matrices used in a forward, in this block, wait for their gradients.

    Args:
        waiting: backward, whenever it is, leaves there what `accumulate` takes; None to let nothing wait.
    """
    if waiting is None:
        yield
        return
    layers = [module for module in stage.modules() if _has_matrix(module)]
    for layer in layers:
        layer.forward = partial(_run, layer.forward, list(layer.parameters()), waiting)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@takes(waiting=refuse.other_waiting)
def accumulate(waiting: Waiting) -> None:
    """Add the gradients that wait to their weights' `.grad`, and let go of what was kept for them."""
    while waiting:
        output, grad, weights = waiting.pop()
        torch.autograd.backward(output, grad, inputs=weights)


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() > 1 and "forward" not in vars(module)


def _run(whole: Callable, weights: list[nn.Parameter], waiting: Waiting, *inputs, **named):
    """The layer's forward: in a small graph of its own, if it takes one tensor."""
    weights = [weight for weight in weights if weight.requires_grad]
    alone = len(inputs) == 1 and not named and isinstance(inputs[0], Tensor)
    if not (alone and weights and torch.is_grad_enabled()):
        return whole(*inputs, **named)
    return _Apart.apply(whole, waiting, inputs[0], *weights)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, whole: Callable, waiting: Waiting, x: Tensor, *weights: nn.Parameter) -> Tensor:
        ctx.x = x.detach().requires_grad_(x.requires_grad)
        with torch.enable_grad():
            y = refuse.other_layers(whole(ctx.x))
        # not the tensor itself: W needs the layer's input, and not its output
        ctx.y, ctx.waiting, ctx.weights = get_gradient_edge(y), waiting, list(weights)
        return y.detach()

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x = None
        if ctx.needs_input_grad[2]:
            (grad_x,) = torch.autograd.grad(ctx.y, ctx.x, grad, retain_graph=True)
        ctx.waiting.append((ctx.y, grad, ctx.weights))
        return None, None, grad_x, *(None for _ in ctx.weights)
