"""Each check of "ZeRO stage 1" accepts right answers, stays calm at the stub, and refuses wrong and wasteful
answers with a reason that helps.
"""

import answers_zero_stage_1 as answers
from verdicts import *  # noqa: F403

from course_lib.check import zero_stage_1 as chapter

ADAM, CLIP, FILES = chapter.sharded_adam, chapter.clip_grad_norm, chapter.sharded_checkpoint
PATIENCE = {"PATIENCE_S": 3.0}  # for memory that is never let go
RIGHT = [
    (ADAM, [answers.Sharded]),
    (ADAM, [answers.Uneven]),
    (ADAM, [answers.minis_zero]),
    (ADAM, [answers.EachByItself]),
    (ADAM, [answers.GathersLists]),
    (ADAM, [answers.ByHand]),
    (ADAM, [answers.GathersInTheBackground]),
    (CLIP, [answers.clip]),
    (CLIP, [answers.clip_with_numpy]),
    (CLIP, [answers.clip_as_torch]),
    (CLIP, [answers.clip_in_the_background]),
    (FILES, [answers.save, answers.load]),
    (FILES, [answers.save_by_hand, answers.load]),
    (FILES, [answers.save, answers.load_with_numpy]),
    (FILES, [answers.save, answers.load_file_by_file]),
]
UNTOUCHED = [
    (ADAM, [answers.Untouched]),
    (CLIP, [answers.stub]),
    (FILES, [answers.stub, answers.load]),
    (FILES, [answers.save, answers.stub]),
]
VALUES, KEPT, SENT = (
    "the weights are those of one process",
    "no rank keeps more than the two moments",
    "no rank sends more than 1.02 times",
)
HELD = "times the bytes of its shard at once, and all states are 3 times. Load with `mmap=True`"
STEP_9 = "Step 9 must be loaded now, but"
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        ADAM,
        [answers.FullState],
        [
            (
                "keeps 4.00 times the two moments of 1/4 of the elements. That is the state of all"
                " parameters, on every rank"
            ),
            "keeps 3.00 times the two moments of 1/3",
        ],
        SENT,
    ),
    (
        ADAM,
        [answers.PlainAdam],
        ["That is the state of all parameters, on every rank: nothing is sharded"],
        SENT,
    ),
    (
        ADAM,
        [answers.SumsOnOneRoot],
        [
            "rank 0 sends 2.50 times 2(n-1)/n P. The others send less, and wait for this rank",
            "rank 0 sends 2.0",
        ],
        KEPT,
    ),
    (ADAM, [answers.ReducesToRootAndScatters], ["sends 1.25 times 2(n-1)/n P", "sends 1.17 times"], VALUES),
    (
        ADAM,
        [answers.AllReduceFirst],
        ["sends 1.50 times 2(n-1)/n P. Does a rank need the sum of all gradients"],
        KEPT,
    ),
    (
        ADAM,
        [answers.ByGloosReduceScatter],
        ["sends 1.50 times 2(n-1)/n P. gloo's reduce_scatter is an all_reduce"],
        KEPT,
    ),
    (
        ADAM,
        [answers.WholeParametersToOwners],
        ["Some ranks hold much more than others: cut the elements into equal parts", "2(n-1)/n P"],
        VALUES,
    ),
    (
        ADAM,
        [answers.ByFiles],
        ["must travel. What a rank needs from the others comes in messages of torch.distributed"],
        VALUES,
    ),
    (ADAM, [answers.KeepsACopy], ["Is something kept that could be a view"], VALUES),
    (ADAM, [answers.Sums], ["They are as if the gradients were summed, and not averaged"], KEPT),
    (ADAM, [answers.OwnGradients], ["A rank sends only 0.50 times 2(n-1)/n P: do the gradients"], KEPT),
    (
        ADAM,
        [answers.NeverGathers],
        ["And the ranks do not agree: the new weights of each rank must reach all others"],
        KEPT,
    ),
    (
        ADAM,
        [answers.SleepsForWeights],
        [
            "an MLP in two groups, 3 ranks: after 4 updates the weights are not those of one process",
            "They are right while all ranks are in step, and wrong when one comes late: wait for what",
        ],
        KEPT,
    ),
    (ADAM, [answers.UpdatesACopy], ["They have not changed at all"], ""),
    (
        ADAM,
        [answers.ForgetsGroups],
        [
            "an MLP in two groups, 3 ranks: after 4 updates the weights are not those of one process",
            "They are as if all groups had the `lr` of the first",
        ],
        KEPT,
    ),
    (ADAM, [answers.NeverZeros], ["After `zero_grad` the old gradients are still there"], KEPT),
    (
        ADAM,
        [answers.KeepsFrozen],
        ["That is what it would be with the frozen parameters: they need no moments"],
        VALUES,
    ),
    (
        ADAM,
        [answers.OnlyOnRank0],
        ["on rank 1 it must make an object with the methods `step` and `zero_grad`, and made NoneType"],
        "",
    ),
    (ADAM, [answers.ForgetsOptions], ["They are as if of a group's options only `lr` counted"], KEPT),
    (ADAM, [answers.SingleMessages], ["the rounding of float32"], KEPT),
    (ADAM, [answers.MomentsInNumpy], ["besides parameters and gradients, rank "], VALUES),
    (
        ADAM,
        [answers.nothing],
        ["it must make an object with the methods `step` and `zero_grad`, and made NoneType"],
        "",
    ),
    (CLIP, [answers.clip_locally], ["it is the norm of this rank's own shards"], ""),
    (
        CLIP,
        [answers.clip_locally_but_returns_the_norm],
        ["each rank has scaled by its own norm, so the gradient has another direction"],
        "one collective",
    ),
    (CLIP, [answers.clip_by_sum_of_norms], ["norms do not add up, their squares do"], "one collective"),
    (CLIP, [answers.clip_by_mean_of_squares], ["it is the mean over the ranks"], "one collective"),
    (
        CLIP,
        [answers.clip_by_gathering],
        ["nobody needs the gradients of the others"],
        "the norm and the gradients are those of one process",
    ),
    (
        CLIP,
        [answers.clip_tensor_by_tensor],
        ["a rank calls 2 collectives, and one collective is needed"],
        "the norm and the gradients are those of one process",
    ),
    (
        CLIP,
        [answers.clip_that_sleeps],
        [
            "2 ranks, a rank that comes late: on rank",
            "it is right while all ranks are in step, and wrong when one comes late: wait for what",
        ],
        "one collective",
    ),
    (
        CLIP,
        [answers.clip_that_lengthens],
        ["a gradient that is short enough must stay as it is"],
        "one collective",
    ),
    (CLIP, [answers.clip_returned], ["the gradients are unchanged: scale them in place"], "one collective"),
    (CLIP, [answers.clip_without_empty_ranks], ["has finished without calling all_reduce"], ""),
    (
        CLIP,
        [answers.clip_by_ring],
        ["a rank calls 4 sends and receives, and one collective is needed"],
        "the norm and the gradients are those of one process",
    ),
    (CLIP, [answers.clip_and_tell], ["the function returned str"], "one collective"),
    (
        CLIP,
        [answers.clip_where_own_norm_is_large],
        ["by the norm of all, and not only where this rank's own is large"],
        "one collective",
    ),
    (
        CLIP,
        [answers.clip_by_the_largest_part],
        ["the gradients are unchanged: scale them in place"],
        "one collective",
    ),
    (
        CLIP,
        [answers.clip_into_new_tensors],
        ["other tensors were put into the list: scale those that are in it"],
        "one collective",
    ),
    (
        CLIP,
        [answers.clip_in_float32],
        ["of it. An error of this size is the rounding of float32"],
        "one collective",
    ),
    (
        CLIP,
        [answers.clip_nothing_on_rank_1],
        ["on rank 1 the norm must be that of the whole gradient", "the function returned nothing"],
        "one collective",
    ),
    (
        FILES,
        [answers.save, answers.load_what_can_be_read],
        ["rank 1 was killed before it had written anything. Step 9 must be loaded now"],
        "saved by 4 ranks, loaded by 3",
    ),
    (
        FILES,
        [answers.save, answers.load_latest_by_text],
        ["As text, 10 comes before 9"],
        "rank 1 is killed while 4 ranks save step 10",
    ),
    (
        FILES,
        [answers.save_without_waiting, answers.load],
        ["`save` returned before the save was complete"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save_and_zero, answers.load],
        ["`save` changes the shard that it was given"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save_on_the_way_out, answers.load],
        ["`save` changes the shard that it was given"],
        "no rank writes more",
    ),
    (FILES, [answers.save, answers.load_all_files], [HELD], "they save step 10 again"),
    (FILES, [answers.save, answers.load_all_states], [HELD], "they save step 10 again"),
    (FILES, [answers.save, answers.load_all_bytes], [HELD], "they save step 10 again"),
    (FILES, [answers.save_in_place, answers.load_in_place], [STEP_9], "saved by 4 ranks, loaded by 3"),
    (FILES, [answers.save_without_rename, answers.load], [STEP_9], "saved by 4 ranks, loaded by 3"),
    (FILES, [answers.save_file_by_file, answers.load], [STEP_9], "saved by 4 ranks, loaded by 3"),
    (FILES, [answers.save_that_trips, answers.load], ["raised FileExistsError"], "no rank writes more"),
    (
        FILES,
        [answers.save_without_clone, answers.load],
        ["writes 4.0 times the bytes of its shard. A view is saved with the whole storage behind it"],
        "each rank calls torch.save once",
    ),
    (
        FILES,
        [answers.save_all_on_rank_0, answers.load],
        ["they called it 1, 0, 0, 0 times", "rank 0 writes 4.0 times"],
        "",
    ),
    (
        FILES,
        [answers.save, answers.load_with_padding],
        ["has the shape (13335,), and it must be (13334,): padded for 3 ranks"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_uneven],
        ["on rank 2, 'params' has the shape (13333,), and it must be (13334,): padded for 3 ranks"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_list],
        ["`load` returned something else than a step and a dict of tensors"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_in_single_precision],
        ["'params' is torch.float32, and a tensor of torch.float64 was saved"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_that_fails],
        ["`load` raised ValueError in line "],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_views],
        ["is a view that keeps the elements of all ranks alive"],
        "no rank writes more",
    ),
    (
        FILES,
        [answers.save, answers.load_views_of_arrays],
        ["is a view that keeps the elements of all ranks alive, in a numpy array"],
        "no rank writes more",
    ),
]
