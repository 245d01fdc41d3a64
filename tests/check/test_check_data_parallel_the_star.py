"""Each check of "DataParallel, the star" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_data_parallel_the_star as answers
from verdicts import *  # noqa: F403

from course_lib.check import data_parallel_the_star as chapter

CHECKS = {
    chapter.star_all_reduce: [
        answers.star,
        answers.star_of_mini,
        answers.star_with_isend,
        answers.star_from_any_source,
        answers.star_row_by_row,
        answers.star_in_numpys_memory,
    ],
    chapter.loss_in_forward: [
        answers.loss_as_two_numbers,
        answers.loss_as_one_number,
        answers.loss_as_a_tuple,
        answers.loss_as_a_dict,
        answers.loss_with_the_count,
    ],
    chapter.tree_all_reduce: [answers.tree, answers.tree_from_afar, answers.tree_in_pieces],
}
WRONG = [
    (
        chapter.star_all_reduce,
        answers.star_in_bfloat16,
        "has the sum only nearly: send and add in the tensor's own dtype",
    ),
    (chapter.star_all_reduce, answers.star_small_by_all_reduce, "you used all_reduce, and rank"),
    (
        chapter.star_all_reduce,
        answers.star_hoards_in_numpy,
        "3 ranks, root 2: the root held 2.0 S of new tensors",
    ),
    (chapter.star_all_reduce, answers.star_without_wait, "rank 1 "),
    (
        chapter.star_all_reduce,
        answers.star_whose_root_is_0,
        "A rank cannot send to itself, or receive from itself: is the root here rank",
    ),
    (
        chapter.tree_all_reduce,
        answers.tree_in_float16,
        "It is near it, or overflows: send and add in the tensor's own dtype",
    ),
    (chapter.tree_all_reduce, answers.tree_small_by_all_reduce, "did not go over `link`"),
    (chapter.star_all_reduce, answers.star_by_all_reduce, "you used all_reduce, and rank"),
    (chapter.star_all_reduce, answers.star_by_all_gather, "you used all_gather"),
    (chapter.star_all_reduce, answers.star_by_gather_and_broadcast, "you used broadcast, gather"),
    (chapter.star_all_reduce, answers.star_to_everybody, "rank 0 sent 2.0"),
    (chapter.star_all_reduce, answers.star_received_twice, "the root received 2.00 S, and 1 S is enough"),
    (chapter.star_all_reduce, answers.star_sent_in_double, "the root sent 2"),
    (
        chapter.star_all_reduce,
        answers.star_that_hoards,
        "3 ranks, root 2: the root held 2.0 S of new tensors",
    ),
    (chapter.star_all_reduce, answers.star_at_rank_0, "rank 0 sent 2.00 S, and 1 S is enough"),
    (chapter.star_all_reduce, answers.star_of_means, "has the average"),
    (chapter.star_all_reduce, answers.star_to_the_root_only, "rank 1 still holds its own tensor"),
    (chapter.star_all_reduce, answers.star_not_in_place, "work in place"),
    (chapter.star_all_reduce, answers.star_without_the_root, "without the root's own tensor"),
    (chapter.star_all_reduce, answers.star_that_waits, "recv"),
    (
        chapter.loss_in_forward,
        answers.loss_on_the_root,
        "10 sequences, 4 replicas: the root gathered 144,000 bytes from 4 replicas ... the root made",
    ),
    (chapter.loss_in_forward, answers.loss_beside_the_scores, "the root gathered 144,0"),
    (chapter.loss_in_forward, answers.loss_of_each_token, "the root gathered 480 bytes"),
    (chapter.loss_in_forward, answers.loss_without_wrap, "the root called the model itself"),
    (chapter.loss_in_forward, answers.loss_in_two_rounds, "20 sequences went through the replicas"),
    (
        chapter.loss_in_forward,
        answers.loss_with_a_mask_like_the_scores,
        "What is as large as scores belongs into the forward that is wrapped",
    ),
    (
        chapter.loss_in_forward,
        answers.loss_as_mean_of_means,
        "It is the mean of the replicas' means, and they have different numbers of targets",
    ),
    (chapter.loss_in_forward, answers.loss_as_sum, "It is the sum over all targets, not their mean"),
    (chapter.loss_in_forward, answers.loss_over_all_targets, "those that are -100 do not count"),
    (chapter.loss_in_forward, answers.loss_not_combined, "you returned a tensor of shape (4,)"),
    (chapter.loss_in_forward, answers.loss_detached, "the model's gradient is not that of one process"),
    (chapter.loss_in_forward, answers.loss_as_a_float, "a replica returned float"),
    (
        chapter.loss_in_forward,
        answers.loss_that_clears_the_padding,
        "the model, the tokens or the targets that you were given have changed",
    ),
    (
        chapter.tree_all_reduce,
        answers.tree_is_a_star,
        "4 ranks: rank 0 sent 3.0 S ... 4 ranks: done after the time of 6 messages",
    ),
    (chapter.tree_all_reduce, answers.tree_is_a_chain, "4 ranks: done after the time of 6 messages"),
    (
        chapter.tree_all_reduce,
        answers.tree_nearest_first,
        "done after the time of 5 messages ... serve the rank with the most ranks behind it first",
    ),
    (chapter.tree_all_reduce, answers.tree_is_recursive_doubling, "4 ranks: 8.0 S were sent in all"),
    (chapter.tree_all_reduce, answers.tree_by_all_reduce, "did not go over `link`"),
    (chapter.tree_all_reduce, answers.tree_past_the_link, "did not go over `link`"),
    (chapter.tree_all_reduce, answers.tree_upwards_only, "does not hold the sum"),
]
# Right values, wasteful way: the values must have been accepted, and the waste refused.
WASTEFUL = {
    answers.star_hoards_in_numpy,
    answers.star_small_by_all_reduce,
    answers.tree_small_by_all_reduce,
    answers.star_by_all_reduce,
    answers.star_by_all_gather,
    answers.star_by_gather_and_broadcast,
    answers.star_to_everybody,
    answers.star_received_twice,
    answers.star_sent_in_double,
    answers.star_that_hoards,
    answers.star_at_rank_0,
    answers.loss_on_the_root,
    answers.loss_beside_the_scores,
    answers.loss_of_each_token,
    answers.loss_without_wrap,
    answers.loss_in_two_rounds,
    answers.loss_with_a_mask_like_the_scores,
    answers.tree_is_a_star,
    answers.tree_is_a_chain,
    answers.tree_nearest_first,
    answers.tree_is_recursive_doubling,
    answers.tree_by_all_reduce,
    answers.tree_past_the_link,
}
MET = {
    chapter.star_all_reduce: "every rank has the sum",
    chapter.loss_in_forward: "the mean loss over all targets that count",
    chapter.tree_all_reduce: "every rank has the sum",
}
HANGING = (answers.star_that_waits,)
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [
    (check, answer, reason.split(" ... "), MET[check] if answer in WASTEFUL else "")
    for check, answer, reason in WRONG
]
