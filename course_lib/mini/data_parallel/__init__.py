"""DataParallel, the star: one root that does everything for everybody.

Two forms of one idea. First `torch.nn.DataParallel`'s own algorithm, in one process, with a thread for each
replica:

    scatter     cut the batch into one piece per replica
    replicate   copy the root's parameters to every replica
    apply       run the replicas, each on its piece, in threads
    gather      bring the outputs back to the root

The root computes the loss and calls backward, and autograd runs the same way back: the copies' gradients add
up in the root's parameters.
Second, the same star between processes: `star_all_reduce`. The root moves (n-1) S bytes each way, every other
rank S: the more ranks, the more the root has to do, and the others wait for it. (The ring, in ring.py, is the
way out.)

Source: documentation of torch.nn.DataParallel; Li et al. 2020, "PyTorch Distributed", section 2.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import dense, instance, listed, process_group, whole

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

MAX_REPLICAS = 1024


class DataParallel(nn.Module):
    """Split each batch over replicas of a module that run in threads of this process.

    Args:
        module: what is replicated; its parameters are the root's, and the optimizer's.
        num_replicas: how many threads, the root's among them. A batch with fewer samples uses fewer.

    Call it as the module (arguments by position): tensors are cut along their first dimension; scalars, and
    everything else, go to each replica as they
    are. Outputs must be tensors: [batch, ...] comes back whole; a scalar, such as a mean loss, comes back as
    one per replica [num_replicas].
    """

    def __init__(self, module: nn.Module, num_replicas: int = 2):
        super().__init__()
        self.module, self.num_replicas = (
            instance("module", module, nn.Module),
            whole("num_replicas", num_replicas, most=MAX_REPLICAS),
        )

    def forward(self, *inputs) -> Tensor:
        pieces = scatter(inputs, self.num_replicas)
        replicas = replicate(self.module, len(pieces))
        return gather(parallel_apply(replicas, pieces))


def scatter(inputs: Sequence, num_replicas: int) -> list[tuple]:
    """Cut every tensor among `inputs` [batch, ...] along its first dimension: one tuple of inputs per
    replica.

    Pieces are those of `torch.chunk`: ceil(batch / num_replicas) samples, the last fewer; there may be fewer
    pieces than replicas.

    Errors: ValueError if the tensors differ in their first dimension, TypeError if some are inside a list or
        dict.
    """
    instance("inputs", inputs, Sequence), whole("num_replicas", num_replicas, most=MAX_REPLICAS)
    if len(sizes := {len(value) for value in inputs if _has_samples(value)}) > 1:
        raise ValueError(
            f"the tensors have {' and '.join(map(str, sorted(sizes)))} samples: it must be one number for"
            " all."
        )
    if any(map(_hides_samples, inputs)):
        raise TypeError(
            "a tensor inside a list, tuple or dict would go to every replica uncut: pass each tensor as an"
            " argument of its own."
        )
    columns = [value.chunk(num_replicas) if _has_samples(value) else None for value in inputs]
    count = min((len(column) for column in columns if column), default=num_replicas)
    columns = [column or [value] * count for column, value in zip(columns, inputs)]
    return list(zip(*columns)) if columns else [()] * num_replicas


def _has_samples(value) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _hides_samples(value) -> bool:
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    return any(_has_samples(part) or _hides_samples(part) for part in parts)


def replicate(module: nn.Module, num_replicas: int) -> list[nn.Module]:
    """Return the module itself, the root, and num_replicas - 1 copies, whose gradients flow back to the
    root's parameters.

    `clone` is a differentiable operation, and in backward it hands its gradient to what was cloned. Buffers
    are copied too, but what a replica writes into them (running means) is lost with it: only the root's own
    last.
    """
    instance("module", module, nn.Module), whole("num_replicas", num_replicas, most=MAX_REPLICAS)
    replicas = [module]
    for _ in range(num_replicas - 1):
        copies = {id(parameter): parameter.clone() for parameter in module.parameters()}
        # deepcopy takes what it finds in `copies` and does not copy it again
        replicas.append(copy.deepcopy(module, copies))
    return replicas


def parallel_apply(replicas: Sequence[nn.Module], inputs: Sequence[tuple]) -> list[Tensor]:
    """Run every replica on its inputs, each in a thread; an error in any thread is raised here."""
    listed("replicas", replicas, "modules, one for each entry of inputs", callable)
    listed(
        "inputs",
        inputs,
        "a tuple of inputs for each replica",
        lambda arguments: isinstance(arguments, Sequence),
    )
    modes = _modes_of_this_thread()

    def apply(replica: nn.Module, arguments: tuple) -> Tensor:
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            return replica(*arguments)

    with ThreadPoolExecutor(len(replicas)) as threads:
        return list(threads.map(apply, replicas, inputs))


def _modes_of_this_thread() -> list[Callable[[], contextlib.AbstractContextManager]]:
    """What another thread must enter to compute as this one does: torch keeps a switch of each for every
    thread.
    """
    grad, inference, device = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_device(),
    )
    cached = torch.is_autocast_cache_enabled()
    modes = [lambda: torch.inference_mode(inference), lambda: torch.set_grad_enabled(grad)]
    if device != torch.device("cpu"):
        modes.append(lambda: torch.device(device))
    for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps")):
        modes.append(
            lambda kind=kind, dtype=torch.get_autocast_dtype(kind): torch.autocast(
                kind, dtype, cache_enabled=cached
            )
        )
    return modes


def gather(outputs: Sequence[Tensor]) -> Tensor:
    """Join the replicas' outputs along their first dimension: [batch, ...], or [num_replicas] if they are
    scalars.
    """
    listed("outputs", outputs, "one tensor of each replica", lambda output: isinstance(output, Tensor))
    return torch.stack(list(outputs)) if outputs[0].dim() == 0 else torch.cat(list(outputs))


def star_all_reduce(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Sum `tensor` over the ranks in place, through one root; every rank of the group must call this.

    The root receives (n-1) S bytes and sends as many; every other rank sends S and receives S.

    Args:
        root: a rank of the group, counted within the group.
    """
    star_reduce(tensor, root, group)
    star_broadcast(tensor, root, group)


@torch.no_grad()
def star_reduce(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Sum `tensor` over the ranks into the root's; every rank of the group must call this. The others send
    their whole tensor, the root adds them up.
    """
    _look(tensor, root, group, added=True)
    if dist.get_rank(group) != root:
        dist.send(tensor.contiguous(), group=group, group_dst=root)
        return
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for other in _others(root, group):
        dist.recv(received, group=group, group_src=other)
        tensor += received


@torch.no_grad()
def star_broadcast(tensor: Tensor, root: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the root's `tensor`; every rank of the group must call this. The root sends it whole to
    one rank after the other.
    """
    _look(tensor, root, group)
    flat = tensor.contiguous()  # itself, or, of a view such as x[:, 0], a copy
    if dist.get_rank(group) != root:
        dist.recv(flat, group=group, group_src=root)
        tensor.copy_(flat)
        return
    for other in _others(root, group):
        dist.send(flat, group=group, group_dst=other)


def _look(tensor: Tensor, root: int, group: dist.ProcessGroup | None, added: bool = False) -> None:
    dense("tensor", tensor, added=added), process_group("group", group)
    whole("root", root, least=0, most=dist.get_world_size(group) - 1)


def _others(root: int, group: dist.ProcessGroup | None) -> list[int]:
    return [rank for rank in range(dist.get_world_size(group)) if rank != root]
