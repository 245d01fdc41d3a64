"""Each check of "Beyond one machine" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_beyond_one_machine as answers
from verdicts import *  # noqa: F403

from course_lib.check import beyond_one_machine as chapter

SUM, ORDER, SLURM = chapter.hierarchical_all_reduce, chapter.axis_order, chapter.slurm_environment
RIGHT = [
    (SUM, [answers.hierarchical]),
    (SUM, [answers.hierarchical_flat]),
    (SUM, [answers.hierarchical_by_all_to_all]),
    (ORDER, [answers.axis_order]),
    (ORDER, [answers.axis_order_by_numpy]),
    (SLURM, [answers.slurm_environment]),
    (SLURM, [answers.slurm_environment_by_parts]),
]
UNTOUCHED = [(SUM, [answers.stub]), (ORDER, [answers.stub]), (SLURM, [answers.stub])]
TOTAL = "every rank has the sum"
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        SUM,
        [answers.one_sends_for_all],
        ["sends 1.00 S to other hosts, and 0.33 S are enough", "Let each rank take a part"],
        TOTAL,
    ),
    (SUM, [answers.everyone_sends_all], ["A rank needs to take only its own part"], TOTAL),
    (SUM, [answers.sums_all_inside], ["2.00 S inside its host, and 1.33 S are enough"], TOTAL),
    (SUM, [answers.over_all_ranks], ["you called all_reduce over the ranks 0,1,2,3,4,5"], TOTAL),
    (SUM, [answers.with_messages], ["you used", "Use collectives of the two groups alone"], TOTAL),
    (SUM, [answers.forgets_between], ["It is the sum inside this host alone"], "only collectives"),
    (SUM, [answers.returns_it], ["the sum must stand in the tensor that you were given"], ""),
    (SUM, [answers.averages], ["It is the mean, and not the sum"], ""),
    (SUM, [answers.does_not_wait], ["the tensor is not the sum over all ranks"], ""),
    (SUM, [answers.reads_files], ["not in files or memory that ranks share"], TOTAL),
    (ORDER, [answers.order_by_bytes], ["bytes leave the busiest host. With"], "every axis once"),
    (
        ORDER,
        [answers.order_the_other_way],
        ["bytes leave the busiest host", "Neighbours along the last axis have neighbouring ranks"],
        "every axis once",
    ),
    (ORDER, [answers.order_as_given], ["With tp, dp it is"], "every axis once"),
    (ORDER, [answers.order_of_two], ["Each axis must be there once"], ""),
    (ORDER, [answers.order_as_a_dict], ["it must return the names of the axes in order"], ""),
    (SLURM, [answers.environment_of_numbers], ["RANK is", "os.environ takes text alone"], ""),
    (
        SLURM,
        [answers.environment_without_zeros],
        ["MASTER_ADDR is 'gpu3', and must be 'gpu003'"],
        "LOCAL_RANK",
    ),
    (
        SLURM,
        [answers.environment_of_itself],
        ["MASTER_ADDR is 'localhost', and must be 'node7'"],
        "LOCAL_RANK",
    ),
    (SLURM, [answers.environment_of_the_list], ["MASTER_ADDR is 'n[1-2]', and must be 'n1'"], "LOCAL_RANK"),
    (SLURM, [answers.environment_with_a_port_of_text], ["MASTER_PORT is '2"], "RANK, LOCAL_RANK and"),
    (SLURM, [answers.environment_of_nodes], ["RANK is"], "the five variables"),
    (SLURM, [answers.environment_without_port], ["MASTER_PORT is missing"], ""),
]
