"""Each check of "Hybrid parallelism" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_hybrid as answers
from verdicts import *  # noqa: F403

from course_lib.check import hybrid as chapter
from course_lib.mini import hybrid

MESH, GROUPS, WEIGHTS, NORM, PLAN = (
    chapter.mesh,
    chapter.process_groups,
    chapter.hybrid_weights,
    chapter.gradient_norm,
    chapter.mesh_plan,
)
RIGHT = [
    (MESH, [answers.coordinates, answers.axis_groups]),
    (MESH, [hybrid.coordinates, hybrid.axis_groups]),
    (MESH, [answers.coordinates_by_numpy, answers.groups_as_an_array]),
    (MESH, [answers.coordinates, answers.groups_as_they_come]),
    (GROUPS, [answers.make_groups]),
    (GROUPS, [answers.make_groups_by_torch]),
    (GROUPS, [answers.make_groups_of_arrays]),
    (GROUPS, [answers.make_groups_among_members]),
    (WEIGHTS, [answers.average]),
    (WEIGHTS, [answers.average_flat]),
    (WEIGHTS, [answers.average_by_messages]),
    (WEIGHTS, [answers.average_all_at_once]),
    (NORM, [answers.gradient_norm]),
    (NORM, [answers.norm_shared]),
    (NORM, [answers.norm_by_numpy]),
    (NORM, [answers.norm_by_all_gather]),
    (NORM, [answers.norm_number_by_number]),
    (PLAN, [answers.plan]),
    (PLAN, [answers.plan_by_numpy]),
]
UNTOUCHED = [
    (MESH, [answers.stub, answers.stub]),
    (MESH, [answers.coordinates, answers.stub]),
    (GROUPS, [answers.stub]),
    (WEIGHTS, [answers.stub]),
    (NORM, [answers.stub]),
    (PLAN, [answers.stub]),
]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        MESH,
        [answers.coordinates_first_axis_fastest, answers.axis_groups],
        ["your first axis is the fastest, and it must be the last one"],
        "",
    ),
    (
        MESH,
        [answers.coordinates_of_two_axes, answers.axis_groups],
        ["mesh dp 2 x pp 3 x tp 4: rank 0 stands at {'dp': 0, 'pp': 0, 'tp': 0}"],
        "mesh dp 2 x tp 4: every rank has its place",
    ),
    (
        MESH,
        [answers.coordinates, answers.groups_swapped],
        ["your groups of 'dp' are [[0, 1], [2, 3]]: those are the groups of 'tp'"],
        "has its place",
    ),
    (
        MESH,
        [answers.coordinates, answers.groups_overlapping],
        ["is in more than one of them"],
        "has its place",
    ),
    (MESH, [answers.coordinates, answers.groups_of_rank_0], ["rank 1 is in none of them"], "has its place"),
    (MESH, [answers.coordinates, answers.groups_of_all], ["that is all ranks in one"], "has its place"),
    (
        MESH,
        [answers.coordinates, answers.groups_in_the_mesh],
        ["mesh dp 2 x pp 3 x tp 4: the groups of 'dp' must be a list of lists of ranks, not [[["],
        "mesh dp 2 x tp 4: the groups of each axis are right",
    ),
    (
        MESH,
        [answers.coordinates, answers.groups_of_known_axes],
        ["your groups of"],
        "mesh dp 2 x cp 1 x pp 3 x tp 2: the groups of each axis are right",
    ),
    (MESH, [answers.coordinates, answers.groups_with_exit], ["SystemExit"], ""),
    (
        GROUPS,
        [answers.make_groups_by_members_only],
        [
            "in its call number 1 of new_group, rank 0 makes the group [0, 2]",
            "every rank must make every group, in the same order, also those that it is not in",
        ],
        "",
    ),
    (GROUPS, [answers.make_groups_fewer_on_some], ["every rank must make every group"], ""),
    (GROUPS, [answers.make_groups_swapped], ["those are the groups of 'tp'"], "every rank makes every group"),
    (
        GROUPS,
        [answers.make_groups_overlapping],
        ["is in more than one of them"],
        "every rank makes every group",
    ),
    (
        GROUPS,
        [answers.make_groups_keeps_the_last],
        ["a group that it is not in"],
        "every rank makes every group",
    ),
    (
        GROUPS,
        [answers.make_groups_as_lists],
        ["rank 0 returns [0, 2] for 'dp', and it must be a process group, as `dist.new_group` returns it"],
        "",
    ),
    (
        GROUPS,
        [answers.make_groups_none_of_one_rank],
        ["rank 0 returns None for 'pp', and to a collective None means all ranks"],
        "its group of tp",
    ),
    (GROUPS, [answers.make_groups_all_in_one], ["that is all ranks in one"], "every rank makes every group"),
    (
        WEIGHTS,
        [answers.average_over_all],
        ["your all_reduce goes over all ranks", "mix numbers that belong to different weights"],
        "",
    ),
    (WEIGHTS, [answers.average_over_tp], ["goes over the ranks 0,1, a group of tp"], ""),
    (WEIGHTS, [answers.average_sum], ["It is the sum over dp, not the average"], "within a group of dp"),
    (
        WEIGHTS,
        [answers.average_divides_by_all],
        ["It is divided by the number of all ranks; only dp counts"],
        "within a group of dp",
    ),
    (
        WEIGHTS,
        [answers.average_of_what_is_cut],
        ["It is this row's own where a parameter is whole"],
        "within a group of dp",
    ),
    (
        WEIGHTS,
        [answers.average_nothing],
        ["this row's own gradient: nothing was averaged"],
        "within a group of dp",
    ),
    (
        WEIGHTS,
        [answers.average_by_files],
        ["must travel. What a rank needs from the others comes in messages of torch.distributed"],
        "the weights are those of one process",
    ),
    (
        WEIGHTS,
        [answers.average_gathers],
        ["a rank sends 1.5", "An all_gather brings everybody's numbers"],
        "the weights are those of one process",
    ),
    (
        WEIGHTS,
        [answers.average_by_reduce_and_broadcast],
        ["a rank sends 2.1", "has more to send than the others"],
        "the weights are those of one process",
    ),
    (
        WEIGHTS,
        [answers.average_by_reduce_scatter],
        ["gloo's reduce_scatter sends as much as a whole all_reduce"],
        "the weights are those of one process",
    ),
    (
        WEIGHTS,
        [answers.average_with_a_barrier],
        ["your barrier is a collective too", "and it moves nothing"],
        "the weights are those of one process",
    ),
    (WEIGHTS, [answers.average_in_float32], ["the rounding of float32"], "within a group of dp"),
    (
        WEIGHTS,
        [answers.average_without_waiting],
        ["the gradient is not that of the whole batch"],
        "within a group of dp",
    ),
    (
        WEIGHTS,
        [answers.average_by_three],
        ["dp 2 x tp 2: the gradient is not that of the whole batch"],
        "dp 3 x tp 2: every gradient is that of the whole batch",
    ),
    (
        WEIGHTS,
        [answers.average_on_one_rank_of_each_column],
        ["on rank 2 a parameter has no gradient afterwards"],
        "",
    ),
    (WEIGHTS, [answers.average_twice], ["a group of tp"], "the weights are those of one process"),
    (NORM, [answers.norm_of_this_rank], ["of this rank's gradients alone"], "more than 100 bytes"),
    (
        NORM,
        [answers.norm_of_everything_over_tp],
        ["the whole parameters counted once per rank"],
        "more than 100 bytes",
    ),
    (
        NORM,
        [answers.norm_of_two],
        ["dp 2 x tp 3: on rank 0 it is not the norm that one process has. On dp 3 x tp 2 it is."],
        "every rank has the norm of one process",
    ),
    (
        NORM,
        [answers.norm_of_three_rows],
        ["dp 2 x tp 3: on rank 0 it is not the norm that one process has. On dp 3 x tp 2 it is."],
        "every rank has the norm of one process",
    ),
    (NORM, [answers.norm_over_all_ranks], ["too large by the root of the size of dp"], "more than 100 bytes"),
    (
        NORM,
        [answers.norm_over_dp],
        ["added up over dp: the rows have the same gradients"],
        "more than 100 bytes",
    ),
    (NORM, [answers.norm_in_float32], ["the rounding of float32"], "more than 100 bytes"),
    (
        NORM,
        [answers.norm_that_sleeps],
        ["It is right while all ranks are in step, and wrong when one comes late: wait for what"],
        "more than 100 bytes",
    ),
    (
        NORM,
        [answers.norm_that_waits_for_the_first],
        ["It is right while all ranks are in step, and wrong when one comes late: wait for what"],
        "more than 100 bytes",
    ),
    (
        NORM,
        [answers.norm_on_rank_0],
        ["on rank 1 your function must return the norm, a number, and it returned None"],
        "",
    ),
    (NORM, [answers.norm_squared], ["the square of the norm: take the root"], "more than 100 bytes"),
    (NORM, [answers.norm_of_sums], ["it is not the norm that one process has"], "more than 100 bytes"),
    (
        NORM,
        [answers.norm_that_gathers],
        ["Gradients need not travel"],
        "every rank has the norm of one process",
    ),
    (
        NORM,
        [answers.average_nothing],
        ["your function must return the norm, a number, and it returned None"],
        "",
    ),
    (NORM, [answers.norm_that_clips], ["it must only look at them"], ""),
    (PLAN, [answers.plan_data_parallel], ["GB of model states on a GPU, and it may be 40"], ""),
    (PLAN, [answers.plan_as_much_as_fits], ["cuts the model into 8 parts, and 1 are enough"], ""),
    (
        PLAN,
        [answers.plan_greedy],
        [
            "7B parameters, 24 layers, 24 GPUs: dp 6 x pp 1 x tp 4 cuts the model into 4 parts, and 3 are"
            " enough"
        ],
        "",
    ),
    (PLAN, [answers.plan_over_servers], ["does not stay inside a server of 8"], ""),
    (PLAN, [answers.plan_pipeline_first], ["has a longer pipeline than it need: with tp 8"], ""),
    (PLAN, [answers.plan_in_gib], ["GB of model states on a GPU, and it may be 40"], ""),
    (PLAN, [answers.plan_uneven_stages], ["layers cannot be dealt out evenly"], ""),
]
