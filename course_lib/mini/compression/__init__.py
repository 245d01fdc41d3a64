"""Compression: an average of gradients over the ranks for which fewer bytes travel.

A method takes this rank's gradient, and returns two things: what all ranks agree on in place of the mean, and
what this rank has **said**, the part of its own gradient that is in it:

    rounded     16-bit numbers, summed up on their way by an all_reduce
    top_k       the k largest numbers, and where they stand; every rank gets those of all
    one_bit     the signs, eight in a byte, and one size for all of them
    low_rank    two thin matrices in place of a large one, each summed up by an all_reduce (PowerSGD)

What is left unsaid is lost, unless it is added to the next gradient: error feedback. So nothing is dropped
for good, it only comes later.

    feedback = ErrorFeedback(partial(top_k, share=0.01))
    for parameter in model.parameters():                    # after backward, on every rank
        parameter.grad = feedback.average(parameter, parameter.grad)

Beside: `methods` (the four), `hook` (the same for torch's DDP), `refusals`.
Source: Seide et al. 2014, "1-bit stochastic gradient descent", section 3; Karimireddy et al. 2019, "Error
    feedback fixes SignSGD", algorithm 2; Vogels et al. 2019, "PowerSGD", algorithms 1 and 2.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from course_lib.arguments import fits, function, process_group, takes
from course_lib.mini.compression import refusals as refuse
from course_lib.mini.compression.hook import ddp_hook
from course_lib.mini.compression.methods import Group, low_rank, one_bit, rounded, top_k

__all__ = ["ErrorFeedback", "rounded", "top_k", "one_bit", "low_rank", "ddp_hook"]

Method = Callable[[Tensor, dict, Group], tuple[Tensor, Tensor]]


class ErrorFeedback:
    """Averages gradients by a method, and keeps for each parameter what this rank has not said yet.

    Args:
        method: (gradient, memory, group) -> (mean, said); `memory` is a dict of its own for each parameter.
        group: the ranks that take part; None for all.
        feedback: False forgets what was not said.

    Memory: as many bytes as the gradients, for what is unsaid (and the thin matrices of `low_rank`).
    """

    @takes(method=function, group=process_group, feedback=bool)
    def __init__(self, method: Method, group: Group = None, feedback: bool = True) -> None:
        self.method, self.group, self.feedback = method, group, feedback
        self.memory: dict[Hashable, dict] = {}

    @takes(key=refuse.no_key, gradient=refuse.no_gradient)
    @fits(refuse.other_shape)
    @torch.no_grad()
    def average(self, key: Hashable, gradient: Tensor) -> Tensor:
        """What takes the place of the mean over the ranks; of the shape and dtype of `gradient`, the same on
        all ranks to the last bit. Every rank must call this, in one order of keys.

        Args:
            key: whose gradient it is: the parameter, or its name.

        Errors: ValueError if it had another shape before.
        """
        memory = self.memory.setdefault(key, {})
        if not self.feedback:
            return self.method(gradient, memory, self.group)[0]
        wanted = gradient + memory["unsaid"] if "unsaid" in memory else gradient
        mean, said = self.method(wanted, memory, self.group)
        memory["unsaid"] = wanted - said
        return mean

    def unsaid_bytes(self) -> int:
        """Bytes that this rank keeps for later."""
        return sum(memory["unsaid"].nbytes for memory in self.memory.values() if "unsaid" in memory)
