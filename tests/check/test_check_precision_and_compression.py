"""Each check of "Precision and compression" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful ones with a reason that helps.
"""

import answers_precision_and_compression as answers
from verdicts import *  # noqa: F403

from course_lib.check import precision_and_compression as chapter

SKIP, BYTES, PLACES = chapter.skipped_together, chapter.mean_of_bytes, chapter.places_that_all_know
RIGHT = [
    (SKIP, [answers.step]),
    (SKIP, [answers.step_by_gathering]),
    (BYTES, [answers.mean]),
    (BYTES, [answers.mean_in_int8]),
    (PLACES, [answers.places]),
    (PLACES, [answers.places_in_turn]),
]
UNTOUCHED = [(check, [answers.stub]) for check in (SKIP, BYTES, PLACES)]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (SKIP, [answers.step_alone], ["called optimizer.step()"], "else every rank steps once"),
    (
        SKIP,
        [answers.step_with_zeros],
        ["called optimizer.step()", "was skipped returned"],
        "32 bytes at most",
    ),
    (SKIP, [answers.step_by_the_norm], ["did not step. They were large"], "a number that is not finite"),
    (SKIP, [answers.step_without_division], ["not those divided by `scale`"], "all ranks return the same"),
    (SKIP, [answers.step_that_keeps_its_scale], ["that was skipped returned"], "else every rank steps once"),
    (SKIP, [answers.step_shard_by_shard], ["bytes in 3 collectives"], "all ranks return the same scale"),
    (SKIP, [answers.step_that_sends_gradients], ["it need only tell"], "all ranks return the same scale"),
    (BYTES, [answers.mean_in_float32], ["a rank sends 4.00 times"], "the mean has a relative error"),
    (BYTES, [answers.mean_in_bf16], ["a rank sends 2.00 times"], "the mean has a relative error"),
    (BYTES, [answers.mean_of_gathered_bytes], ["It needs its chunk alone"], "the mean has a relative error"),
    (
        BYTES,
        [answers.mean_with_one_scale],
        ["does each chunk have a scale of its own"],
        "all ranks return the same",
    ),
    (BYTES, [answers.mean_that_keeps_its_own], ["must be rounded for oneself as"], "no rank sends more than"),
    (BYTES, [answers.mean_that_is_a_sum], ["2.0 times the mean"], "all ranks return the same"),
    (BYTES, [answers.mean_of_itself], ["must travel, in messages"], ""),
    (PLACES, [answers.places_of_its_own], ["do all ranks draw the same places"], "no rank sends more than"),
    (PLACES, [answers.places_forgotten], ["It is the gradient without what was unsaid"], "the same mean"),
    (PLACES, [answers.places_that_stay], ["of the places have been said"], "all ranks return the same mean"),
    (PLACES, [answers.places_summed], ["It is the sum over the ranks"], "at most k places"),
    (PLACES, [answers.places_with_zeros], ["neither places nor zeros"], "all ranks return the same mean"),
    (PLACES, [answers.places_in_place], ["your function has changed unsaid"], "all ranks return the same"),
    (PLACES, [answers.places_of_all], ["places of the mean are not zero"], "all ranks return the same mean"),
    (PLACES, [answers.places_returned_alone], ["must return two vectors"], ""),
]
