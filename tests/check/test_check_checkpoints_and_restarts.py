"""Each check of "Checkpoints and restarts" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_checkpoints_and_restarts as answers
from verdicts import *  # noqa: F403

from course_lib.check import checkpoints_and_restarts as chapter

SAVER, STEPS, ODD = chapter.background_saver, chapter.steps_between_saves, chapter.odd_replicas
RIGHT = [
    (SAVER, [answers.Saver]),
    (SAVER, [answers.SaverWithBuffer]),
    (SAVER, [answers.SaverWithQueue]),
    (STEPS, [answers.steps]),
    (STEPS, [answers.steps_by_search]),
    (ODD, [answers.odd]),
    (ODD, [answers.odd_by_numbers]),
    (ODD, [answers.odd_by_crc]),
]
UNTOUCHED = [(SAVER, [answers.stub]), (STEPS, [answers.stub]), (ODD, [answers.stub])]
PATIENCE = {"PATIENCE_S": 1.0, "HELD_S": 0.35}  # where a write should not be waited for, and where it should
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (SAVER, [answers.SaverThatWaits], ["Let a thread write"], "an error of `write`"),
    (SAVER, [answers.SaverWithoutCopy], ["has other numbers than at the call"], "while its write"),
    (SAVER, [answers.SaverWithDetach], ["has other numbers than at the call"], "never two writes"),
    (SAVER, [answers.SaverTwoCopies], ["there are 2.0 copies"], "never two writes"),
    (SAVER, [answers.SaverKeepsCopy], ["there are 2.0 copies"], "never two writes"),
    (SAVER, [answers.SaverCopiesLate], ["has other numbers than at the call"], "while its write"),
    (SAVER, [answers.SaverThatQueues], ["copies of the state"], "never two writes"),
    (SAVER, [answers.SaverManyThreads], ["a second `write` began"], "while its write"),
    (SAVER, [answers.SaverLeaves], ["before the last `write` was over"], "while its write"),
    (SAVER, [answers.SaverDrops], ["and not once"], "while its write"),
    (SAVER, [answers.SaverSilent], ["neither the next `save` nor `close` did"], "when all is written"),
    (SAVER, [answers.SaverTellsAtTheEnd], ["the next `save` did not tell"], "when all is written"),
    (SAVER, [answers.SaverForgetsTheLast], ["`close` did not tell"], "when all is written"),
    (STEPS, [answers.steps_rounded_down], ["times as much"], "at least as long as a write"),
    (STEPS, [answers.steps_of_write], ["waits for `blocked_s` alone"], "at least as long as a write"),
    (STEPS, [answers.steps_too_early], ["would begin before it is over"], "a whole number"),
    (STEPS, [answers.steps_float], ["it returned"], ""),
    (STEPS, [answers.steps_none], ["it returned 0"], ""),
    (STEPS, [answers.steps_each], ["times as much"], "at least as long as a write"),
    (STEPS, [answers.steps_with_restart], ["times as much"], "at least as long as a write"),
    (ODD, [answers.odd_by_sum], ["that have changed places"], "replicas that are alike"),
    (ODD, [answers.odd_without_buffers], ["a buffer of"], "replicas that are alike"),
    (ODD, [answers.odd_by_values], ["NaNs too"], ""),
    (ODD, [answers.odd_in_double], ["a buffer of large whole numbers"], "replicas that are alike"),
    (ODD, [answers.odd_gathered], ["send a number that depends"], "a replica that differs is found"),
    (ODD, [answers.odd_against_rank_0], ["your function returned"], "replicas that are alike"),
    (ODD, [answers.odd_on_rank_0], ["returned another list than rank 0"], "replicas that are alike"),
    (ODD, [answers.odd_mends], ["the model is another one"], "a replica that differs is found"),
]
