"""DataParallel, the star: one root that does everything for everybody.

Two forms of one idea. Here `torch.nn.DataParallel`'s own algorithm, in one process, with a thread for each
replica:

    scatter     cut the batch into one piece per replica
    replicate   copy the root's parameters to every replica
    apply       run the replicas, each on its piece, in threads
    gather      bring the outputs back to the root

The root computes the loss and calls backward, and autograd runs the same way back: the copies' gradients add
up in the root's parameters. The same star between processes is in `star`: all tensors go through one root.

Beside: `star`, `modes` (switches that torch keeps for each thread), `refusals` (what cannot be cut).
Source: documentation of torch.nn.DataParallel; Li et al. 2020, "PyTorch Distributed", section 2.
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from course_lib.arguments import listed, takes, whole
from course_lib.mini.data_parallel.modes import as_in_this_thread
from course_lib.mini.data_parallel.refusals import has_samples, inputs_to_cut
from course_lib.mini.data_parallel.star import star_all_reduce, star_broadcast, star_reduce

__all__ = [
    "DataParallel",
    "scatter",
    "replicate",
    "parallel_apply",
    "gather",
    "star_reduce",
    "star_broadcast",
    "star_all_reduce",
]

_at_most_1024 = partial(whole, most=1024)


class DataParallel(nn.Module):
    """Split each batch over replicas of a module that run in threads of this process.

    Args:
        module: what is replicated; its parameters are the root's, and the optimizer's.
        num_replicas: how many threads, the root's among them. A batch with fewer samples uses fewer.

    Call it as the module (arguments by position): tensors are cut along their first dimension; scalars, and
    everything else, go to each replica as they are. Outputs must be tensors: [batch, ...] comes back whole; a
    scalar, such as a mean loss, comes back as one per replica [num_replicas].
    """

    @takes(module=nn.Module, num_replicas=_at_most_1024)
    def __init__(self, module: nn.Module, num_replicas: int = 2):
        super().__init__()
        self.module, self.num_replicas = module, num_replicas

    def forward(self, *inputs) -> Tensor:
        pieces = scatter(inputs, self.num_replicas)
        replicas = replicate(self.module, len(pieces))
        return gather(parallel_apply(replicas, pieces))


@takes(inputs=inputs_to_cut, num_replicas=_at_most_1024)
def scatter(inputs: Sequence, num_replicas: int) -> list[tuple]:
    """Cut every tensor among `inputs` [batch, ...] along its first dimension: one tuple of inputs per
    replica.

    Pieces are those of `torch.chunk`: ceil(batch / num_replicas) samples, the last fewer; there may be fewer
    pieces than replicas.

    Errors: ValueError if the tensors differ in their first dimension, TypeError if some are inside a list or
        dict.
    """
    columns = [value.chunk(num_replicas) if has_samples(value) else None for value in inputs]
    count = min((len(column) for column in columns if column), default=num_replicas)
    columns = [column or [value] * count for column, value in zip(columns, inputs)]
    return list(zip(*columns)) if columns else [()] * num_replicas


@takes(module=nn.Module, num_replicas=_at_most_1024)
def replicate(module: nn.Module, num_replicas: int) -> list[nn.Module]:
    """Return the module itself, the root, and num_replicas - 1 copies, whose gradients flow back to the
    root's parameters.

    `clone` is a differentiable operation, and in backward it hands its gradient to what was cloned. Buffers
    are copied too, but what a replica writes into them (running means) is lost with it: only the root's own
    last.
    """
    replicas = [module]
    for _ in range(num_replicas - 1):
        copies = {id(parameter): parameter.clone() for parameter in module.parameters()}
        # deepcopy takes what it finds in `copies` and does not copy it again
        replicas.append(copy.deepcopy(module, copies))
    return replicas


@takes(
    replicas=partial(listed, what="modules, one for each entry of inputs", good=callable),
    inputs=partial(listed, what="a tuple of inputs for each replica", good=lambda x: isinstance(x, Sequence)),
)
def parallel_apply(replicas: Sequence[nn.Module], inputs: Sequence[tuple]) -> list[Tensor]:
    """Run every replica on its inputs, each in a thread; an error in any thread is raised here."""
    apply = as_in_this_thread(lambda replica, arguments: replica(*arguments))
    with ThreadPoolExecutor(len(replicas)) as threads:
        return list(threads.map(apply, replicas, inputs))


@takes(outputs=partial(listed, what="one tensor of each replica", good=torch.is_tensor))
def gather(outputs: Sequence[Tensor]) -> Tensor:
    """Join the replicas' outputs along their first dimension: [batch, ...], or [num_replicas] if they are
    scalars.
    """
    return torch.stack(list(outputs)) if outputs[0].dim() == 0 else torch.cat(list(outputs))
