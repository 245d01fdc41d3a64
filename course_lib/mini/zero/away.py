"""A parameter in stage 3 while it is not whole."""

from torch import Tensor, nn

from course_lib import torch_internals
from course_lib.mini.zero.gradients import LOOKS

__all__ = ["Away"]

ALLOWED = LOOKS - {"detach"} | {  # what may be asked of it
    "__set__",
    "__delete__",
    "__repr__",
    "__format__",
    "register_hook",
    "register_post_accumulate_grad_hook",
}


class Away(nn.Parameter):
    """A parameter in stage 3 while it is not whole: whoever computes with it is told so, where it would be
    found empty, or worse.
    """

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = "data" if function == Tensor.data.__get__ else function.__name__
        if name in ALLOWED:
            with torch_internals.without_subclass():
                return function(*args, **(kwargs or {}))
        raise RuntimeError(
            f"{name} on a parameter that is not whole now: in stage 3 it is while the forward of its module,"
            " or of its unit, computes. Put the modules that use it into one unit (units=[...]), call the"
            " unit itself, look at it within optimizer.gathered(), and convert a model before `shard`."
        )

    def __deepcopy__(self, memo):
        raise RuntimeError(
            "a model in stage 3 can be copied within optimizer.gathered() only: else its parameters are"
            " shards."
        )

    def __reduce_ex__(self, protocol):
        raise RuntimeError(
            "a model in stage 3 cannot be pickled: save its state_dict() within optimizer.gathered()."
        )
