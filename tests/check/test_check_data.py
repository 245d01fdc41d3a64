"""The check of each exercise of the chapter accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_data as answers
from verdicts import *  # noqa: F403

from course_lib.check import data as chapter

STREAM, UPDATE, ORDER = chapter.stream_once, chapter.weighted_update, chapter.order_without_a_list
RIGHT = [
    (STREAM, [answers.stream]),
    (STREAM, [answers.stream_by_list]),
    (UPDATE, [answers.update]),
    (UPDATE, [answers.update_by_hand]),
    (ORDER, [answers.numbers]),
    (ORDER, [answers.numbers_by_rounds]),
]
UNTOUCHED = [(STREAM, [answers.stub]), (UPDATE, [answers.stub]), (ORDER, [answers.stub])]
HANGING = ((answers.update_skips_the_empty,),)
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (STREAM, [answers.stream_everything], ["one of them 3 times"], "no rank has more"),
    (STREAM, [answers.stream_without_workers], ["A worker is a process with its own copy"], "no rank has"),
    (STREAM, [answers.stream_whole_shards], ["Deal out samples, not shards"], "each sample comes once"),
    (STREAM, [answers.stream_every_nth], ["where each takes samples that lie"], "each sample comes once"),
    (STREAM, [answers.stream_skips], ["from start to stop"], "each sample comes once"),
    (STREAM, [answers.stream_all_at_once], ["before it yields its first sample"], "each sample comes once"),
    (STREAM, [answers.stream_padded], ["samples come more than once"], "a piece is read when"),
    (STREAM, [answers.stream_batches], ["yield what `read` returns one by one"], ""),
    (STREAM, [answers.stream_beyond], ["of shards with"], ""),
    (
        UPDATE,
        [answers.update_by_torchs_mean],
        ["by the weights of its own images"],
        "each rank's images",
    ),
    (UPDATE, [answers.update_own_mean], ["by the weights of its own images"], "no rank sends more"),
    (UPDATE, [answers.update_by_number], ["divided by the sum of the weights"], "no rank sends more"),
    (UPDATE, [answers.update_divides_twice], ["once too often: DDP does that, too"], "no rank sends more"),
    (UPDATE, [answers.update_unclipped], ["It is not clipped"], "no rank sends more"),
    (UPDATE, [answers.update_clips_each_rank], ["it is the average that has a norm"], "no rank sends more"),
    (UPDATE, [answers.update_skips_the_empty], ["cannot go on"], ""),
    (
        UPDATE,
        [answers.update_gathers_images],
        ["one number is needed from each rank"],
        "the weights are those",
    ),
    (UPDATE, [answers.update_fills_up], ["has not sent its images"], "the weights are those"),
    (ORDER, [answers.numbers_from_a_list], ["it makes a list of all"], "in every epoch"),
    (ORDER, [answers.numbers_of_numpy], ["it makes a list of all"], "in every epoch"),
    (ORDER, [answers.numbers_regular], ["the order is regular"], "in every epoch"),
    (ORDER, [answers.numbers_drawn], ["never come in epoch 0"], "every process"),
    (ORDER, [answers.numbers_each_epoch_alike], ["two epochs have the same order"], "in every epoch"),
    (ORDER, [answers.numbers_short_at_the_end], ["a step goes on with the next one"], "in every epoch"),
    (ORDER, [answers.numbers_padded], ["nothing is padded or left out"], "in every epoch"),
    (ORDER, [answers.numbers_per_rank], ["other samples than one rank does"], ""),
    (ORDER, [answers.numbers_of_a_process], ["may depend on the arguments alone"], "in every epoch"),
    (ORDER, [answers.numbers_in_words], ["a list of whole numbers"], ""),
]
