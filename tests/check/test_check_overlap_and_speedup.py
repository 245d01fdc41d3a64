"""Each check of "Overlap and speed-up" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_overlap_and_speedup as answers
from verdicts import *  # noqa: F403

from course_lib.check import overlap_and_speedup as chapter

CHECKS = {
    chapter.bucketed_overlap: [
        answers.bucketed,
        answers.bucketed_from_the_shapes,
        answers.bucketed_in_a_thread,
    ],
    chapter.finish_time: [
        answers.finish_time,
        answers.finish_time_from_the_back,
        answers.finish_time_as_a_tensor,
        answers.finish_time_by_numpy,
    ],
    chapter.half_precision_hook: [
        answers.half_hook,
        answers.half_hook_of_torch,
        answers.half_hook_in_two_steps,
    ],
    chapter.quoted_rates: [answers.rates, answers.rates_by_hand],
}
WRONG = [
    (
        chapter.bucketed_overlap,
        answers.bucketed_all_at_the_end,
        "you made 1 call (all_reduce): everything in one, at the end?",
    ),
    (
        chapter.bucketed_overlap,
        answers.bucketed_all_at_the_end,
        "no bucket leaves before the last layer's backward",
    ),
    (
        chapter.bucketed_overlap,
        answers.bucketed_full_buckets_at_the_end,
        "no bucket leaves before the last layer's backward",
    ),
    (
        chapter.bucketed_overlap,
        answers.bucketed_one_per_parameter,
        "you made 8 calls (all_reduce): one for each parameter?",
    ),
    (chapter.bucketed_overlap, answers.bucketed_waits_in_hook, "something waits for it inside the hook"),
    (chapter.bucketed_overlap, answers.bucketed_one_at_a_time, "something waits for it inside the hook"),
    (
        chapter.bucketed_overlap,
        answers.bucketed_a_gradient_late,
        "1 bucket was full, and none had left, when the next gradient came",
    ),
    (chapter.bucketed_overlap, answers.bucketed_without_waiting, "the average over the ranks"),
    (chapter.bucketed_overlap, answers.bucketed_in_float16, "may be the rounding of float16"),
    (chapter.bucketed_overlap, answers.bucketed_on_rank_0, "on rank 1 a parameter has lost its gradient"),
    (chapter.bucketed_overlap, answers.bucketed_sum, "It is 3 times the average"),
    (chapter.bucketed_overlap, answers.bucketed_divides_twice, "It is 0.333 times the average"),
    (chapter.bucketed_overlap, answers.bucketed_forgets_the_last, "not the average over the ranks"),
    (
        chapter.bucketed_overlap,
        answers.bucketed_keeps_old_buckets,
        "in step 1, the gradients on rank 0 are not the average",
    ),
    (chapter.bucketed_overlap, answers.bucketed_keeps_old_buckets, "what is left over from them?"),
    (
        chapter.bucketed_overlap,
        answers.bucketed_in_float64,
        "2.00 times what an all_reduce of all gradients sends",
    ),
    (chapter.bucketed_overlap, answers.bucketed_by_all_gather, "4 calls (all_gather)"),
    (
        chapter.bucketed_overlap,
        answers.bucketed_without_finish,
        "return the function `finish`; it returned None",
    ),
    (chapter.bucketed_overlap, answers.bucketed_without_messages, "are not the average over the ranks"),
    (
        chapter.bucketed_overlap,
        answers.bucketed_without_writing_back,
        "this rank's own gradient times 1: `finish` must wait",
    ),
    (
        chapter.bucketed_overlap,
        answers.bucketed_a_layer_late,
        "you made 3 calls (all_reduce): a bucket is full as soon as it holds",
    ),
    (chapter.finish_time, answers.finish_time_without_overlap, "without overlap"),
    (chapter.finish_time, answers.finish_time_in_ms, "milliseconds, and not seconds"),
    (
        chapter.finish_time,
        answers.finish_time_rounded,
        "0.062 s, and you say 0.06. That is the right time, rounded to 2 digits",
    ),
    (chapter.finish_time, answers.finish_time_in_float32, "That is the precision of float32"),
    (chapter.finish_time, answers.finish_time_of_two, "lists that were drawn: ready at"),
    (chapter.finish_time, answers.finish_time_patches_the_judge, "you say 0.0"),
    (chapter.finish_time, answers.finish_time_without_tail, "4 equal buckets, computing slower: ready at"),
    (chapter.finish_time, answers.finish_time_of_the_last_bucket, "backward plus the last bucket"),
    (
        chapter.finish_time,
        answers.finish_time_on_a_free_network,
        "4 equal buckets, communication slower: ready at",
    ),
    (chapter.finish_time, answers.finish_time_by_the_formula, "a large bucket in the middle: ready at"),
    (chapter.half_precision_hook, answers.half_hook_divides_after, "divide before you send"),
    (chapter.half_precision_hook, answers.half_hook_sum, "It is 3 times the average"),
    (
        chapter.half_precision_hook,
        answers.half_hook_of_four,
        "gradients of usual size: the relative error is 0.25, and 0.001 is asked. It is 0.75 times the",
    ),
    (chapter.half_precision_hook, answers.half_hook_that_stays_half, "must be the flat fp32 tensor of"),
    (
        chapter.half_precision_hook,
        answers.half_hook_in_pieces,
        "one all_reduce per bucket is enough, and for",
    ),
    (chapter.half_precision_hook, answers.half_hook_in_fp32, "(float32), and half of P is"),
    (chapter.half_precision_hook, answers.half_hook_in_bfloat16, "the relative error is"),
    (chapter.half_precision_hook, answers.half_hook_rounds_and_sends_fp32, "(float32), and half of P is"),
    (
        chapter.half_precision_hook,
        answers.half_hook_without_return,
        "the hook must return a Future (as `work.get_future()` gives one), and returned a NoneType",
    ),
    (chapter.half_precision_hook, answers.half_hook_that_returns_the_tensor, "and returned a Tensor"),
    (
        chapter.half_precision_hook,
        answers.half_hook_with_the_future_of_the_work,
        "the value of the hook's Future must be the flat tensor, and is a list",
    ),
    (chapter.half_precision_hook, answers.half_hook_by_all_gather, "you call all_gather"),
    (chapter.quoted_rates, answers.rates_of_rank_0, "what rank 0 alone does"),
    (
        chapter.quoted_rates,
        answers.rates_of_this_job,
        "of a job with other numbers, made from that one, samples_per_s is",
    ),
    (chapter.quoted_rates, answers.rates_of_the_slowest_rank, "the slowest may be another one in each step"),
    (
        chapter.quoted_rates,
        answers.rates_of_all_collectives,
        "collectives_per_s is 3 times what it should be: it looks like the sum over all ranks",
    ),
    (chapter.quoted_rates, answers.rates_of_payload, "the payload, and not what the algorithm sends"),
    (chapter.quoted_rates, answers.rates_of_fast_ranks, "not of the slowest rank"),
    (chapter.quoted_rates, answers.rates_by_mean_step, "the mean over the timed steps"),
    (chapter.quoted_rates, answers.rates_by_shortest_step, "the shortest step, and not the median"),
    (chapter.quoted_rates, answers.rates_of_all_steps, "the samples of all timed steps over the time of one"),
    (chapter.quoted_rates, answers.rates_as_text, "samples_per_s must be a number, and is '"),
    (chapter.quoted_rates, answers.rates_of_whole_job, "the time of the whole job"),
    (chapter.quoted_rates, answers.rates_as_a_tuple, "return a dict with the keys"),
]
# Right values, wasteful way: the values must have been accepted, and the waste refused.
WASTEFUL = {
    answers.bucketed_all_at_the_end,
    answers.bucketed_full_buckets_at_the_end,
    answers.bucketed_one_per_parameter,
    answers.bucketed_waits_in_hook,
    answers.bucketed_in_float64,
    answers.bucketed_by_all_gather,
    answers.half_hook_in_fp32,
    answers.half_hook_rounds_and_sends_fp32,
    answers.half_hook_by_all_gather,
}
MET = {
    chapter.bucketed_overlap: "is the average",
    chapter.half_precision_hook: "the average, with the precision of fp16",
}
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [(check, answer, reason, MET[check] if answer in WASTEFUL else "") for check, answer, reason in WRONG]


def test_a_factor_is_named_only_where_there_is_one():
    """A rank's own gradient is no multiple of the average."""
    verdict = chapter.half_precision_hook(answers.half_hook_without_messages)
    assert not verdict and "and 0.001 is asked." in repr(verdict) and "times the average" not in repr(verdict)
