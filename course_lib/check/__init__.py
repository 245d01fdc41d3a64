"""One check per exercise: it runs the learner's answer as a real job and judges values and resources.

    from course_lib import check
    check.ping_pong(my_ping_pong)       # the last line of a cell: shows the verdict

A check never raises because of an answer. An untouched stub (`raise NotImplementedError`) gets one calm line, a wrong answer the reasons,
and an answer that is right but wasteful is refused too.
"""
from course_lib.check.chapter_00 import average, my_share, ping_pong
from course_lib.check.chapter_01 import memory_ledger, uneven_accumulation, weighted_average
from course_lib.check.chapter_02 import forward_in_threads, star_all_reduce, tree_all_reduce
from course_lib.check.chapter_03 import chain_broadcast, doubling_all_reduce, ring_all_reduce
from course_lib.check.chapter_04 import checkpoint, one_synchronisation, own_ddp
from course_lib.check.chapter_05 import bucketed_overlap, finish_time, half_precision_hook, quoted_rates
from course_lib.check.chapter_06 import clip_grad_norm, sharded_adam, sharded_checkpoint
from course_lib.check.chapter_07 import resharded_checkpoint, sharded_gradients, sharded_layers
from course_lib.check.chapter_08 import balanced_stages, pipeline_worker, schedule_1f1b, schedule_gpipe
from course_lib.check.chapter_09 import f_and_g, parallel_mlp, sequence_operators, vocabulary_loss
from course_lib.check.chapter_10 import gradient_norm, hybrid_weights, mesh, mesh_plan, process_groups
from course_lib.check.judge import Judge, Verdict, exercise

__all__ = ["Judge", "Verdict", "exercise", "ping_pong", "my_share", "average", "memory_ledger", "uneven_accumulation", "weighted_average",
           "star_all_reduce", "forward_in_threads", "tree_all_reduce", "ring_all_reduce", "chain_broadcast", "doubling_all_reduce",
           "own_ddp", "one_synchronisation", "checkpoint",
           "bucketed_overlap", "finish_time", "half_precision_hook", "quoted_rates",
           "sharded_adam", "clip_grad_norm", "sharded_checkpoint",
           "schedule_gpipe", "schedule_1f1b", "pipeline_worker", "balanced_stages",
           "f_and_g", "parallel_mlp", "vocabulary_loss", "sequence_operators",
           "mesh", "process_groups", "hybrid_weights", "gradient_norm", "mesh_plan"]
