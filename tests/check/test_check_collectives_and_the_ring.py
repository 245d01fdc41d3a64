"""Each check of "Collectives and the ring" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_collectives_and_the_ring as answers
from verdicts import *  # noqa: F403
from verdicts import LITTLE_PATIENCE_S, judged

from course_lib.check import judge
from course_lib.check.collectives_and_the_ring import (
    chain_broadcast,
    halving_doubling_all_reduce,
    ring_reduce_scatter,
)

RIGHT = [
    (ring_reduce_scatter, answers.scatter),
    (ring_reduce_scatter, answers.scatter_in_a_batch),
    (ring_reduce_scatter, answers.scatter_of_mini),
    (ring_reduce_scatter, answers.scatter_to_the_left),
    (ring_reduce_scatter, answers.scatter_without_a_ring),
    (ring_reduce_scatter, answers.scatter_that_talks),
    (ring_reduce_scatter, answers.scatter_with_a_thread),
    (chain_broadcast, answers.chain),
    (chain_broadcast, answers.chain_as_circle),
    (chain_broadcast, answers.chain_that_receives_ahead),
    (chain_broadcast, answers.chain_of_small_pieces),
    (chain_broadcast, answers.chain_with_one_in_the_hand),
    (halving_doubling_all_reduce, answers.halving),
    (halving_doubling_all_reduce, answers.halving_of_mini),
    (halving_doubling_all_reduce, answers.halving_from_the_neighbour),
]
WRONG = [
    (
        ring_reduce_scatter,
        answers.scatter_as_star,
        "sends 1.33 times (n-1)/n S = 0.75 S. The others send less",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_of_whole_tensors,
        "sends 4.00 times (n-1)/n S = 0.75 S. All ranks send this much",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_and_gather,
        "sends 2.00 times (n-1)/n S = 0.75 S. All ranks send this much",
    ),
    (ring_reduce_scatter, answers.scatter_by_gloo, "you called all_reduce. Build the collective yourself"),
    (
        ring_reduce_scatter,
        answers.scatter_by_all_to_all,
        "you called all_to_all. Build the collective yourself",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_shifted,
        "chunk 1 is complete there. Let each chunk set out from another rank",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_one_step_short,
        "4 ranks, a tensor of shape (10, 7) and dtype float32",
    ),
    (ring_reduce_scatter, answers.scatter_of_equal_chunks, "RuntimeError"),
    (ring_reduce_scatter, answers.scatter_mean, "is the mean: do not divide"),
    (
        ring_reduce_scatter,
        answers.scatter_into_other_memory,
        "write the result into the tensor itself, and `wait`",
    ),
    (ring_reduce_scatter, answers.scatter_that_blocks, "waits in send to rank"),
    (ring_reduce_scatter, answers.scatter_without_wait, "Do you `wait` for each isend and irecv?"),
    (
        ring_reduce_scatter,
        answers.scatter_in_float16,
        "and dtype float32: on rank 0 it must be its own chunk of the sum, and it is inf or nan in places",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_in_float32,
        (
            "a tensor of shape (3,) and dtype int64: on rank 0 it must be its own chunk of the sum, and it is"
            " only near it"
        ),
    ),
    (
        ring_reduce_scatter,
        answers.scatter_that_adds_in_float64,
        "dtype int64: on rank 0 it must be its own chunk of the sum, and it is only near it",
    ),
    (
        ring_reduce_scatter,
        answers.scatter_small_by_all_reduce,
        "4 ranks: you called all_reduce for tensors of some sizes. Build the collective yourself",
    ),
    (ring_reduce_scatter, answers.scatter_without_the_last_wait, "it must be its own chunk of the sum"),
    (
        ring_reduce_scatter,
        answers.scatter_that_takes_away_the_instruments,
        "you called all_reduce. Build the collective yourself",
    ),
    (ring_reduce_scatter, answers.scatter_that_never_ends, "rank 0: was running"),
    (ring_reduce_scatter, answers.scatter_below_torch, "no rank called a send"),
    (
        chain_broadcast,
        answers.chain_that_waits_for_all_but_one,
        "rank 1 keeps what it has received, and waits for more before it passes on the first pieces",
    ),
    (
        chain_broadcast,
        answers.chain_that_waits_for_a_half,
        "rank 1 keeps what it has received, and waits for more before it passes on the first pieces",
    ),
    (
        chain_broadcast,
        answers.chain_in_float16,
        (
            "and dtype float32: on rank 0 it must be the tensor of rank 0, the root, and it is inf or nan in"
            " places: send and add in"
        ),
    ),
    (
        chain_broadcast,
        answers.chain_in_double,
        (
            "rank 0 sends 2.00 times S. A rank of a chain sends each piece once, to its right neighbour, in"
            " the tensor's own dtype"
        ),
    ),
    (chain_broadcast, answers.chain_small_by_broadcast, "you called broadcast for tensors of some sizes"),
    (chain_broadcast, answers.chain_that_does_not_wait, "`wait` for what"),
    (chain_broadcast, answers.chain_all_then_all, "rank 1 keeps what it has received, and waits for more"),
    (chain_broadcast, answers.chain_in_one_piece, "your largest message is 1.00 S"),
    (
        chain_broadcast,
        answers.chain_by_gloo,
        "you called broadcast ... sends 2.00 times S. A rank of a chain sends each piece once",
    ),
    (chain_broadcast, answers.chain_as_star, "rank 0 sends 3.00 times S"),
    (chain_broadcast, answers.chain_from_rank_0, "it must be the tensor of rank 1, the root"),
    (chain_broadcast, answers.chain_that_stops, "is unchanged"),
    (
        halving_doubling_all_reduce,
        answers.doubling,
        "4 ranks: rank 0 sends 1.33 times 2(n-1)/n S = 1.50 S. After an exchange two partners need only half",
    ),
    (
        halving_doubling_all_reduce,
        answers.ring,
        "4 ranks: rank 0 sends 6 messages, and 2 log2(4) = 4 are enough",
    ),
    (
        halving_doubling_all_reduce,
        answers.straight_to_the_owners,
        "4 ranks: rank 0 sends 6 messages, and 2 log2(4) = 4 are enough",
    ),
    (
        halving_doubling_all_reduce,
        answers.tree,
        "4 ranks: rank 0 sends 1.33 times 2(n-1)/n S = 1.50 S. The others send less",
    ),
    (halving_doubling_all_reduce, answers.by_gloo, "you called all_reduce. Build the collective yourself"),
    (halving_doubling_all_reduce, answers.at_distance_1, "4 ranks, a tensor of shape (10, 7)"),
    (
        halving_doubling_all_reduce,
        answers.halving_in_float32,
        (
            "2 ranks, a tensor of shape (8,) and dtype int64: on rank 0 it must be the sum over all ranks,"
            " and it is only near it"
        ),
    ),
    (
        halving_doubling_all_reduce,
        answers.halving_only,
        (
            "2 ranks, a tensor of shape (10, 7) and dtype float32: on rank 0 it must be the sum over all"
            " ranks, and it is right in 1 of 2 chunks only"
        ),
    ),
    (
        halving_doubling_all_reduce,
        answers.halving_of_floats_alone,
        "you called all_reduce for tensors of some sizes",
    ),
    (halving_doubling_all_reduce, answers.halving_without_the_last_wait, "it must be the sum over all ranks"),
]
# Right values, wasteful way: the values must have been accepted, and the waste refused.
WASTEFUL = {
    answers.scatter_as_star,
    answers.scatter_of_whole_tensors,
    answers.scatter_and_gather,
    answers.scatter_by_gloo,
    answers.scatter_by_all_to_all,
    answers.scatter_small_by_all_reduce,
    answers.scatter_below_torch,
    answers.chain_in_one_piece,
    answers.chain_by_gloo,
    answers.chain_as_star,
    answers.chain_all_then_all,
    answers.chain_that_waits_for_all_but_one,
    answers.chain_that_waits_for_a_half,
    answers.chain_in_double,
    answers.chain_small_by_broadcast,
    answers.doubling,
    answers.ring,
    answers.straight_to_the_owners,
    answers.tree,
    answers.by_gloo,
    answers.halving_of_floats_alone,
}
HANGING = (answers.scatter_that_blocks, answers.scatter_without_wait, answers.scatter_that_never_ends)
UNTOUCHED = [
    (check, answers.stub) for check in (ring_reduce_scatter, chain_broadcast, halving_doubling_all_reduce)
]
WRONG = [
    (check, answer, reason.split(" ... "), "every rank has" if answer in WASTEFUL else "")
    for check, answer, reason in WRONG
]


def test_an_answer_that_waits_for_nobody_is_not_asked_whether_it_waits(monkeypatch):
    monkeypatch.setattr(judge, "TIMEOUT_S", LITTLE_PATIENCE_S)
    verdict = judged(ring_reduce_scatter, (answers.scatter_that_never_ends,))
    assert f"had not finished after timeout={LITTLE_PATIENCE_S:g} s" in repr(
        verdict
    ) and "Do you `wait`" not in repr(verdict)
