"""What mini.pipeline refuses, each in one sentence that says what happened and what to do. The ideas
themselves are in __init__.py and stages.py.
"""

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor, nn

from course_lib.arguments import instance, listed, number, whole
from course_lib.mini.pipeline.instructions import Instruction, Schedule
from course_lib.mini.pipeline.validator import validate

__all__ = [
    "other_models",
    "other_sizes",
    "empty_stages",
    "shared_weights",
    "other_stages",
    "other_schedules",
    "other_batches",
    "other_outputs",
    "other_losses",
    "no_gradient",
    "other_layers",
    "other_lists",
    "other_costs",
    "other_slots",
    "other_torch_schedules",
    "other_waiting",
]


def other_models(name: str, model) -> None:
    """A model that does not say how it can be cut."""
    if not isinstance(model, nn.Sequential) and not callable(getattr(model, "stages", None)):
        raise TypeError(
            "split knows how to cut an nn.Sequential, and a model that says by its `stages()` how, not"
            f" {type(model).__name__}."
        )


def other_sizes(sizes: Sequence[int], num_stages: int, num_layers: int) -> None:
    """Every layer goes to one stage."""
    for size in instance("sizes", sizes, Sequence, "of numbers of layers"):
        whole("each of sizes", size, least=-num_layers)
    if len(sizes) != num_stages or sum(sizes) != num_layers or min(sizes) < 0:
        raise ValueError(
            f"sizes={list(sizes)}: it must be {num_stages} numbers that sum to {num_layers}, the model's"
            " layers."
        )


def empty_stages(parts: list[list[nn.Module]], num_layers: int) -> None:
    """A stage must have something to do."""
    if not all(parts):
        raise ValueError(f"{num_layers} layers leave nothing for stage {parts.index([])} of {len(parts)}.")


def shared_weights(stages: Sequence[nn.Module]) -> None:
    """Each rank would train a copy of its own."""
    stage_of: dict[Tensor, int] = {}
    for stage, module in enumerate(stages):
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if stage_of.setdefault(tensor, stage) != stage:
                raise ValueError(
                    f"stages {stage_of[tensor]} and {stage} share a weight, {name} of stage {stage}, and"
                    " would be on two ranks: untie it (with tied=False, where a model has that), or cut"
                    " elsewhere, with sizes."
                )


def other_stages(name: str, stages) -> None:
    """A rank has one stage or several, and each is a module."""
    modules = list(stages) if isinstance(stages, (list, tuple, nn.ModuleList)) else [stages]
    listed(name, modules, "a module, or a list of modules", lambda stage: isinstance(stage, nn.Module))


def other_schedules(stages, schedule: Schedule, process_group: dist.ProcessGroup | None) -> None:
    """A schedule that these ranks cannot run."""
    instance("schedule", schedule, Sequence, "of one list of instructions per rank")
    size = dist.get_world_size(process_group)
    if len(schedule) != size:
        raise ValueError(f"the schedule has lists for {len(schedule)} ranks, and the group has {size}.")
    lists = [instructions for instructions in schedule if isinstance(instructions, Sequence)]
    instructions = [one for instructions in lists for one in instructions if isinstance(one, Instruction)]
    num_microbatches = 1 + max((instruction.microbatch for instruction in instructions), default=0)
    several = isinstance(stages, (list, tuple, nn.ModuleList))
    validate(schedule, size * (len(stages) if several else 1), num_microbatches)
    in_parts = any(instruction.op == "backward_weight" for instruction in instructions)
    if in_parts and any(hasattr(stage, "no_sync") for stage in (stages if several else [stages])):
        raise ValueError(
            "a stage in DistributedDataParallel averages when its backward ends, and this schedule has"
            " backwards in two parts: give the stage itself, and average its gradients after the step."
        )


def other_batches(name: str, batch: Tensor | None, num_microbatches: int, stage: int, rank: int) -> None:
    """A batch is dealt out evenly to micro-batches."""
    count = len(batch) if isinstance(batch, Tensor) and batch.dim() else None
    if not count or count % num_microbatches:
        raise ValueError(
            f"rank {rank} needs {name}, for stage {stage}: a tensor with a number of samples that is a"
            f" multiple of {num_microbatches} micro-batches, not {count}."
        )


def other_outputs(output, stage: int, rank: int) -> Tensor:
    """From stage to stage, one tensor travels."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"stage {stage}, on rank {rank}, returned a {type(output).__name__}: a stage takes one tensor and"
            " returns one."
        )
    return output


def other_losses(loss) -> Tensor:
    """The step's loss is a mean of micro-batches' means."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f"of the shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(
            f"loss_fn returned {shape}: it must be one number, the mean over the samples, as a tensor."
        )
    return loss


def no_gradient(grad: Tensor | None, stage: int) -> Tensor:
    """The stage before waits for one."""
    if grad is None:
        raise RuntimeError(f"stage {stage} has no gradient for its input: its output does not depend on it.")
    return grad


def other_layers(output) -> Tensor:
    """A layer whose weight waits has one output."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a layer with a matrix for a weight returned a {type(output).__name__}, and not a tensor: then"
            " its gradients cannot wait. Take a schedule without backward_weight."
        )
    return output


def other_lists(name: str, schedule) -> None:
    """A schedule has a list of instructions for each rank."""

    def is_list(entry) -> bool:
        return isinstance(entry, (list, tuple)) and all(isinstance(one, Instruction) for one in entry)

    listed(name, schedule, "a list of instructions for each rank", is_list)


def other_costs(schedule: Schedule, costs) -> None:
    """Every op in the lists costs something."""
    for op in dict.fromkeys(one.op for instructions in schedule for one in instructions):
        if not isinstance(costs, Mapping) or op not in costs:
            raise ValueError(f"costs: it must say what each op costs, and {op!r} is missing.")
        number(f"costs[{op!r}]", costs[op], above=True)


def other_slots(name: str, found) -> None:
    """What `play` and `blocks` return."""
    listed(name, found, "a list of slots, as `play` returns it", lambda one: hasattr(one, "microbatch"))


def other_torch_schedules(name: str, schedule) -> None:
    """Of torch's schedules, those with several stages on a rank have lists."""
    if not hasattr(schedule, "pipeline_order"):
        raise TypeError(
            f"{name}: it must be a schedule of torch.distributed.pipelining with several stages on a rank,"
            f" not {type(schedule).__name__}."
        )


def other_waiting(name: str, waiting) -> None:
    """What `waiting_weights` has filled."""
    if not isinstance(waiting, list) or not all(isinstance(one, tuple) and len(one) == 3 for one in waiting):
        raise TypeError(f"{name}: it must be the list that `waiting_weights` has filled.")
