"""mini.experts on real ranks: equal to one process that routes alike; bytes, memory; balance and capacity."""

import sys

import experts_workers as workers
import pytest

from course_lib import calls, held, run, sent, theory

TOKENS, DIM, TOP_K = 480, 64, 2


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_outputs_and_gradients_equal_one_process_however_tokens_are_routed(ranks):
    for told in run(workers.against_one_process, ranks=ranks).results:
        assert set(told) == {f"{name}, k={k}" for name in workers.ROUTINGS for k in (1, 3)}
        for case, found in told.items():
            assert found.pop("dropped") == 0, case
            assert all(error < 1e-12 for error in found.values()), (case, found)


def test_an_expert_on_several_ranks_gets_the_gradient_of_one_process():
    for found in run(workers.experts_x_data, ranks=4).results:
        assert max(found.values()) < 1e-12, found


@pytest.mark.parametrize("ranks, even", [(4, True), (4, False), (2, True)])
def test_bytes_and_memory(ranks, even):
    job = run(workers.steps, TOKENS, DIM, TOP_K, even, ranks=ranks, backend="gloo")
    rows = [found["there"] + found["back"] for found in job.results]
    by_rank = [2 * 4 * DIM * count for count in rows]  # forward and backward
    formula = theory.expert_parallel_bytes(TOKENS, DIM, TOP_K, ranks)
    if even:
        assert by_rank == [formula] * ranks
    sizes = 8 * workers.EXPERTS * (ranks - 1) / ranks  # numbers of rows, ahead
    assert sent(job, layer="algorithm").tolist() == pytest.approx([count + sizes for count in by_rank])
    assert calls(job).to_dict("records") == [{"all_to_all": 5}] * ranks
    if sys.platform.startswith("linux"):
        assert sent(job).tolist() == pytest.approx(by_rank, rel=0.03)
        assert sent(job).mean() == pytest.approx(formula, rel=0.03 if even else 0.1)
    params = held(job)["params"].tolist()
    router, one = 4 * DIM * workers.EXPERTS, 4 * (4 * DIM * DIM + 3 * DIM)
    assert params == [router + workers.EXPERTS // ranks * one] * ranks


@pytest.mark.parametrize("factor", [None, 0.5, 1.5])
def test_nothing_is_dropped_unless_a_capacity_is_asked_for(factor):
    for found in run(workers.with_capacity, factor, ranks=2).results:
        assert found["dropped"] == found["by hand"] and (found["dropped"] > 0) == (factor is not None)
        assert found["error"] < 1e-12


def test_the_loss_and_the_bias_that_balance_see_the_tokens_of_all_ranks():
    for found in run(workers.balanced, ranks=3).results:
        assert max(found.values()) < 1e-12, found


def test_what_makes_no_layer_is_refused():
    told = run(workers.refusals, ranks=2).results[0]
    assert told[0] == "ValueError: 5 experts cannot be dealt out evenly to 2 ranks."
    assert told[1] == "ValueError: the router chooses among 4 experts, and there are 6."
    assert told[2].startswith("ValueError: experts: two experts share a parameter")
    assert told[3] == "ValueError: capacity_factor=0: it must be a number above 0."
    assert told[4] == "ValueError: top_k=5: there are 4 experts to choose from."
    assert told[5].startswith("TypeError: chosen: it must be int64 [T, k], not torch.float32 [3, 2]")
    assert told[6].startswith("ValueError: experts=")
