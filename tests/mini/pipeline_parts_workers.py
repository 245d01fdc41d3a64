"""Functions that the tests of backwards in two parts run on ranks."""

import pipeline_workers as plain
import torch
import torch.distributed as dist
from torch import nn

from course_lib.mini import ddp, pipeline
from course_lib.mini.pipeline import backward_input, backward_weight
from course_lib.models import TinyGPT


def some_in_parts(num_ranks: int, num_microbatches: int) -> pipeline.Schedule:
    """1F1B, where every second rank does its backwards in two parts, all W at the end and the last one first;
    and of the others some micro-batches.
    """
    lists = []
    for rank, instructions in enumerate(pipeline.one_f_one_b(num_ranks, num_microbatches)):
        mine, late = [], []
        for one in instructions:
            whole = one.op == "forward" or (rank % 2 == 0 and one.microbatch % 2)
            mine.append(one if whole else backward_input(one.microbatch))
            late += [] if whole else [backward_weight(one.microbatch)]
        lists.append([*mine, *reversed(late)])
    return lists


def interleaved_in_parts(num_ranks: int, num_microbatches: int, chunks: int) -> pipeline.Schedule:
    """Two stages on a rank, and each W right behind the next instruction."""
    lists = []
    for instructions in pipeline.interleaved(num_ranks, num_microbatches, chunks):
        mine, late = [], []
        for one in instructions:
            mine.append(one if one.op == "forward" else backward_input(one.microbatch, one.stage))
            mine += late
            late = [] if one.op == "forward" else [backward_weight(one.microbatch, one.stage)]
        lists.append([*mine, *late])
    return lists


def by_name(schedule: str, ranks: int, num_microbatches: int, chunks: int = 1) -> pipeline.Schedule:
    if schedule == "some":
        return some_in_parts(ranks, num_microbatches)
    if schedule == "rounds":
        return interleaved_in_parts(ranks, num_microbatches, chunks)
    return ALL(schedule, ranks, num_microbatches, chunks)


ALL = plain.by_name


def compare(cases: list[tuple]) -> list[tuple]:
    """As `pipeline_workers.compare`."""
    plain.by_name = by_name  # this process ends with the job
    return plain.compare(cases)


def sleep(*arguments) -> dict[int, list[dict]]:
    """As `pipeline_workers.sleep`."""
    return plain.sleep(*arguments)


def held(schedule: str, num_microbatches: int) -> list[int]:
    """Bytes of tensors that a step adds at its worst moment; each rank has a stage of a TinyGPT."""
    from course_lib.measure import alive

    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = TinyGPT(layers=2 * size, dim=32, heads=2, context=32, tied=False)
    tokens = torch.randint(256, (2 * num_microbatches, 33))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    stage = pipeline.split(model, size)[rank]
    pipe = pipeline.Pipeline(stage, by_name(schedule, size, num_microbatches), plain.loss_fn)
    pipe.step(inputs, targets)  # gradients are there, and shapes known
    with alive.Allocations() as memory:
        memory.mark("begin")
        pipe.step(inputs, targets)
        memory.mark("end")
    return memory.peak_bytes("begin", "end") - memory.at("begin")


def refused(what: str) -> None:
    """Mistakes in what Pipeline is given."""
    rank, size = dist.get_rank(), dist.get_world_size()
    inputs, targets = plain.data("MLP")
    stage = pipeline.split(plain.make("MLP"), size)[rank]
    if what == "ddp":
        alone = dist.new_group([rank], use_local_synchronization=True)
        copies = ddp.DistributedDataParallel(stage, process_group=alone)
        pipeline.Pipeline(copies, pipeline.zb_h1(size, 2), plain.loss_fn)
    if what == "tuple":
        stage = nn.Sequential(stage, Two())
    pipeline.Pipeline(stage, pipeline.zb_h1(size, 2), plain.loss_fn).step(inputs, targets)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight, x
