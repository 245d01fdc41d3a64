"""Each check of "One training step" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_one_training_step as answers
from verdicts import *  # noqa: F403

from course_lib.check import one_training_step as chapter

CHECKS = {
    chapter.memory_ledger: [
        answers.ledger,
        answers.ledger_in_numpy,
        answers.ledger_by_objects,
        answers.ledger_that_asks_each,
    ],
    chapter.uneven_accumulation: [
        answers.accumulate,
        answers.accumulate_at_the_end,
        answers.accumulate_by_forward,
    ],
    chapter.weighted_average: [answers.average, answers.average_in_one_call, answers.average_with_an_array],
}
WRONG = [
    (chapter.memory_ledger, answers.ledger_of_state_dict, "TinyGPT with tied weights: params should be"),
    (chapter.memory_ledger, answers.ledger_of_state_dict, "CNN with buffers (batch norm): params should be"),
    (
        chapter.memory_ledger,
        answers.ledger_by_rule_of_thumb,
        "before its first step: grads should be 0 bytes",
    ),
    (chapter.memory_ledger, answers.ledger_by_rule_of_thumb, "first layer is frozen: grads should be"),
    (chapter.memory_ledger, answers.ledger_of_views, "views of one flat buffer: params should be"),
    (chapter.memory_ledger, answers.ledger_of_elements, "64 MB to spare: params should be"),
    (
        chapter.memory_ledger,
        answers.ledger_without_step_counters,
        "an MLP with Adam: optimizer_states should be",
    ),
    (chapter.memory_ledger, answers.ledger_that_copies, "bytes of new tensors"),
    (
        chapter.memory_ledger,
        answers.ledger_that_frees,
        "an MLP with Adam: after the call, the gradients are not what they were. A ledger only looks",
    ),
    (
        chapter.memory_ledger,
        answers.ledger_that_zeroes,
        "an MLP with Adam: after the call, the gradients are not what they were",
    ),
    (chapter.memory_ledger, answers.ledger_in_float32, "64 MB to spare: params should be"),
    (chapter.memory_ledger, answers.ledger_in_kilobytes, "an MLP with Adam: params is "),
    (chapter.memory_ledger, answers.ledger_of_lists, "made"),
    (chapter.memory_ledger, answers.ledger_of_tensors, "params is ["),
    (
        chapter.uneven_accumulation,
        answers.accumulate_in_float16,
        "not that of the whole batch (relative error 0.000",
    ),
    (
        chapter.uneven_accumulation,
        answers.accumulate_that_steps,
        "the parameters have changed; leave them alone",
    ),
    (
        chapter.uneven_accumulation,
        answers.accumulate_that_normalises,
        "the images or labels of a micro-batch have changed",
    ),
    (
        chapter.weighted_average,
        answers.average_in_float16,
        "were the gradients sent or added in a smaller dtype?",
    ),
    (chapter.weighted_average, answers.average_without_wait, "the gradient has a relative error of"),
    (chapter.weighted_average, answers.average_of_known_samples, "the gradient has a relative error of"),
    (chapter.memory_ledger, answers.ledger_of_total, "returned a value of type int, and not a dict"),
    (
        chapter.memory_ledger,
        answers.ledger_with_other_names,
        "it should have params, grads, optimizer_states",
    ),
    (
        chapter.memory_ledger,
        answers.ledger_that_fails,
        "your ledger failed on rank 0.\n  rank 0: raised AttributeError",
    ),
    (chapter.uneven_accumulation, answers.accumulate_undivided, "nothing was divided"),
    (chapter.uneven_accumulation, answers.accumulate_plain_mean, "plain mean of the micro-batches"),
    (chapter.uneven_accumulation, answers.accumulate_sum, "the sum over all samples"),
    (chapter.uneven_accumulation, answers.accumulate_last, "last micro-batch alone"),
    (
        chapter.uneven_accumulation,
        answers.accumulate_whole_batch,
        "2.4 times those of the largest micro-batch",
    ),
    (
        chapter.uneven_accumulation,
        answers.accumulate_one_backward,
        "2.4 times those of the largest micro-batch",
    ),
    (chapter.uneven_accumulation, answers.accumulate_single_samples, "ran 24 times for 4 micro-batches"),
    (chapter.uneven_accumulation, answers.accumulate_without_backward, "no gradient"),
    (chapter.weighted_average, answers.average_plain, "plain mean over ranks"),
    (chapter.weighted_average, answers.average_undivided, "nothing was divided"),
    (chapter.weighted_average, answers.average_one_call_per_parameter, "6 collectives"),
    (
        chapter.weighted_average,
        answers.average_with_a_barrier,
        "a rank called 3 collectives (2 all_reduce, 1 barrier); 2 are enough",
    ),
    (
        chapter.weighted_average,
        answers.average_by_all_gather,
        "4 ranks with different numbers of samples: a rank sent",
    ),
    (
        chapter.weighted_average,
        answers.average_by_reduce_scatter,
        "On gloo a reduce_scatter sends as much as an all_reduce",
    ),
    (chapter.weighted_average, answers.average_over_root, "times what one ring all_reduce"),
    (chapter.weighted_average, answers.average_on_root_only, "on rank 1"),
    (chapter.weighted_average, answers.average_in_float64, "2.00 times what one ring all_reduce"),
    (chapter.weighted_average, answers.average_nothing, "no rank called a collective"),
    (chapter.weighted_average, answers.average_that_fails, "raised AttributeError: 'NoneType' object has no"),
]
# Right values, wasteful way: the values must have been accepted, and the waste refused.
WASTEFUL = {
    answers.ledger_that_copies,
    answers.ledger_that_frees,
    answers.ledger_that_zeroes,
    answers.ledger_of_lists,
    answers.accumulate_whole_batch,
    answers.accumulate_one_backward,
    answers.accumulate_single_samples,
    answers.average_one_call_per_parameter,
    answers.average_with_a_barrier,
    answers.average_by_all_gather,
    answers.average_by_reduce_scatter,
    answers.average_over_root,
    answers.average_in_float64,
}
# What is wrong in the same way everywhere is not told for each case, and nothing is praised: answer -> number
# of lines.
TOLD_ONCE = {answers.ledger_of_total: 1, answers.ledger_with_other_names: 1, answers.average_nothing: 4}
MET = {
    chapter.memory_ledger: "exact for an MLP with Adam",
    chapter.uneven_accumulation: "gradient",
    chapter.weighted_average: "gradient",
}
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [(check, answer, reason, MET[check] if answer in WASTEFUL else "") for check, answer, reason in WRONG]
