"""What mini.data_parallel refuses: inputs that cannot be cut alike, each in one sentence."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from course_lib.arguments import instance

__all__ = ["inputs_to_cut", "has_samples"]


def inputs_to_cut(name: str, inputs: Sequence) -> None:
    """Tensors must have as many samples as each other, and none may hide where it would not be cut."""
    instance(name, inputs, Sequence)
    if len(sizes := {len(value) for value in inputs if has_samples(value)}) > 1:
        raise ValueError(
            f"the tensors have {' and '.join(map(str, sorted(sizes)))} samples: it must be one number for"
            " all."
        )
    if any(map(_hides_samples, inputs)):
        raise TypeError(
            "a tensor inside a list, tuple or dict would go to every replica uncut: pass each tensor as an"
            " argument of its own."
        )


def has_samples(value) -> bool:
    """Whether it is a tensor with a first dimension, along which it can be cut."""
    return isinstance(value, Tensor) and value.dim() > 0


def _hides_samples(value) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    return any(has_samples(part) or _hides_samples(part) for part in parts)
