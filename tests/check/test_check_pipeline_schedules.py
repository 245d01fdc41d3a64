"""Each check of "Pipeline schedules" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_pipeline_schedules as answers
from verdicts import *  # noqa: F403

from course_lib.check import pipeline_schedules as chapter

ROUNDS, LATER, PLACE = chapter.interleaved_rounds, chapter.later_linear, chapter.weights_in_bubbles
RIGHT = [
    (ROUNDS, [answers.rounds_of_the_library]),
    (ROUNDS, [answers.rounds_by_hand]),
    (ROUNDS, [answers.rounds_in_tuples]),
    (LATER, [answers.later]),
    (LATER, [answers.later_by_a_small_graph]),
    (LATER, [answers.later_by_a_hook]),
    (PLACE, [answers.place]),
    (PLACE, [answers.place_latest_first]),
]
UNTOUCHED = [(ROUNDS, [answers.stub]), (LATER, [answers.stub]), (PLACE, [answers.stub])]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (ROUNDS, [answers.rounds_with_a_short_last_one], ["on paper the step takes 27.5 forwards, and 22.5"], ""),
    (ROUNDS, [answers.rounds_all_in_one], ["in flight, and"], ""),
    (ROUNDS, [answers.rounds_one_deeper], ["in flight, and", "it runs more forwards"], ""),
    (ROUNDS, [answers.rounds_all_forwards_first], ["in flight, and"], ""),
    (ROUNDS, [answers.rounds_without_the_rest], ["skips the forward of micro-batch 4"], ""),
    (ROUNDS, [answers.rounds_of_neighbours], ["stage 1 lives on rank 1"], ""),
    (LATER, [answers.later_early], ["the weight's is for later", "are held beside x"], "y = x @ weight.T"),
    (LATER, [answers.later_keeps_y], ["are held beside x"], "the functions add the gradients"),
    (LATER, [answers.later_twice], ["the function computes 2 products"], "the functions add the gradients"),
    (LATER, [answers.later_without_bias], ["gradients of weight and bias are not right"], "y = x @ weight.T"),
    (LATER, [answers.later_does_not_add], ["gradients of weight and bias are not right"], "y = x @ weight.T"),
    (LATER, [answers.later_plain], ["has a gradient before its function was called"], "y = x @ weight.T"),
    (LATER, [answers.later_nothing], ["must hold one function more, and holds 0 things"], ""),
    (LATER, [answers.later_without_transpose], ["y is not x @ weight.T + bias"], ""),
    (
        PLACE,
        [answers.place_at_the_end],
        ["between F and W. A W has to come earlier there"],
        "F and I in the order",
    ),
    (PLACE, [answers.place_at_once], ["on paper the step takes"], "never more than `most`"),
    (PLACE, [answers.place_one_more], ["between F and W"], "F and I in the order"),
    (PLACE, [answers.place_forgets_the_last], ["skips the backward_weight"], ""),
    (PLACE, [answers.place_before_its_input], ["the second part of a backward before its first"], ""),
    (PLACE, [answers.place_makes_it_its_own_way], ["no longer stand in the order that was given"], ""),
    (PLACE, [answers.place_all_on_one_rank], ["return one list for each of the 4 ranks"], ""),
]
