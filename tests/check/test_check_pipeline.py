"""Each check of "Pipeline" accepts right answers, speaks calmly of a stub, and refuses wrong and wasteful
ones with a reason that helps.
"""

import answers_pipeline as answers
from verdicts import *  # noqa: F403

from course_lib.check import pipeline as chapter

CHECKS = {
    chapter.schedule_gpipe: [
        answers.gpipe,
        answers.gpipe_last_backward_first,
        answers.gpipe_last_micro_batch_first,
        answers.gpipe_by_numpy,
    ],
    chapter.schedule_1f1b: [answers.one_f_one_b, answers.one_f_one_b_by_hand],
    chapter.pipeline_worker: [
        answers.execute,
        answers.execute_receives_early,
        answers.execute_asks_autograd_for_gradients,
        answers.execute_in_circles,
        answers.execute_takes_out_of_the_lists,
    ],
    chapter.balanced_stages: [answers.balance, answers.balance_by_trying_limits, answers.balance_by_numpy],
}
WRONG = [
    (
        chapter.schedule_gpipe,
        answers.one_after_the_other,
        "only one rank works at a time: does each micro-batch wait until the one before is back?",
    ),
    (
        chapter.schedule_gpipe,
        answers.one_after_the_other,
        "rank 0 has 1 micro-batches in flight (measured), and m is 8",
    ),
    (
        chapter.schedule_gpipe,
        answers.one_f_one_b,
        "rank 0 has 4 micro-batches in flight (measured), and m is 8",
    ),
    (
        chapter.schedule_gpipe,
        answers.gpipe_for_one_rank,
        "return a list with one list for each of the 4 ranks",
    ),
    (chapter.schedule_gpipe, answers.gpipe_in_words, "made with forward(k) and backward(k), and not 'F0'"),
    (
        chapter.schedule_gpipe,
        answers.gpipe_with_tensors_for_numbers,
        "there is no micro-batch tensor(0); micro-batches are 0 to 7, as whole numbers",
    ),
    (chapter.schedule_gpipe, answers.gpipe_skips_the_last, "skips the backward of micro-batch 7"),
    (chapter.schedule_gpipe, answers.gpipe_repeats_the_first, "this repeats position 8"),
    (chapter.schedule_gpipe, answers.gpipe_backwards_first, "a backward before its forward"),
    (chapter.schedule_gpipe, answers.gpipe_deadlock, "deadlock: rank 0, position 1, B0 waits for B0@1"),
    (chapter.schedule_gpipe, answers.gpipe_with_a_pause, "and 3 (m + p - 1) = 33 is possible"),
    (
        chapter.schedule_gpipe,
        answers.gpipe_in_two_halves,
        "rank 0 has 4 micro-batches in flight (measured), and m is 8",
    ),
    (chapter.schedule_gpipe, answers.gpipe_of_eight, "5 micro-batches: rank 0, end of its list"),
    (chapter.schedule_1f1b, answers.one_f_one_b_for_few_stages, "the step takes"),
    (
        chapter.schedule_1f1b,
        answers.gpipe,
        "rank 0 has 8 micro-batches in flight (measured), and min(p - stage, m) is 4",
    ),
    (chapter.schedule_1f1b, answers.one_after_the_other, "only one rank works at a time"),
    (
        chapter.schedule_1f1b,
        answers.one_f_one_b_too_early,
        "rank 0 has 5 micro-batches in flight (measured), and min(p - stage, m) is 4",
    ),
    (
        chapter.schedule_1f1b,
        answers.one_f_one_b_same_on_all_ranks,
        "rank 1 has 4 micro-batches in flight (measured), and min(p - stage, m) is 3",
    ),
    (
        chapter.schedule_1f1b,
        answers.one_f_one_b_too_late,
        "rank 0 has 3 micro-batches in flight (measured), and min(p - stage, m) is 4",
    ),
    (chapter.schedule_1f1b, answers.one_f_one_b_too_late, "and 3 (m + p - 1) = 33 is possible"),
    (chapter.schedule_1f1b, answers.one_f_one_b_from_the_wrong_end, "deadlock: "),
    (chapter.schedule_1f1b, answers.one_f_one_b_without_the_end, "skips the backward of micro-batch 5"),
    (chapter.pipeline_worker, answers.execute_one_after_the_other, "only one rank works at a time"),
    (
        chapter.pipeline_worker,
        answers.execute_all_forwards_first,
        "rank 0 has 8 micro-batches in flight (measured), and min(p - stage, m) is 4",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_one_forward_ahead,
        "rank 0 has 5 micro-batches in flight (measured), and min(p - stage, m) is 4",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_uses_up,
        "on rank 0 the inputs or targets have changed; leave them alone",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_keeps_all,
        "rank 3 keeps the outputs of 8 micro-batches at once, and at most 2 are needed",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_keeps_all_out_of_sight,
        "rank 3 keeps the outputs of 8 micro-batches at once, and at most 2 are needed",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_keeps_some_on_the_last_rank,
        "rank 3 keeps the outputs of 4 micro-batches at once, and at most 2 are",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_keeps_the_inputs,
        "rank 3 keeps the inputs of 8 micro-batches at once, and at most 2 are needed",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_leaves_weights_for_the_end,
        "rank 3 keeps the inputs of 8 micro-batches at once, and at most 2 are needed",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_sends_in_halves,
        "rank 0 sends 16 messages, and 8 are enough",
    ),
    (chapter.pipeline_worker, answers.execute_takes_turns, "only one rank works at a time"),
    (chapter.pipeline_worker, answers.execute_whole_batch, "only one rank works at a time"),
    (
        chapter.pipeline_worker,
        answers.execute_whole_batch,
        "runs 1 forwards and 1 backwards of its stage (measured), and 8 micro-batches need",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_computes_forward_twice,
        "runs 16 forwards and 8 backwards of its stage",
    ),
    (chapter.pipeline_worker, answers.execute_drops_its_sends, "waits in recv from rank"),
    (
        chapter.pipeline_worker,
        answers.execute_without_mean,
        "It is 8 times too large: a loss must be the mean over the whole batch",
    ),
    (chapter.pipeline_worker, answers.execute_last_gradient_only, "the gradient is wrong: it differs by"),
    (chapter.pipeline_worker, answers.execute_sends_that_wait, "rank 2: waits in send to rank 3"),
    (chapter.pipeline_worker, answers.execute_without_history, "x.grad"),
    (chapter.pipeline_worker, answers.execute_counts_itself, "where its list says"),
    (chapter.pipeline_worker, answers.execute_counts_backwards_itself, "the gradient is wrong"),
    (chapter.pipeline_worker, answers.execute_in_float32, "the rounding of float32"),
    (chapter.pipeline_worker, answers.execute_rounds_what_it_sends, "the rounding of float32"),
    (
        chapter.pipeline_worker,
        answers.execute_tells_everybody,
        "you call broadcast. Only neighbours have anything to say",
    ),
    (
        chapter.pipeline_worker,
        answers.execute_sends_the_input_too,
        "rank 0 sends 2.00 times the bytes of one tensor per cut",
    ),
    (chapter.balanced_stages, answers.balance_equal_numbers, "the slowest takes 5, and 4 is possible"),
    (chapter.balanced_stages, answers.balance_greedy, "is possible"),
    (chapter.balanced_stages, answers.balance_by_squares, "models that were drawn could be faster"),
    (chapter.balanced_stages, answers.balance_by_range, "is possible"),
    (chapter.balanced_stages, answers.balance_as_near_as_can_be, "models that were drawn could be faster"),
    (chapter.balanced_stages, answers.balance_all_on_the_first, "leaves a stage without a layer"),
    (chapter.balanced_stages, answers.balance_forgets_layers, "deals out 3 layers, and there are 5"),
    (chapter.balanced_stages, answers.balance_returns_costs, "is not a list of whole numbers"),
]
# Right values, wasteful way: the gradients must have been accepted, and the waste refused.
WASTEFUL = {
    answers.one_after_the_other,
    answers.gpipe_with_a_pause,
    answers.gpipe_in_two_halves,
    answers.one_f_one_b_too_early,
    answers.one_f_one_b_same_on_all_ranks,
    answers.one_f_one_b_too_late,
    answers.execute_one_after_the_other,
    answers.execute_all_forwards_first,
    answers.execute_one_forward_ahead,
    answers.execute_keeps_all,
    answers.execute_keeps_all_out_of_sight,
    answers.execute_keeps_some_on_the_last_rank,
    answers.execute_keeps_the_inputs,
    answers.execute_leaves_weights_for_the_end,
    answers.execute_sends_in_halves,
    answers.execute_takes_turns,
    answers.execute_whole_batch,
    answers.execute_computes_forward_twice,
    answers.execute_tells_everybody,
    answers.execute_sends_the_input_too,
}
HANGING = (answers.execute_sends_that_wait, answers.execute_drops_its_sends)
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [
    (check, answer, reason, "the gradients of one process" if answer in WASTEFUL else "")
    for check, answer, reason in WRONG
]
