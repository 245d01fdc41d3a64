"""From scratch: each kind of parallelism in about a hundred lines of plain PyTorch, as the chapters arrive at
it. One folder an idea: its `__init__` is the idea, right for the plain case; speed, odd cases, checkpoints
and refusals stand in files beside it.

    module            what it is                                                                   chapter
    data_parallel     DataParallel, the star: replicas in threads; and its sums between processes  02
    ring              all_reduce, reduce_scatter and all_gather round a ring, in chunks            03
    ddp               DistributedDataParallel: broadcast, hooks, buckets that overlap backward     04, 05
    zero              ZeRO stages 1, 2, 3: shards of optimizer states, gradients and parameters    06, 07
    pipeline          stages, schedules as lists of instructions, a worker that executes them      08
    tensor_parallel   f and g; layers cut by columns and by rows, heads, vocabulary, sequences     09
    hybrid            a mesh of ranks: coordinates, and the process groups of each axis            10

Read them: they are written for that. They do what torch's own do, and tests hold them to the same numbers.
What several share is in `first_rank`: all ranks start alike.
"""

from course_lib.mini import data_parallel, ddp, hybrid, pipeline, ring, tensor_parallel, zero

__all__ = [
    "data_parallel",
    "ring",
    "ddp",
    "zero",
    "pipeline",
    "tensor_parallel",
    "hybrid",
]
