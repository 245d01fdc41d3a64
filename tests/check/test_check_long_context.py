"""Each check of "Long context" accepts right answers, stays calm at the stub, and refuses wrong and wasteful
answers with a reason that helps.
"""

import answers_long_context as answers
import torch
from verdicts import *  # noqa: F403

from course_lib.check import long_context as chapter

MERGE, WINDOW = chapter.softmax_merge, chapter.window_ring
DEAL, FEW = chapter.packed_documents, chapter.ulysses_few_heads
RIGHT = [
    (MERGE, [answers.merge]),
    (MERGE, [answers.merge_by_where]),
    (MERGE, [answers.merge_stacked]),
    (WINDOW, [answers.window]),
    (WINDOW, [answers.window_few_rows]),
    (WINDOW, [answers.window_merged]),
    (DEAL, [answers.deal]),
    (DEAL, [answers.deal_tensors]),
    (FEW, [answers.few]),
    (FEW, [answers.few_by_sends]),
    (FEW, [answers.few_in_a_ring]),
]
if torch.__version__ >= "2.13":  # before, gloo has no all_to_all of lists
    RIGHT.append((FEW, [answers.few_in_one_message]))
UNTOUCHED = [(check, [answers.stub]) for check in (MERGE, WINDOW, DEAL, FEW)]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (MERGE, [answers.merge_added], ["It is the sum of both, as they are"], "stay as they are"),
    (MERGE, [answers.merge_without_most], ["with scores from -1e5"], "the triple of both parts"),
    (MERGE, [answers.merge_inf_minus_inf], ["-inf minus -inf is none"], "and with scores from"),
    (MERGE, [answers.merge_in_place], ["it changes the tensors"], "the triple of both parts"),
    (MERGE, [answers.merge_nothing], ["must return three tensors"], ""),
    (WINDOW, [answers.window_gathered], ["times its own keys and values"], "the output of one process"),
    (WINDOW, [answers.window_round_the_ring], ["nobody else needs them"], "the output of one process"),
    (WINDOW, [answers.window_own], ["It is that of a rank's own keys alone"], "no rank sends more"),
    (WINDOW, [answers.window_longer], ["It is that of a window longer by one"], "no rank sends more"),
    (WINDOW, [answers.window_not_waited], ["the output is"], ""),
    (DEAL, [answers.deal_contiguous], ["some would wait for the others"], "the same number of tokens"),
    (DEAL, [answers.deal_zigzag_over_all], ["A token late in its document"], "the same number of tokens"),
    (DEAL, [answers.deal_striped], ["rows of one document"], "each position is on one rank"),
    (DEAL, [answers.deal_out_of_order], ["are not in order"], "the same number of tokens"),
    (DEAL, [answers.deal_whole_documents], ["the ranks have"], "each position is on one rank"),
    (DEAL, [answers.deal_twice], ["the positions are not 0 to"], ""),
    (DEAL, [answers.deal_one_list], ["a list with the positions of each rank"], ""),
    (FEW, [answers.few_gathered], ["An all_gather sends all heads to all"], "the output of one process"),
    (FEW, [answers.few_repeated], ["once for each head of queries"], "the output of one process"),
    (FEW, [answers.few_in_a_ring_not_corrected], ["is not that of one process"], "no rank sends more"),
    (FEW, [answers.few_full], ["It is that without a causal mask"], "no rank sends more"),
    (FEW, [answers.few_other_pairs], ["It is that of other pairs"], "no rank sends more"),
    (FEW, [answers.few_not_back], ["must return a tensor of shape"], ""),
]
