"""Each check of "Hybrid parallelism" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_hybrid as answers
from verdicts import *  # noqa: F403

from course_lib.check import hybrid as chapter

PIPELINE, NORM, LAYOUT = chapter.data_pipeline, chapter.gradient_norm, chapter.fastest_layout
RIGHT = [
    (PIPELINE, [answers.train_step]),
    (PIPELINE, [answers.step_in_turns]),
    (PIPELINE, [answers.step_averages_itself]),
    (NORM, [answers.gradient_norm]),
    (NORM, [answers.norm_shared]),
    (NORM, [answers.norm_by_numpy]),
    (NORM, [answers.norm_by_all_gather]),
    (NORM, [answers.norm_number_by_number]),
    (LAYOUT, [answers.layout]),
    (LAYOUT, [answers.layout_by_numpy]),
    (LAYOUT, [answers.layout_in_a_loop]),
]
UNTOUCHED = [(PIPELINE, [answers.stub]), (NORM, [answers.stub]), (LAYOUT, [answers.stub])]
GRADIENT = "the gradients of one process"
ALLOWED, FITS = "sizes that the GPUs, the server", "what a GPU holds fits"
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        PIPELINE,
        [answers.step_that_syncs],
        ["times what one average of its gradients", "travel along dp 4 times", "`no_sync`"],
        GRADIENT,
    ),
    (PIPELINE, [answers.step_that_never_syncs], ["It is this pipeline's own: the others"], ""),
    (PIPELINE, [answers.step_of_a_sum], ["It is the sum over the micro-batches"], "no rank sends more"),
    (PIPELINE, [answers.step_of_the_last], ["It is that of the last micro-batch alone"], ""),
    (
        PIPELINE,
        [answers.step_that_sums],
        ["It is the sum over dp, and not the average"],
        "no rank sends more",
    ),
    (
        PIPELINE,
        [answers.step_that_gathers],
        ["dp 3 x pp 2, 3 micro-batches: rank 0 sends", "What must travel is one sum"],
        "dp 3 x pp 2, 3 micro-batches: the gradients of one process",
    ),
    (PIPELINE, [answers.step_by_files], ["not in files or memory that ranks share"], GRADIENT),
    (PIPELINE, [answers.step_without_waiting], ["the gradients are not those of one process"], ""),
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
    (NORM, [answers.norm_that_clips], ["it must only look at them"], ""),
    (LAYOUT, [answers.layout_by_states_alone], ["times as long as the fastest layout"], FITS),
    (LAYOUT, [answers.layout_without_activations], ["GB of activations on a GPU"], ALLOWED),
    (LAYOUT, [answers.layout_without_bubble], ["What it loses most by is the bubble"], FITS),
    (LAYOUT, [answers.layout_of_single_samples], ["the start of each layer's work"], FITS),
    (LAYOUT, [answers.layout_of_whole_servers], ["What it loses most by is messages of tp"], FITS),
    (LAYOUT, [answers.layout_over_servers], ["does not stay inside a server of 8"], ""),
    (LAYOUT, [answers.layout_of_uneven_stages], ["layers cannot be dealt out evenly to 16 stages"], ""),
    (LAYOUT, [answers.layout_of_broken_batches], ["is no whole number of micro-batches on each"], ""),
    (LAYOUT, [answers.layout_as_a_list], ["return a dict of dp, pp, tp, micro_batch"], ""),
    (LAYOUT, [answers.layout_that_must_fit], ["Nothing fits here: return None"], ALLOWED),
    (LAYOUT, [answers.layout_that_gives_up], ["you found none, and dp"], ""),
]
