"""Each check of "Asynchronous and federated" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful ones with a reason that helps.
"""

import answers_asynchronous_and_federated as answers
from verdicts import *  # noqa: F403

from course_lib.check import asynchronous_and_federated as chapter

LATE, FRAGMENTS, AVERAGE = chapter.late_gradients, chapter.average_in_fragments, chapter.federated_average
RIGHT = [
    (LATE, [answers.late]),
    (LATE, [answers.late_by_memory]),
    (FRAGMENTS, [answers.fragments]),
    (FRAGMENTS, [answers.fragments_at_once]),
    (FRAGMENTS, [answers.fragments_on_their_way]),
    (AVERAGE, [answers.federated]),
    (AVERAGE, [answers.federated_at_once]),
    (AVERAGE, [answers.federated_from_counts]),
]
UNTOUCHED = [(check, [answers.stub]) for check in (LATE, FRAGMENTS, AVERAGE)]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (LATE, [answers.late_alike], ["if late gradients count like all others"], "how many gradients"),
    (LATE, [answers.late_never_thrown], ["if no gradient is thrown away", "had to be thrown away"], ""),
    (LATE, [answers.late_thrown_count], ["counts the gradients that were applied"], ""),
    (LATE, [answers.late_full_weight], ["weighs 1 / staleness"], "how many gradients"),
    (LATE, [answers.late_too_soon], ["as late as `most` is thrown away"], ""),
    (LATE, [answers.late_out_of_place], ["update `params` in place"], "the newest weights"),
    (LATE, [answers.late_returns_nothing], ["the server returned None"], "the last weights are right"),
    (LATE, [answers.late_old_weights], ["right after its own gradient"], ""),
    (LATE, [answers.late_home_early], ["come the last weights, and a worker got others"], "the newest"),
    (LATE, [answers.late_with_history], ["a version is a number"], "the last weights are right"),
    (FRAGMENTS, [answers.all_fragments_at_once], ["other parameters", "Only what is due travels"], ""),
    (FRAGMENTS, [answers.fragments_in_every_step], ["other parameters", "Only what is due travels"], ""),
    (FRAGMENTS, [answers.fragments_summed], ["divide by the number of ranks"], "the same tensors"),
    (FRAGMENTS, [answers.fragments_one_step_late], ["a fragment was due, and nothing"], "no rank sends"),
    (FRAGMENTS, [answers.fragments_gathered], ["times an all_reduce of the largest"], "each fragment is"),
    (FRAGMENTS, [answers.fragments_that_travel_with_all], ["Only what is due travels"], "each fragment is"),
    (AVERAGE, [answers.federated_plain], ["count each by its samples"], "no rank sends"),
    (AVERAGE, [answers.federated_plain_of_those_present], ["count each by its samples"], "nobody took part"),
    (AVERAGE, [answers.federated_zero_times_nan], ["0 times nan is nan"], "no rank sends"),
    (AVERAGE, [answers.federated_divides_by_nobody], ["in which nobody took part"], "all ranks get"),
    (AVERAGE, [answers.federated_not_for_the_absent], ["It is what this rank had before"], "no rank sends"),
    (AVERAGE, [answers.federated_gathered], ["times those of one all_reduce"], "all ranks get"),
]
