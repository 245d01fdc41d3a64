"""One check per exercise: it runs the learner's answer as a real job and judges values and resources.

    from course_lib import check
    check.demands("ping_pong")          # what the exercise asks for
    check.ping_pong(my_ping_pong)       # the last line of a cell: shows the verdict

A check is a trial on ranks, cases to try, and demands (`rubric.py`); `judge.py` runs the one and judges it by
the others. A demand stays code of its check (`Judge.demand`) where it looks at several cases or jobs at once,
or at what an answer without ranks returns, or where a verdict that finds it met tells the case's own sizes.

A check never raises because of an answer: only if what starts its ranks fails, of which the answer knows
nothing. An untouched stub (`raise NotImplementedError`) gets one calm line and the list of demands, a wrong
answer the reasons, and an answer that is right but wasteful is refused too. Every try has other numbers in it
(`Judge.seed`).

What a check does not defend against: an answer that changes the course's own code while it runs (the judge,
the ledger, torch below the dispatcher), or that looks up what is asked for in the check itself. Who does that
deceives only themselves. Nor does every check notice numbers that go from rank to rank beside
`torch.distributed`, in a file or in memory that ranks share: those do whose answers must send a known number
of bytes (`right` of `rubric.sends`), or call sends and receives by name.

The checks load when they are first used. What a rank runs stands inside each check and travels by value: so a
rank imports `check.on_rank` alone, and never pays for pandas.

Each chapter has a module of its name (`_CHECKS`). Beside them:

judge.py      runs an answer, case by case, and judges it
verdict.py    what is said of an answer, and what is asked for
rubric.py     demands, and the kinds of them that many exercises share
counted.py    bytes that each rank of a finished job sent, how many may be headers, and what the textbook says
on_rank.py    what trials share on the ranks
folder.py     the folder in which they write
stillness.py  whether the other ranks can still go on by themselves, or all stand still
"""

import importlib

_CHECKS = {
    "start_here": ("ping_pong", "my_share", "average"),
    "one_training_step": ("memory_ledger", "uneven_accumulation", "weighted_average"),
    "data_parallel_the_star": ("star_all_reduce", "loss_in_forward", "tree_all_reduce"),
    "collectives_and_the_ring": (
        "ring_reduce_scatter",
        "chain_broadcast",
        "halving_doubling_all_reduce",
    ),
    "ddp": ("own_ddp", "one_synchronisation", "ranks_agree"),
    "ddp_in_practice": ("exact_evaluation", "token_average", "checkpoint"),
    "overlap_and_speedup": ("bucketed_overlap", "finish_time", "half_precision_hook", "quoted_rates"),
    "zero_stage_1": ("sharded_adam", "clip_grad_norm", "sharded_checkpoint"),
    "zero_stages_2_and_3": ("sharded_gradients", "sharded_layers", "sharded_units"),
    "fully_shard_in_practice": ("units_for_budget", "init_on_meta", "quiet_accumulation"),
    "pipeline": ("schedule_gpipe", "schedule_1f1b", "pipeline_worker", "balanced_stages"),
    "pipeline_schedules": ("interleaved_rounds", "later_linear", "weights_in_bubbles"),
    "tensor_parallel": ("f_and_g", "parallel_mlp", "vocabulary_loss", "product_in_pieces"),
    "long_context": ("softmax_merge", "window_ring", "packed_documents", "ulysses_few_heads"),
    "experts": ("tokens_once", "room_by_weight", "balance_over_ranks", "expert_gradients"),
    "hybrid": ("data_pipeline", "gradient_norm", "fastest_layout"),
    "choosing_a_strategy": ("forward_counts", "link_of_measurements", "bytes_by_axis"),
    "asynchronous_and_federated": ("late_gradients", "average_in_fragments", "federated_average"),
    "data": ("stream_once", "weighted_update", "order_without_a_list"),
    "precision_and_compression": ("skipped_together", "mean_of_bytes", "places_that_all_know"),
    "clinic": ("mended_ada", "mended_ben", "mended_cleo", "mended_dora", "mended_emil"),
    "checkpoints_and_restarts": ("background_saver", "steps_between_saves", "odd_replicas"),
    "beyond_one_machine": ("hierarchical_all_reduce", "axis_order", "slurm_environment"),
}
_TOOLS = {"judge": ("Judge", "exercise", "demands"), "verdict": ("Printed", "Note", "Verdict", "Demands")}
_HOMES = {name: module for module, names in (_CHECKS | _TOOLS).items() for name in names}

EXERCISES = tuple(name for names in _CHECKS.values() for name in names)

__all__ = ["EXERCISES", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
