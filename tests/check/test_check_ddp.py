"""Each check of "Distributed data parallel" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_ddp as answers
from verdicts import *  # noqa: F403

from course_lib.check import ddp as chapter

DDP, SYNC, AGREE = chapter.own_ddp, chapter.one_synchronisation, chapter.ranks_agree
RIGHT = [
    (DDP, [answers.OwnDDP]),
    (DDP, [answers.PrintsAndCounts]),
    (DDP, [answers.torchs_ddp]),
    (DDP, [answers.minis_ddp]),
    (SYNC, [answers.update]),
    (SYNC, [answers.update_by_weights]),
    (AGREE, [answers.ranks_agree]),
    (AGREE, [answers.agree_by_objects]),
    (AGREE, [answers.agree_by_extremes]),
    (AGREE, [answers.agree_with_rank_0]),
    (AGREE, [answers.agree_by_random_weights]),
]
UNTOUCHED = [
    (DDP, [answers.Untouched]),
    (SYNC, [answers.stub]),
    (AGREE, [answers.stub]),
]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        DDP,
        [answers.SyncsEveryMicroBatch],
        [
            "3 micro-batches: exactly one synchronisation per update, but the gradients travelled 3.00 times",
            "Under `no_sync` nothing may be sent",
            "a rank sent 3.0",
        ],
        "weights are those of one process",
    ),
    (
        DDP,
        [answers.AveragesWeights],
        [
            "It averages weights, and it should average gradients",
            "It is this rank's own gradient: nothing was averaged",
        ],
        "exactly one synchronisation",
    ),
    (
        DDP,
        [answers.AveragesWeightsInForward],
        ["It averages weights, and it should average gradients"],
        "exactly one synchronisation",
    ),
    (
        DDP,
        [answers.GathersGradients],
        ["a rank sent 1.5", "An all_gather brings the gradient of every rank to every rank"],
        "weights are those of one process",
    ),
    (
        DDP,
        [answers.Sums],
        ["It is the sum over the ranks, not their average: divide by the world size"],
        "exactly one synchronisation",
    ),
    (DDP, [answers.DividesTwice], ["It is divided by the world size twice"], "exactly one synchronisation"),
    (DDP, [answers.SumsInEveryMicroBatch], ["It is the sum of sums"], "start with the weights of rank 0"),
    (
        DDP,
        [answers.NoBroadcast],
        ["rank 1 does not start with the weights of rank 0. Broadcast them"],
        "every gradient is that",
    ),
    (
        DDP,
        [answers.AveragesTheStart],
        ["rank 1 does not start with the weights of rank 0"],
        "every gradient is that",
    ),
    (DDP, [answers.ForgetsBuffers], ["`module.buffers()` must be broadcast too"], "every gradient is that"),
    (
        DDP,
        [answers.StartOnly],
        ["nothing was summed", "It is this rank's own gradient: nothing was averaged"],
        "and with its buffers",
    ),
    (
        DDP,
        [answers.LastMicroBatchOnly],
        ["It is averaged in the last micro-batch alone"],
        "exactly one synchronisation",
    ),
    (DDP, [answers.ByReduceAndBroadcast], ["a rank sent"], "every gradient is that"),
    (DDP, [answers.InFloat32], ["the rounding of float32"], "and with its buffers"),
    (DDP, [answers.DoesNotWait], ["the gradient is not that of the whole batch"], "and with its buffers"),
    (
        DDP,
        [answers.OnRank0Only],
        ["2 ranks: on rank 1 a parameter has no gradient after backward"],
        "and with its buffers",
    ),
    (DDP, [answers.HooksOnFrozen], ["raised RuntimeError"], ""),
    (
        DDP,
        [answers.SendsFrozen],
        ["such as zeros for frozen parameters", "a rank sent 1.0"],
        "weights are those of one process",
    ),
    (
        SYNC,
        [answers.update_every_time],
        ["the gradients travelled 3.00 times"],
        "weights are those of one process",
    ),
    (
        SYNC,
        [answers.update_forward_outside],
        ["the gradients travelled 3.00 times"],
        "weights are those of one process",
    ),
    (SYNC, [answers.update_never], ["the ranks have different weights"], "one forward per micro-batch"),
    (
        SYNC,
        [answers.update_plain_mean],
        ["divide the sum of all losses by the number of this rank's samples"],
        "exactly one synchronisation",
    ),
    (
        SYNC,
        [answers.update_without_zero_grad],
        ["the gradients of the update before are still there when the first backward adds to them"],
        "exactly one synchronisation",
    ),
    (
        SYNC,
        [answers.update_with_one_backward],
        ["forwards wait for one backward"],
        "exactly one synchronisation",
    ),
    (
        SYNC,
        [answers.update_divided_by_all_samples],
        ["3 ranks, micro-batches of different sizes: the first update is 0.333 times that of one process"],
        "one forward",
    ),
    (
        SYNC,
        [answers.update_without_step],
        ["the first update leaves the weights as they were"],
        "one forward per micro-batch",
    ),
    (
        SYNC,
        [answers.update_joined],
        ["the model ran 1 times for 3 micro-batches"],
        "weights are those of one process",
    ),
    (
        SYNC,
        [answers.update_that_uses_up],
        ["on rank 0 the images or labels of a micro-batch have changed; leave them alone"],
        "",
    ),
    (
        SYNC,
        [answers.update_zeroes_late],
        ["zero them before the first backward"],
        "exactly one synchronisation",
    ),
    (
        SYNC,
        [answers.update_all_forwards_first],
        ["call each backward right after its forward", "forwards wait for one backward"],
        "one forward per micro-batch",
    ),
    (SYNC, [answers.update_of_three], ["the ranks have different weights"], "exactly one synchronisation"),
    (SYNC, [answers.update_through_float32], ["the rounding of float32"], "exactly one synchronisation"),
    (AGREE, [answers.agree_by_sum], ["two weights of one rank have changed places"], "last bit"),
    (AGREE, [answers.agree_by_float32_factors], ["differs in its last bit, and your"], "changed places"),
    (AGREE, [answers.agree_in_float32], ["each in its own dtype"], "last bit"),
    (AGREE, [answers.agree_by_what_is_printed], ["a printed number rounds such"], "the model stays"),
    (AGREE, [answers.agree_on_signed_texts], ["on nothing that is another one"], "changed places"),
    (AGREE, [answers.agree_on_parameters], ["Look at `model.buffers()` too"], "last bit"),
    (AGREE, [answers.agree_and_keep_it], ["must tell all others"], "the model stays"),
    (AGREE, [answers.agree_on_rank_0], ["rank 1 returned None"], "the model stays"),
    (AGREE, [answers.agree_with_the_mean], ["no two differences may cancel each other"], "the model stays"),
    (AGREE, [answers.agree_by_sending_all], ["Make something short of"], "last bit"),
    (AGREE, [answers.agree_and_repair], ["Your function only looks", "Make something short of"], "last bit"),
    (AGREE, [answers.agree_without_waiting], [""], "the model stays"),  # what it finds is a matter of luck
]
