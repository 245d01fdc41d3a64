"""Each check of "Collectives and the ring" accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_collectives_and_the_ring as answers
from verdicts import *  # noqa: F403
from verdicts import LITTLE_PATIENCE_S, judged

from course_lib.check import judge
from course_lib.check.collectives_and_the_ring import chain_broadcast, doubling_all_reduce, ring_all_reduce

RIGHT = [
    (ring_all_reduce, answers.ring),
    (ring_all_reduce, answers.ring_padded),
    (ring_all_reduce, answers.ring_of_mini),
    (ring_all_reduce, answers.ring_without_a_ring),
    (ring_all_reduce, answers.ring_that_talks),
    (ring_all_reduce, answers.ring_with_a_thread),
    (chain_broadcast, answers.chain),
    (chain_broadcast, answers.chain_as_circle),
    (chain_broadcast, answers.chain_that_receives_ahead),
    (chain_broadcast, answers.chain_of_small_pieces),
    (chain_broadcast, answers.chain_with_one_in_the_hand),
    (doubling_all_reduce, answers.doubling),
    (doubling_all_reduce, answers.doubling_by_shift),
    (doubling_all_reduce, answers.doubling_in_turns),
]
WRONG = [
    (
        ring_all_reduce,
        answers.ring_by_all_gather_and_sum,
        "you called all_gather ... sends 2.00 times 2(n-1)/n S = 1.50 S. All ranks send this much",
    ),
    (
        ring_all_reduce,
        answers.ring_as_star,
        "rank 0 sends 2.00 times 2(n-1)/n S = 1.50 S. The others send less",
    ),
    (
        ring_all_reduce,
        answers.ring_of_whole_tensors,
        "sends 2.00 times 2(n-1)/n S = 1.50 S. All ranks send this much",
    ),
    (ring_all_reduce, answers.ring_by_gloo, "you called all_reduce. Build the collective yourself"),
    (ring_all_reduce, answers.ring_by_reduce_scatter_of_gloo, "sends 1.50 times 2(n-1)/n S"),
    (ring_all_reduce, answers.ring_half, "is right in 1 of 4 chunks only"),
    (ring_all_reduce, answers.ring_that_loses_the_rest, "a tensor of shape (10, 7) and dtype float32"),
    (ring_all_reduce, answers.ring_of_equal_chunks, "RuntimeError"),
    (ring_all_reduce, answers.ring_mean, "is the mean: do not divide"),
    (ring_all_reduce, answers.ring_returned, "write the result into the tensor itself, and `wait`"),
    (ring_all_reduce, answers.ring_that_blocks, "waits in send to rank"),
    (ring_all_reduce, answers.ring_without_wait, "Do you `wait` for each isend and irecv?"),
    (
        ring_all_reduce,
        answers.ring_in_float16,
        (
            "and dtype float32: on rank 0 it must be the sum over all ranks, and it is inf or nan in places:"
            " send and add in the tensor's own"
        ),
    ),
    (
        ring_all_reduce,
        answers.ring_in_float32,
        (
            "a tensor of shape (3,) and dtype int64: on rank 0 it must be the sum over all ranks, and it is"
            " only near it"
        ),
    ),
    (
        ring_all_reduce,
        answers.ring_that_adds_in_float64,
        (
            "dtype int64: on rank 0 it must be the sum over all ranks, and it is only near it: send and add"
            " in the tensor's"
        ),
    ),
    (
        ring_all_reduce,
        answers.ring_small_by_all_reduce,
        "4 ranks: you called all_reduce for tensors of some sizes. Build the collective yourself",
    ),
    (
        ring_all_reduce,
        answers.ring_without_the_last_wait,
        "only a while after your function has returned: `wait` for what irecv returns",
    ),
    (
        ring_all_reduce,
        answers.ring_that_takes_away_the_instruments,
        "you called all_reduce. Build the collective yourself",
    ),
    (ring_all_reduce, answers.ring_that_never_ends, "rank 0: was running"),
    (ring_all_reduce, answers.ring_below_torch, "no rank called a send"),
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
    (
        doubling_all_reduce,
        answers.doubling_in_float32,
        (
            "2 ranks, a tensor of shape (1,) and dtype int64: on rank 0 it must be the sum over all ranks,"
            " and it is only near it"
        ),
    ),
    (doubling_all_reduce, answers.doubling_small_as_tree, "4 ranks: rank 1 sends 1 message only"),
    (
        doubling_all_reduce,
        answers.doubling_floats_by_all_reduce,
        "you called all_reduce for tensors of some sizes",
    ),
    (
        doubling_all_reduce,
        answers.doubling_without_the_last_wait,
        "and `wait` for what comes before you use it",
    ),
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
    (doubling_all_reduce, answers.ring, "4 ranks: rank 0 sends 6 messages, and log2(4) = 2 is enough"),
    (doubling_all_reduce, answers.ring_as_star, "4 ranks: rank 0 sends 3 messages"),
    (doubling_all_reduce, answers.doubling_with_everyone, "8 ranks: rank 0 sends 7 messages"),
    (
        doubling_all_reduce,
        answers.doubling_as_tree,
        "4 ranks: rank 1 sends 1 message only. To be ready after log2(4) = 2 steps",
    ),
    (doubling_all_reduce, answers.doubling_that_widens, "2 ranks: your largest message is 2.0 S"),
    (doubling_all_reduce, answers.doubling_that_collects, "8 ranks: your largest message is 4.0 S"),
    (doubling_all_reduce, answers.ring_by_gloo, "you called all_reduce"),
    (doubling_all_reduce, answers.doubling_at_distance_1, "4 ranks, a tensor of shape (10, 7)"),
]
# Right values, wasteful way: the values must have been accepted, and the waste refused.
WASTEFUL = {
    answers.ring_by_all_gather_and_sum,
    answers.ring_as_star,
    answers.ring_of_whole_tensors,
    answers.ring_by_gloo,
    answers.ring_by_reduce_scatter_of_gloo,
    answers.chain_in_one_piece,
    answers.chain_by_gloo,
    answers.chain_as_star,
    answers.chain_all_then_all,
    answers.chain_that_waits_for_all_but_one,
    answers.chain_that_waits_for_a_half,
    answers.chain_in_double,
    answers.chain_small_by_broadcast,
    answers.ring_small_by_all_reduce,
    answers.ring_below_torch,
    answers.doubling_small_as_tree,
    answers.doubling_as_tree,
    answers.doubling_that_collects,
    answers.doubling_with_everyone,
}
HANGING = (answers.ring_that_blocks, answers.ring_without_wait, answers.ring_that_never_ends)
UNTOUCHED = [(check, answers.stub) for check in (ring_all_reduce, chain_broadcast, doubling_all_reduce)]
WRONG = [
    (check, answer, reason.split(" ... "), "every rank has" if answer in WASTEFUL else "")
    for check, answer, reason in WRONG
]


def test_an_answer_that_waits_for_nobody_is_not_asked_whether_it_waits(monkeypatch):
    monkeypatch.setattr(judge, "TIMEOUT_S", LITTLE_PATIENCE_S)
    verdict = judged(ring_all_reduce, (answers.ring_that_never_ends,))
    assert f"had not finished after timeout={LITTLE_PATIENCE_S:g} s" in repr(
        verdict
    ) and "Do you `wait`" not in repr(verdict)
