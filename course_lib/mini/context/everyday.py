"""How a model uses it: what its attention layers call, and the loss of a sequence that is cut.

    mine = context.positions(time)                            # this rank's places in the sequence
    context.attach(model, context.ring_attention, time=time)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]           # shifted first, while the sequence is whole
    logits = model.logits(inputs[:, mine], mine)              # a model must be told the positions
    losses = F.cross_entropy(logits.flatten(0, 1), targets[:, mine].flatten(), reduction="none")
    context.mean_of_all(losses).backward()

Parameters are whole on every rank, and each rank's gradient is an addend, of its own tokens: sum them over
the ranks before the optimizer steps. (DDP and fully_shard divide by the number of ranks: so multiply the
loss.)
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import function, process_group, takes
from course_lib.mini.context import refusals as refuse

__all__ = ["attach", "mean_of_all"]


@takes(model=refuse.without_attention, attention=function)
def attach(model: nn.Module, attention: Callable[..., Tensor], **options) -> None:
    """Have a model's attention layers call `attention(q, k, v, **options)`, from now on.

    Args:
        model: its attention layers say `self.attend(q, k, v)`, as those of `course_lib.models` do, for
            tensors [batch, heads, time, head_dim].
        attention: ring_attention, ulysses_attention, or one of your own.
        options: its other arguments: causal, order, time, process_group.

    Errors: TypeError if no layer of the model has an `attend`.
    """
    for module in model.modules():
        if hasattr(module, "attend"):
            module.attend = partial(attention, **options)


@takes(losses=Tensor, process_group=process_group)
def mean_of_all(losses: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """Return this rank's addend of the mean over the tokens of all ranks, to call backward on.

    The sum over the ranks of what this returns is the loss of one process, and so it is with gradients. (The
    mean of the ranks' means is another number where ranks have different numbers of tokens.) Every rank of
    the group must call this.

    Args:
        losses: one for each token of this rank, in any shape.
    """
    count = torch.tensor(float(losses.numel()), device=losses.device)
    dist.all_reduce(count, group=process_group)
    return losses.sum() / count
