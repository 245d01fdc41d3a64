"""Each check of "Tensor parallelism" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

import answers_tensor_parallel as answers
from verdicts import *  # noqa: F403

from course_lib.check import tensor_parallel as chapter
from course_lib.mini import tensor_parallel

OPERATORS, MLP, LOSS, PIECES = (
    chapter.f_and_g,
    chapter.parallel_mlp,
    chapter.vocabulary_loss,
    chapter.product_in_pieces,
)
RIGHT = [
    (OPERATORS, [answers.f, answers.g]),
    (OPERATORS, [answers.f_in_place, answers.g]),
    (OPERATORS, [tensor_parallel.copy_to_group, tensor_parallel.reduce_from_group]),
    (OPERATORS, [answers.f_by_hook, answers.g_straight_through]),
    (OPERATORS, [answers.f, answers.g_waits]),
    (MLP, [answers.ParallelMLP]),
    (MLP, [answers.OfNewLayers]),
    (MLP, [answers.BiasOnRank0]),
    (MLP, [answers.of_mini]),
    (MLP, [answers.CutInPlace]),
    (LOSS, [answers.loss]),
    (LOSS, [answers.loss_of_mini]),
    (LOSS, [answers.loss_by_logsumexp]),
    (LOSS, [answers.loss_in_a_row]),
    (PIECES, [answers.sums_that_travel]),
    (PIECES, [answers.sums_in_place]),
    (PIECES, [answers.sums_in_halves]),
    (PIECES, [answers.sums_of_mini]),
]
UNTOUCHED = [
    (OPERATORS, [answers.stub, answers.stub]),
    (OPERATORS, [answers.f, answers.stub]),
    (MLP, [answers.stub]),
    (LOSS, [answers.stub]),
    (PIECES, [answers.stub]),
]
VALUES = "the output is that of one process"
VALUES_OF_PIECES = "each rank has the sum for its own tokens"
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (
        OPERATORS,
        [answers.f_identity, answers.g],
        [
            "f must add up the gradients of all ranks in backward. The weights of this MLP do not notice",
            "you used 1 all_reduce",
        ],
        "the gradient of A's part is that of one process",
    ),
    (
        OPERATORS,
        [answers.f_averages, answers.g],
        ["3 ranks: the gradient of the input is not that of one process: it is the mean: do not divide"],
        "exactly two all_reduces",
    ),
    (
        OPERATORS,
        [answers.g, answers.f],
        ["it is what comes out if x is added up where it enters"],
        "exactly two all_reduces",
    ),
    (
        OPERATORS,
        [answers.nothing, answers.g],
        ["your f must return a tensor of shape [8, 64, 32], and it returned None"],
        "",
    ),
    (
        OPERATORS,
        [answers.f, answers.nothing],
        ["your g must return a tensor of shape [8, 64, 32], and it returned None"],
        "",
    ),
    (OPERATORS, [answers.f_sums_forward, answers.g], ["the output is not that", "you used 3 all_reduce"], ""),
    (
        OPERATORS,
        [answers.f, answers.g_sums_both_ways],
        ["3 times too large. Every rank has the same loss", "you used 3 all_reduce"],
        VALUES,
    ),
    (
        OPERATORS,
        [answers.f_identity, answers.g_sums_both_ways],
        ["this rank's own part, and 3 times too large: f must add up in backward, and g must not"],
        "exactly two all_reduces",
    ),
    (OPERATORS, [answers.f, answers.g_identity], ["this rank's own part: g must add up"], ""),
    (OPERATORS, [answers.f, answers.g_mean], ["it is the mean: do not divide"], "exactly two all_reduces"),
    (OPERATORS, [answers.f, answers.g_detached], ["there is none: backward does not reach it"], VALUES),
    (
        OPERATORS,
        [answers.f_by_all_gather, answers.g_by_all_gather],
        ["you used 2 all_gather. An all_gather brings the whole tensor", "a rank sent 1.5 times the"],
        "the gradient of the input is that of one process",
    ),
    (
        OPERATORS,
        [answers.f, answers.g_by_reduce_and_broadcast],
        ["exactly two all_reduces"],
        "the gradient of the input is that of one process",
    ),
    (
        OPERATORS,
        [answers.f, answers.g_without_waiting],
        ["a message was still on its way. Wait for it before you return"],
        "",
    ),
    (
        OPERATORS,
        [answers.f, answers.g_that_sleeps],
        ["a message was still on its way. Wait for it before you return"],
        "",
    ),
    (
        OPERATORS,
        [answers.f_without_waiting, answers.g],
        ["the gradient of the input is not that of one process"],
        VALUES,
    ),
    (OPERATORS, [answers.f, answers.g_in_float32], ["the rounding of float32"], "exactly two all_reduces"),
    (
        OPERATORS,
        [answers.f, answers.g_nothing_on_rank_0],
        ["on rank 0 your g must return a tensor of shape [8, 64, 32], and it returned None"],
        "",
    ),
    (
        MLP,
        [answers.KeepsNumpy],
        ["it keeps a whole weight, or a copy of one, in another place"],
        "to the byte",
    ),
    (
        MLP,
        [answers.SleepsInForward],
        [
            "2 ranks: the output is not that of one process",
            "It is right while all ranks are in step, and wrong when one comes late: wait for what",
        ],
        "exactly two all_reduces",
    ),
    (
        MLP,
        [answers.SleepsInBackward],
        [
            "2 ranks: the gradient of the input is not that of one process",
            "It is right while all ranks are in step, and wrong when one comes late: wait for what",
        ],
        VALUES,
    ),
    (MLP, [answers.InFloat32], ["the rounding of float32"], "exactly two all_reduces"),
    (MLP, [answers.NoModuleOnRank1], ["on rank 1 ParallelMLP(mlp) must be a module, and it is None"], ""),
    (
        MLP,
        [answers.GathersHidden],
        [
            "puts the hidden layer (or a weight) together on every rank",
            "it may stay in parts",
            "Something larger than",
        ],
        VALUES,
    ),
    (MLP, [answers.GathersHiddenByAllReduce], ["a rank sent 3.0 times the"], VALUES),
    (MLP, [answers.WeightsOnEveryRank], ["All weights are on every rank"], "exactly two all_reduces"),
    (MLP, [answers.NotParallel], ["All weights are on every rank", "you used no collective"], VALUES),
    (
        MLP,
        [answers.Views],
        ["a slice is a view, and keeps the whole weight in memory. Take a `.clone()` of it"],
        "exactly two all_reduces",
    ),
    (
        MLP,
        [answers.KeepsTheWhole],
        ["it keeps a whole weight, or a copy of one, in another place"],
        "to the byte",
    ),
    (
        MLP,
        [answers.KeepsACopy],
        ["it keeps a whole weight, or a copy of one, in another place"],
        "to the byte",
    ),
    (
        MLP,
        [answers.KeepsACopyInHalf],
        ["it keeps a whole weight, or a copy of one, in another place"],
        "to the byte",
    ),
    (
        MLP,
        [answers.GathersWeights],
        ["you used 3 all_gather. An all_gather puts the hidden layer (or a weight) together"],
        "to the byte",
    ),
    (
        MLP,
        [answers.ReturnsNothing],
        ["the forward of your module must return a tensor of shape [8, 64, 32], and it returned None"],
        "",
    ),
    (MLP, [answers.nothing], ["ParallelMLP(mlp) must be a module, and it is None"], ""),
    (
        MLP,
        [answers.NoF],
        ["the gradient of the input is not that of one process", "you used 1 all_reduce"],
        VALUES,
    ),
    (MLP, [answers.BiasOnEveryRank], ["add the second bias once, after g"], "exactly two all_reduces"),
    (MLP, [answers.SharedBias], ["So a weight or a bias has got a wrong gradient"], VALUES),
    (MLP, [answers.WrongCut], ["the output is not that of one process"], "exactly two all_reduces"),
    (MLP, [answers.NoParameters], ["your module has no parameters"], ""),
    (
        LOSS,
        [answers.loss_that_changes_logits],
        ["your function changes the logits or the targets that it was given"],
        "",
    ),
    (
        LOSS,
        [answers.loss_that_changes_targets],
        ["your function changes the logits or the targets that it was given"],
        "",
    ),
    (
        LOSS,
        [answers.loss_with_one_maximum],
        [
            "other largest logits from token to token: the loss is not that",
            "Subtract the token's largest logit",
        ],
        "2 ranks: the loss is that",
    ),
    (
        LOSS,
        [answers.loss_masked_with_infinity],
        ["is something masked with -inf"],
        "at most three collectives",
    ),
    (
        LOSS,
        [answers.loss_that_sleeps],
        ["It is right while all ranks are in step, and wrong when one comes late: wait for what"],
        "2 ranks: the gradient of each rank's logits",
    ),
    (
        LOSS,
        [answers.loss_that_sleeps_at_the_end],
        ["It is right while all ranks are in step, and wrong when one comes late: wait for what"],
        "2 ranks: the gradient of each rank's logits",
    ),
    (
        LOSS,
        [answers.loss_masked_by_a_logarithm],
        ["2 ranks: the loss is not that of one process on every rank: it is not finite, with small logits"],
        "at most three collectives",
    ),
    (LOSS, [answers.loss_in_float32], ["the rounding of float32"], "at most three collectives"),
    (
        LOSS,
        [answers.loss_nothing_on_rank_1],
        ["on rank 1 your function must return the mean loss", "and it returned None"],
        "",
    ),
    (
        LOSS,
        [answers.loss_gathered],
        [
            "your collectives send 300.0 numbers per token, and all_reduces of three numbers send 3.0. The"
            " logits must stay"
        ],
        "the gradient of each rank's logits",
    ),
    (
        LOSS,
        [answers.loss_below_torch_distributed],
        ["numbers per token, and all_reduces of three numbers send 3.0. The logits must stay"],
        "the gradient of each rank's logits",
    ),
    (
        LOSS,
        [answers.loss_exact_but_padded],
        ["your collectives send 602.0 numbers per token"],
        "the gradient of each rank's logits",
    ),
    (
        LOSS,
        [answers.loss_without_maximum],
        ["logits up to 4000: the loss is not that", "the largest of **all** ranks"],
        "2 ranks: the loss is that of one process",
    ),
    (
        LOSS,
        [answers.loss_own_maximum],
        ["2 ranks: the loss is not that of one process"],
        "together they send no more",
    ),
    (
        LOSS,
        [answers.loss_summed_both_ways],
        ["it is 2 times as large. Is something added up again in backward?"],
        "2 ranks: the loss is that of one process",
    ),
    (LOSS, [answers.loss_of_own_part], ["the loss is not that of one process"], "at most three collectives"),
    (
        LOSS,
        [answers.loss_by_gathered_numbers],
        ["3 ranks: your collectives send 6.0 numbers per token, and all_reduces of three numbers send 4.0"],
        "2 ranks: together they send no more",
    ),
    (
        LOSS,
        [answers.loss_without_first_token],
        [
            "2 ranks, targets at the borders of the parts: the loss is not that",
            "Rank 1 has the tokens 300 to 599, both",
        ],
        "2 ranks: the loss is that of one process",
    ),
    (
        LOSS,
        [answers.loss_with_next_token],
        [
            "2 ranks, targets at the borders of the parts: the loss is not that",
            "Rank 1 has the tokens 300 to 599, both",
        ],
        "2 ranks: the loss is that of one process",
    ),
    (
        LOSS,
        [answers.loss_per_token],
        [
            "your function must return the mean loss, a tensor with one number and a grad_fn, and it returned"
            " one of shape [24]"
        ],
        "",
    ),
    (
        LOSS,
        [answers.loss_as_number],
        ["the mean loss, a tensor with one number and a grad_fn, and it returned "],
        "",
    ),
    (LOSS, [answers.loss_detached], ["and it returned one without a grad_fn"], ""),
    (LOSS, [answers.nothing], ["and it returned None"], ""),
    (
        LOSS,
        [answers.loss_sum],
        ["it is the sum over the tokens; divide by their number"],
        "at most three collectives",
    ),
    (
        OPERATORS,
        [answers.f_and_zero, answers.g],
        ["your f changes the `x` that it was given; leave it alone"],
        "",
    ),
    (
        PIECES,
        [answers.products_first],
        [
            "4 ranks: with c = 1 and w = 0.5 it takes 5.5, and 4 is enough",
            "all products stand before the first message",
        ],
        "each rank has the sum for its own tokens",
    ),
    (PIECES, [answers.product_in_one], ["all products stand before the first message"], "multiplied once"),
    (
        PIECES,
        [answers.waits_at_once],
        ["no product is made while a sum travels. Call pass_right, then multiply, and only then wait"],
        "n-1 sums of one piece travel",
    ),
    (
        PIECES,
        [answers.sums_one_ahead],
        ["4 ranks: with c = 1 and w = 0.5 it takes 4.5, and 4 is enough: let each message travel"],
        "n-1 sums of one piece travel",
    ),
    (PIECES, [answers.multiplies_twice], ["multiplies 5 pieces, and there are 4"], "n-1 sums of one piece"),
    (
        PIECES,
        [answers.begins_with_its_own],
        ["rank 0 returns something else", "which piece does a rank begin with"],
        "each piece is multiplied once",
    ),
    (
        PIECES,
        [answers.sums_of_the_neighbour],
        ["rank 0 returns the sum for the tokens of rank 1"],
        "each piece is multiplied once",
    ),
    (
        PIECES,
        [answers.own_addend],
        [
            "rank 0 returns its own addend: nothing was added to it",
            "rank 0 multiplies 1 pieces, and there are 4",
            "rank 0 passes on 0 pieces, and n-1 = 3 sums of one piece must travel",
        ],
        "",
    ),
    (PIECES, [answers.changes_what_travels], ["changes a tensor that is still on its way"], VALUES_OF_PIECES),
    (PIECES, [answers.changes_pieces], ["changes the pieces that it was given"], VALUES_OF_PIECES),
    (
        PIECES,
        [answers.sums_by_all_reduce],
        ["rank 0 also calls all_reduce: all that travels must take pass_right"],
        VALUES_OF_PIECES,
    ),
    (PIECES, [answers.sums_by_files], ["rank 0 passes on 0 pieces"], VALUES_OF_PIECES),
    (PIECES, [answers.sums_in_float32], ["the rounding of float32"], "each piece is multiplied once"),
    (
        PIECES,
        [answers.passes_on_everything],
        ["rank 0 passes on 12 pieces, and n-1 = 3 sums"],
        VALUES_OF_PIECES,
    ),
    (PIECES, [answers.nothing], ["must return a tensor of shape [6, 5], and returned None"], ""),
]
