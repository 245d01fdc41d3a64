"""What mini.tensor_parallel refuses, each in one sentence: what a cut would lose or untie, without a word."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from course_lib.arguments import function, instance, number

__all__ = [
    "other_models",
    "unnamed",
    "other_layers",
    "odd",
    "other_words",
    "other_than_plain",
    "other_cuts",
    "other_losses",
    "other_scores",
    "other_shapes",
    "other_sums",
    "other_probabilities",
]


def other_models(model: nn.Module) -> nn.Module:
    """A model that does not say how it can be cut; or only the class that it is made from says so, which does
    not know what was changed.
    """
    kind = type(model)
    if not isinstance(getattr(model, "tensor_parallel_plan", None), Mapping):
        raise TypeError(
            f"cannot cut a {kind.__name__}: it must be a model that says by its `tensor_parallel_plan` how,"
            " or nn.Sequential(Linear, activation, Linear)."
        )
    says = next((one for one in kind.__mro__ if "tensor_parallel_plan" in vars(one)), kind)
    if says is not kind:
        raise TypeError(
            f"{says.__name__.lower()} is {_a(kind)}, and its plan is that of a plain {says.__name__}: take a"
            f" plain one, or let {kind.__name__} say its own `tensor_parallel_plan`."
        )
    return model


def unnamed(model: nn.Module, name: str, part: nn.Module) -> None:
    """Nobody knows whether it may see a slice of the features, or of the tokens."""
    raise TypeError(
        f"cannot cut a {type(part).__name__} that {type(model).__name__} has as {name}, and its"
        " `tensor_parallel_plan` does not name."
    )


def other_layers(layer: nn.Module, inside: bool, known: tuple[type, ...]) -> None:
    """In a list of layers, what may need the features of other ranks."""
    raise TypeError(
        f"cannot cut a {type(layer).__name__}"
        f" {'between the two Linear layers of a pair' if inside else 'beside pairs'}: only"
        f" {', '.join(kind.__name__ for kind in known)} and Dropout are known to need no features of other"
        " ranks."
    )


def odd(count: int) -> None:
    """A pair that is entered must be left."""
    if count % 2:
        raise ValueError(
            "an odd number of Linear layers: they are cut in pairs, the first by columns and the second by"
            " rows."
        )


def other_words(name: str, word: str, known: Mapping) -> None:
    """A plan with a word that means nothing."""
    if word not in known:
        raise ValueError(
            f"tensor_parallel_plan: {name} is {word!r}, and must be one of {', '.join(map(repr, known))}."
        )


def other_than_plain(name: str, module: nn.Module, kind: type) -> None:
    """Of a subclass, a parametrized layer, or an embedding with options, the cut would lose what it does
    beside.
    """
    instance(name, module, kind)
    options = [
        option
        for option in ("padding_idx", "max_norm", "scale_grad_by_freq", "sparse")
        if getattr(module, option, None) is not None and getattr(module, option) is not False
    ]
    if (
        type(module) is not kind
        or not isinstance(getattr(module, "weight", nn.Parameter()), nn.Parameter)
        or options
    ):
        what = f"{_a(type(module))}{' with ' * bool(options)}{', '.join(options)}"
        raise TypeError(
            f"{name} is {what}, and the cut would leave a plain {kind.__name__} of it: take a plain one."
        )


def other_cuts(names: list[str], dims: list[int | None]) -> None:
    """One weight in places that are cut differently: the slices would be several weights, and drift apart."""
    if None in dims or len(set(dims)) > 1:
        raise ValueError(
            f"{' and '.join(names)} are one weight, and the cut would make several of it: untie them."
        )


def other_losses(loss: nn.CrossEntropyLoss) -> None:
    """A loss with options that the cut one has not got."""
    instance("loss", loss, nn.CrossEntropyLoss)
    options = loss.weight, loss.ignore_index, loss.reduction, loss.label_smoothing
    if type(loss) is not nn.CrossEntropyLoss or options != (None, -100, "mean", 0.0):
        raise TypeError(
            f"loss is {loss}, and the cut would leave a plain CrossEntropyLoss of it: take a plain one."
        )


def other_scores(logits: Tensor, targets: Tensor) -> None:
    """Scores and tokens that do not fit."""
    if targets.dtype != torch.int64 or logits.shape[:-1] != targets.shape or not logits.is_floating_point():
        raise ValueError(
            f"logits {logits.dtype} {list(logits.shape)} and targets {targets.dtype} {list(targets.shape)}:"
            " they must be floating point [..., vocab_size / n] and int64 [...]."
        )


def other_shapes(name: str, x) -> None:
    """Tokens are cut along the last dim but one."""
    if instance(name, x, Tensor).dim() < 2:
        raise ValueError(f"{name} has the shape {list(x.shape)}: it must be [..., time, dim].")


def other_sums(name: str, reduce_scatter) -> None:
    """None stands for torch's own."""
    if reduce_scatter is not None:
        function(name, reduce_scatter)


def other_probabilities(p: float) -> float:
    """What is dropped is a share."""
    if number("p", p) > 1:
        raise ValueError(f"p={p}: it must be a number from 0 to 1.")
    return p


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
