"""Each check of "Experts" accepts right answers, stays calm at the stub, and refuses wrong and wasteful ones
with a reason that helps.
"""

import answers_experts as answers
from verdicts import *  # noqa: F403

from course_lib.check import experts as chapter

ONCE, ROOM = chapter.tokens_once, chapter.room_by_weight
BALANCE, GRADIENTS = chapter.balance_over_ranks, chapter.expert_gradients
RIGHT = [
    (ONCE, [answers.once]),
    (ONCE, [answers.once_by_messages]),
    (ROOM, [answers.room]),
    (ROOM, [answers.room_by_expert]),
    (ROOM, [answers.room_by_place]),
    (BALANCE, [answers.balance]),
    (BALANCE, [answers.balance_by_gathering]),
    (GRADIENTS, [answers.gradients]),
    (GRADIENTS, [answers.gradients_at_once]),
]
UNTOUCHED = [(check, [answers.stub]) for check in (ONCE, ROOM, BALANCE, GRADIENTS)]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (ONCE, [answers.each_choice], ["goes there once, and one row comes back"], "the outputs are those"),
    (ONCE, [answers.everybody_has_all], ["do all tokens go to all ranks"], "the outputs are those"),
    (ONCE, [answers.padded], ["padded to one size"], "the outputs are those"),
    (ONCE, [answers.without_weights], ["It is the sum without the weights"], ""),
    (ONCE, [answers.in_the_order_of_experts], ["the outputs are not those"], ""),
    (ONCE, [answers.own_experts_alone], ["the part of this rank's own experts"], ""),
    (ONCE, [answers.once_without_way_back], ["that of the weights, too"], "the outputs are those"),
    (ONCE, [answers.once_that_sleeps], ["wrong when one comes late: wait for what"], ""),
    (ONCE, [answers.returns_nothing], ["it returned None"], ""),
    (ROOM, [answers.room_first_come], ["other choices stay than those with"], "no expert takes more"),
    (ROOM, [answers.room_without_end], ["with 40 tokens and a capacity of 12, expert"], ""),
    (ROOM, [answers.room_of_one_less], ["would find room"], "no expert takes more"),
    (ROOM, [answers.room_by_threshold], ["with 40 tokens and a capacity of"], ""),
    (ROOM, [answers.room_in_a_loop], ["operations of torch for 40 tokens"], "the largest weights stay"),
    (ROOM, [answers.room_in_lists], ["numbers out of its tensors"], "the largest weights stay"),
    (ROOM, [answers.room_of_numbers], ["must return a bool tensor [40, 2]"], ""),
    (BALANCE, [answers.balance_of_own], ["each rank asks for balance among its own"], "no more travels"),
    (BALANCE, [answers.balance_of_gathered_scores], ["at most a number for each expert"], "the mean over"),
    (BALANCE, [answers.balance_of_gathered_p], ["2 ranks: the tensors that a rank gives"], "the mean over"),
    (BALANCE, [answers.balance_that_sleeps], ["wrong when one comes late: wait for what"], "no more travels"),
    (BALANCE, [answers.balance_summed], ["f must sum to 1"], "no more travels"),
    (BALANCE, [answers.balance_of_k], ["k times as large"], "no more travels"),
    (BALANCE, [answers.balance_without_gradient], ["one number with a gradient"], ""),
    (BALANCE, [answers.balance_of_detached_p], ["P has one"], "is the loss of one process"),
    (GRADIENTS, [answers.gradients_over_all], ["a mixture of different experts"], "of what all ranks hold"),
    (GRADIENTS, [answers.gradients_mean_of_replicas], ["2 times too large"], "of what all ranks hold"),
    (GRADIENTS, [answers.gradients_of_shared_alone], ["what it was before"], "of what all ranks hold"),
    (GRADIENTS, [answers.gradients_that_sleep], ["wrong when one comes late: wait for what"], ""),
    (
        GRADIENTS,
        [answers.gradients_that_sleep_on_experts],
        ["wrong when one comes late: wait for what"],
        "of what all ranks hold",
    ),
    (GRADIENTS, [answers.gradients_summed], ["Average it over all ranks", "times too large"], ""),
    (GRADIENTS, [answers.gradients_divided_alone], ["and not added up"], "of what all ranks hold"),
    (GRADIENTS, [answers.gradients_gathered], ["times the", "bytes of an all_reduce"], "of the experts"),
    (GRADIENTS, [answers.gradients_twice], ["times the", "bytes of an all_reduce"], "of the experts"),
]
