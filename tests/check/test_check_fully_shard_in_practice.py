"""Each check of "fully_shard in practice" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_fully_shard_in_practice as answers
from verdicts import *  # noqa: F403

from course_lib.check import fully_shard_in_practice as chapter

UNITS, INIT, QUIET = chapter.units_for_budget, chapter.init_on_meta, chapter.quiet_accumulation
RIGHT = [
    (UNITS, [answers.units]),
    (UNITS, [answers.units_by_table]),
    (INIT, [answers.init]),
    (INIT, [answers.init_by_state_dict]),
    (QUIET, [answers.accumulate]),
    (QUIET, [answers.accumulate_and_set_back]),
    (QUIET, [answers.accumulate_late_forward]),
]
UNTOUCHED = [(UNITS, [answers.stub]), (INIT, [answers.stub]), (QUIET, [answers.stub])]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (UNITS, [answers.units_one_each], ["has 6 units, and 3 can do"], "every layer is in one unit"),
    (UNITS, [answers.units_one_for_all], ["holds 48 bytes at once"], "every layer is in one unit"),
    (UNITS, [answers.units_that_fit_alone], ["holds 48 bytes at once"], "every layer is in one unit"),
    (UNITS, [answers.units_of_half], ["bytes at once"], ""),
    (UNITS, [answers.units_by_size], ["has units out of order"], "in backward two units fit"),
    (UNITS, [answers.units_without_the_last], ["each number of a layer stands once"], ""),
    (INIT, [answers.init_whole], ["and the memory of"], "the values of one process"),
    (INIT, [answers.init_whole_on_rank_0], ["Make one module at a time"], "the values of one process"),
    (INIT, [answers.init_in_shards], ["It is the same rows on every rank"], "every parameter is sharded"),
    (INIT, [answers.init_on_meta_alone], ["a parameter is still on the meta device"], ""),
    (INIT, [answers.init_unsharded], ["a parameter is no DTensor"], ""),
    (INIT, [answers.init_nothing], ["must return the model"], ""),
    (INIT, [answers.init_other_seed], ["the values are not those"], "every parameter is sharded"),
    (QUIET, [answers.accumulate_plainly], ["only the last backward needs to reduce"], "the gradients of one"),
    (QUIET, [answers.accumulate_without_sync], ["who has gathered a unit"], "gradients travel once"),
    (QUIET, [answers.accumulate_gathers_in_forward], ["who has gathered a unit"], "gradients travel once"),
    (QUIET, [answers.accumulate_never_reduced], ["the last backward must reduce"], ""),
    (QUIET, [answers.accumulate_never_resharded], ["still has full parameters"], "gradients travel once"),
    (QUIET, [answers.accumulate_summed], ["It is the sum over the micro-batches"], "gathered once"),
    (QUIET, [answers.accumulate_the_last], ["the gradients are not those of one process"], ""),
]
