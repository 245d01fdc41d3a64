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
    chapter.forward_in_threads: [
        answers.threads,
        answers.threads_of_mini,
        answers.threads_beside_the_main_one,
        answers.threads_that_are_late,
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
    (chapter.forward_in_threads, answers.threads_in_float16, "you returned other values"),
    (
        chapter.forward_in_threads,
        answers.threads_that_scale_the_images,
        "the model or the images that you were given have changed",
    ),
    (
        chapter.forward_in_threads,
        answers.threads_that_evaluate,
        "the model or the images that you were given have changed",
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
    (chapter.forward_in_threads, answers.threads_with_deepcopy, "the model got no gradient"),
    (
        chapter.forward_in_threads,
        answers.threads_with_deepcopy_beside_the_root,
        "not that of the whole batch",
    ),
    (chapter.forward_in_threads, answers.threads_one_after_the_other, "1 of 3 replicas were at work at once"),
    (chapter.forward_in_threads, answers.threads_without_threads, "1 of 3 replicas were at work at once"),
    (chapter.forward_in_threads, answers.threads_with_the_whole_batch, "called with 12, 12, 12 images"),
    (chapter.forward_in_threads, answers.threads_that_share_the_model, "3 replicas share 1 set of weights"),
    (chapter.forward_in_threads, answers.threads_with_functional_call, "3 replicas share 1 set of weights"),
    (chapter.forward_in_threads, answers.threads_past_the_model, "the model was never called"),
    (chapter.forward_in_threads, answers.threads_in_double, "shape (12, 10) and dtype float64"),
    (chapter.forward_in_threads, answers.threads_with_empty_pieces, "Don't call it with none"),
    (
        chapter.forward_in_threads,
        answers.threads_backwards,
        "you returned other values. It has the right rows in the wrong order",
    ),
    (chapter.forward_in_threads, answers.threads_not_gathered, "you returned list"),
    (chapter.forward_in_threads, answers.threads_detached, "no graph, so backward is impossible"),
    (chapter.forward_in_threads, answers.threads_with_their_own_switch, "under torch.no_grad()"),
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
    answers.threads_one_after_the_other,
    answers.threads_without_threads,
    answers.threads_with_the_whole_batch,
    answers.threads_that_share_the_model,
    answers.threads_with_functional_call,
    answers.tree_is_a_star,
    answers.tree_is_a_chain,
    answers.tree_nearest_first,
    answers.tree_is_recursive_doubling,
    answers.tree_by_all_reduce,
    answers.tree_past_the_link,
}
MET = {
    chapter.star_all_reduce: "every rank has the sum",
    chapter.forward_in_threads: "the outputs of the whole batch",
    chapter.tree_all_reduce: "every rank has the sum",
}
HANGING = (answers.star_that_waits,)
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [
    (check, answer, reason.split(" ... "), MET[check] if answer in WASTEFUL else "")
    for check, answer, reason in WRONG
]
