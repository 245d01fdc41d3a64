"""mini.context on real ranks: values and gradients of one process, bytes, what is held, who works how much; a
model that is trained.
"""

import sys

import context_workers as workers
import pytest

from course_lib import run, sent, theory
from course_lib.mini.context import order

on_all_ranks = pytest.mark.parametrize("ranks", [2, 3, 4])
needs_counters = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts what one process sends"
)


@on_all_ranks
def test_outputs_and_gradients_equal_one_process(ranks):
    """Ring and Ulysses, causal and full, both orders; lengths that the ranks do not divide, one token each,
    groups of queries that share keys, and scores that overflow if they are not corrected.
    """
    for told in run(workers.against_one_process, ranks=ranks).results:
        assert len(told) == 32 and {name: error for name, error in told.items() if not error < 1e-9} == {}


def test_groups_have_sequences_of_their_own_and_half_precision_is_summed_in_single():
    assert max(run(workers.in_groups, ranks=4).results) < 1e-6


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_model_trains_as_on_one_process(ranks):
    for told in run(workers.a_model, ranks=ranks).results:
        assert max(told.values()) < 1e-9, told


@needs_counters
@pytest.mark.parametrize(
    "name, ranks, time, kv_heads", [("ring", 4, 512, 2), ("ring", 3, 200, 12), ("Ulysses", 4, 512, 4)]
)
def test_bytes(name, ranks, time, kv_heads):
    sizes = 1, time, workers.HEADS, kv_heads, 64, ranks
    for backward in (False, True):
        job = run(workers.measured, name, time, kv_heads, backward, ranks=ranks, backend="gloo")
        formula = theory.context_bytes(name.lower(), *sizes, backward=backward)
        assert sent(job, [1]).mean() == pytest.approx(formula, rel=0.03)
        assert sent(job, layer="algorithm").mean() == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize("name, most", [("ring", 6.1), ("Ulysses", 12.1)])
def test_what_a_rank_holds_does_not_grow_with_the_sequence(name, most):
    """Sixteen tokens on each rank: with six ranks, all keys and values are 12 times the keys of one."""
    four, six = (run(workers.most_held, name, 16, ranks=ranks).results for ranks in (4, 6))
    for when, held in four[0].items():
        assert [told[when] for told in (*four, *six)] == pytest.approx([held] * 10, rel=0.01)
    assert four[0]["forward"] < most


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("time", [56, 59])
def test_zigzag_gives_all_ranks_the_same_work_in_every_step(size, time):
    products = {}
    for name in ("zigzag", "contiguous"):
        pieces = order._pieces(time, name, size)
        plans = [order.Plan(True, pieces, None, rank, size) for rank in range(size)]
        products[name] = [
            [
                sum(
                    (a.stop - a.start) * (b.stop - b.start) / (2 if diagonal else 1)
                    for a, b, diagonal in plan.pairs(source)
                )
                for source in plan.sources()
            ]
            for plan in plans
        ]
        halves = [len(piece) for theirs in pieces for piece in theirs]
        pairs = theory.causal_pairs(name, time, size)  # a diagonal has half a pair more for each token
        assert [
            sum(steps) + plan.tokens(plan.rank) / 2 for steps, plan in zip(products[name], plans)
        ] == pairs
        assert max(halves) - min(halves) <= 1
        assert sorted(place for theirs in pieces for piece in theirs for place in piece) == [*range(time)]
    longest = {name: sum(map(max, zip(*steps))) for name, steps in products.items()}
    if time % (2 * size) == 0:
        assert all(steps == products["zigzag"][0] for steps in products["zigzag"])
        assert longest["zigzag"] / longest["contiguous"] == theory.ring_efficiency("contiguous", size)
    assert longest["zigzag"] < longest["contiguous"] / 1.3


def test_what_cannot_be_is_refused_in_one_sentence():
    heads, key_heads, tokens, shapes, dtypes, three, striped, short, model = run(
        workers.refusals, ranks=4
    ).results[0]
    assert heads.startswith("q has 6 heads, which cannot be dealt out evenly to 4 ranks")
    assert key_heads.startswith("k has 2 heads, which cannot be dealt out evenly")
    assert tokens.endswith("of a sequence of 28 tokens in zigzag order it must have 7.")
    assert "k and v must have one shape" in shapes and "all must have one, on one device" in dtypes
    assert "it must be [batch, heads, time, head_dim]" in three and "one of 'zigzag', 'contiguous'" in striped
    assert short == "time=3: each of 4 ranks needs a token."
    assert model.startswith("no layer of this Linear has an `attend`")
