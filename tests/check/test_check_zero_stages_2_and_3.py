"""Each check of "ZeRO stages 2 and 3" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_zero_stages_2_and_3 as answers
from verdicts import *  # noqa: F403

from course_lib.check import zero_stages_2_and_3 as chapter

GRADIENTS, LAYERS, UNITS = chapter.sharded_gradients, chapter.sharded_layers, chapter.sharded_units
RIGHT = [
    (GRADIENTS, [answers.gradients]),
    (GRADIENTS, [answers.gradients_own_memory]),
    (LAYERS, [answers.layers_sharded]),
    (LAYERS, [answers.layers_ahead]),
    (LAYERS, [answers.layers_gathered_by_gloo]),
    (LAYERS, [answers.layers_gathered_in_lists]),
    (LAYERS, [answers.layers_in_other_forwards]),
    (LAYERS, [answers.layers_of_own_products]),
    (LAYERS, [answers.layers_hooked_at_the_output]),
    (LAYERS, [answers.layers_freed_later]),
    (LAYERS, [answers.layers_and_a_seed]),
    (UNITS, [answers.units]),
    (UNITS, [answers.units_in_a_tuple]),
    (UNITS, [answers.units_as_a_list]),
]
UNTOUCHED = [
    (GRADIENTS, [answers.stub]),
    (LAYERS, [answers.stub]),
    (UNITS, [answers.stub]),
]
SAME_GRADIENTS, SAME_WEIGHTS, FEW = (
    "the gradients of one process",
    "the weights are those of one process",
    "at most `room` layers have their full parameters",
)
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        GRADIENTS,
        [answers.gradients_kept],
        ["the parameters still have a `.grad`: set it to None"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_late],
        ["Were all gradients there in full before the first was freed?"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_on_one_root],
        ["The others send less, and wait for rank 0: is it a root that sums for all?"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_by_files],
        ["must travel. What a rank needs from the others comes in messages of torch.distributed"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_by_gloo],
        ["sends 2.0", "gloo's reduce_scatter is an all_reduce"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_by_all_reduce],
        ["An all_reduce sends the whole sum to every rank"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_summed],
        ["It is the sum over the ranks, not their average: divide by the world size"],
        "no rank sends more",
    ),
    (
        GRADIENTS,
        [answers.gradients_overwritten],
        ["after two micro-batches", "It is the gradient of the last micro-batch alone"],
        "no rank sends more",
    ),
    (
        GRADIENTS,
        [answers.gradients_of_this_rank],
        ["after one micro-batch, a shard's gradient is not that of one process"],
        "no rank sends more",
    ),
    (GRADIENTS, [answers.gradients_of_parameters], ["must return one flat shard per layer"], ""),
    (GRADIENTS, [answers.gradients_without_padding], ["must return one flat shard per layer"], ""),
    (
        GRADIENTS,
        [answers.gradients_with_tensors_for_shards],
        ["a shard must be an `nn.Parameter`, and the first is a Tensor"],
        "",
    ),
    (
        GRADIENTS,
        [answers.gradients_with_frozen_shards],
        ["and the first is a Parameter that needs no gradient"],
        "",
    ),
    (
        GRADIENTS,
        [answers.gradients_with_empty_shards],
        ["a shard has other values than chunk `rank` of its layer's flat parameters"],
        "",
    ),
    (
        GRADIENTS,
        [answers.gradients_with_first_chunks],
        ["on rank 1 a shard has other values than chunk `rank`"],
        "",
    ),
    (GRADIENTS, [answers.gradients_in_single_precision], ["the rounding of float32"], ""),
    (
        GRADIENTS,
        [answers.gradients_in_numpy],
        ["P outside of torch (numpy arrays, Python's lists), which is memory all the same"],
        SAME_GRADIENTS,
    ),
    (
        GRADIENTS,
        [answers.gradients_of_rank_0_only],
        ["on rank 1 `shard_gradients` must return one flat shard per layer"],
        "",
    ),
    (GRADIENTS, [answers.nothing], ["must return one flat shard per layer"], ""),
    (
        LAYERS,
        [answers.layers_all_at_once],
        ["12 of 12 layers have their full parameters at once", "Gather a layer right before it works"],
        SAME_WEIGHTS,
    ),
    (
        LAYERS,
        [answers.layers_kept_until_backward],
        ["12 of 12 layers have their full parameters at once", "and there is room for 3"],
        SAME_WEIGHTS,
    ),
    (
        LAYERS,
        [answers.layers_plain],
        ["Is a layer gathered twice that could have stayed from its forward to its backward?"],
        FEW,
    ),
    (
        LAYERS,
        [answers.layers_first_stay],
        ["4 of 12 layers have their full parameters at once"],
        SAME_WEIGHTS,
    ),
    (
        LAYERS,
        [answers.layers_by_files],
        ["must travel. What a rank needs from the others comes in messages of torch.distributed"],
        SAME_WEIGHTS,
    ),
    (LAYERS, [answers.layers_never_freed], ["Are full parameters never freed"], SAME_WEIGHTS),
    (
        LAYERS,
        [answers.layers_with_empty_data],
        ["the layers look free, but during forward the allocator has given out the memory of"],
        FEW,
    ),
    (
        LAYERS,
        [answers.layers_with_late_gradients],
        ["during backward the allocator has given out the memory of"],
        FEW,
    ),
    (LAYERS, [answers.layers_without_second_gather], ["RuntimeError"], ""),
    (LAYERS, [answers.layers_by_gloo], ["gloo's reduce_scatter is an all_reduce"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_on_one_root], ["a root that sums for all?"], SAME_WEIGHTS),
    (
        LAYERS,
        [answers.layers_summed],
        ["the weights are not those of one process", "Is the gradient the average over the ranks?"],
        FEW,
    ),
    (
        LAYERS,
        [answers.layers_with_views],
        ["a shard has lost its memory, when its layer was freed: it is a view"],
        "",
    ),
    (
        LAYERS,
        [answers.layers_with_kept_gradients],
        ["The parameters of the layers still have a `.grad`: set it to None"],
        FEW,
    ),
    (
        LAYERS,
        [answers.layers_in_numpy],
        ["P outside of torch (numpy arrays, Python's lists), which is memory all the same"],
        FEW,
    ),
    (
        LAYERS,
        [answers.layers_in_lists],
        ["P outside of torch (numpy arrays, Python's lists), which is memory all the same"],
        FEW,
    ),
    (LAYERS, [answers.layers_nothing_on_rank_1], ["on rank 1 `shard_layers` must return the shards"], ""),
    (LAYERS, [answers.layers_in_single_precision], ["the weights are not those of one process"], FEW),
    (LAYERS, [answers.nothing], ["`shard_layers` must return the shards"], ""),
    (
        UNITS,
        [answers.units_by_states_alone],
        ["and you predicted", "Of which unit, and how often, is memory needed beside them?"],
        "the largest units that fit",
    ),
    (UNITS, [answers.units_without_chunks], ["and you predicted"], "the largest units that fit"),
    (
        UNITS,
        [answers.units_always_small],
        ["larger units would fit, too, and travel in fewer messages"],
        "the predicted peak is within",
    ),
    (
        UNITS,
        [answers.units_always_large],
        ["budget 2, 3 ranks: the budget is", "that is too much. Smaller units would fit"],
        "with them no rank holds more than the budget",
    ),
    (UNITS, [answers.units_without_peak], ["must return two things, a list of modules and a number"], ""),
    (UNITS, [answers.units_of_other_modules], ["units that are none of [model], list(model.blocks), []"], ""),
    (UNITS, [answers.nothing], ["must return two things"], ""),
]
