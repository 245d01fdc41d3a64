"""From scratch: each kind of parallelism in plain PyTorch, as the chapters arrive at it. One folder an idea:
its `__init__` is the idea, in at most 120 lines, right for the plain case; speed, odd cases, checkpoints and
refusals stand in files beside it, which it names.

                  what it is                                                     chapter

data_parallel/    replicas in threads, and sums between processes: a star        DataParallel, the star
ring/             all_reduce, reduce_scatter and all_gather in chunks            Collectives and the ring
ddp/              broadcast, hooks, buckets;                                     Distributed data parallel,
                  they overlap backward                                          Overlap and speed-up
zero/             stage 1: shards of optimizer states;                           ZeRO stage 1,
                  stages 2 and 3: of gradients and of parameters                 ZeRO stages 2 and 3
pipeline/         stages, schedules as lists, a worker that executes them;       Pipeline,
                  a backward in two parts                                        Pipeline schedules
tensor_parallel/  f and g; layers cut by columns, rows, heads, vocabulary        Tensor parallelism
context/          attention over a cut sequence: a ring of keys and values,      Long context
                  or an all_to_all of heads
experts/          a router, and tokens that travel to the experts of other ranks Experts
hybrid/           a mesh of ranks, and the process groups of each axis           Hybrid parallelism
compression/      means of gradients for which fewer bytes travel,               Precision and compression
                  and error feedback
parameter_server/  a server and its workers, which wait for each other or not    Asynchronous and federated
local_sgd/        weights that are averaged every H steps, or by samples         Asynchronous and federated
reading/          which rank and worker reads which sample: a place that is a    Data
                  count, an order without a list, a loss over all ranks
first_rank.py     all ranks start alike: what several of these share

Read them: they are written for that. They do what torch's own do, and tests hold them to the same numbers.
"""

from course_lib.mini import (
    compression,
    context,
    data_parallel,
    ddp,
    experts,
    hybrid,
    local_sgd,
    parameter_server,
    pipeline,
    reading,
    ring,
    tensor_parallel,
    zero,
)

__all__ = [
    "data_parallel",
    "ring",
    "ddp",
    "zero",
    "pipeline",
    "tensor_parallel",
    "context",
    "experts",
    "hybrid",
    "compression",
    "parameter_server",
    "local_sgd",
    "reading",
]
