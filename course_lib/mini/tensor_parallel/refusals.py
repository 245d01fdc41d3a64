"""What mini.tensor_parallel refuses, each in one sentence: what a cut would lose or untie, without a word."""

from torch import nn

from course_lib.arguments import instance
from course_lib.models import TinyGPT

__all__ = ["shared_weights", "other_than_plain"]


def shared_weights(model: nn.Module) -> None:
    """The slices would become two weights, and drift apart. (TinyGPT's tied one stays one.)"""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for names in places.values():
        if len(names) > 1 and not (
            isinstance(model, TinyGPT) and set(names) == {"embedding.weight", "head.weight"}
        ):
            raise ValueError(
                f"{' and '.join(names)} are one weight, and the cut would make several of it: untie them."
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
        what = (
            f"{'an' if type(module).__name__[0] in 'AEIO' else 'a'}"
            f" {type(module).__name__}{' with ' * bool(options)}{', '.join(options)}"
        )
        raise TypeError(
            f"{name} is {what}, and the cut would leave a plain {kind.__name__} of it: take a plain one."
        )
