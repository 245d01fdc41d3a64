"""mini.parameter_server and mini.local_sgd on real ranks: values against one process, staleness and bytes
against the formulas.
"""

import math
import sys

import asynchronous_workers as workers
import pytest
import torch

from course_lib import run, sent, theory

UPDATES = 24


def play(history, given, momentum):
    """One process: the same gradients in the order in which they came."""
    params = workers.weights().requires_grad_()
    optimizer = torch.optim.SGD([params], workers.RATE, momentum=momentum)
    for worker, _ in history:
        params.grad = given[worker].pop(0)
        optimizer.step()
    return params.detach()


@pytest.mark.parametrize("bound, momentum", [(0, 0.0), (1, 0.9), (math.inf, 0.9)])
def test_a_server_and_its_workers(bound, momentum):
    job = run([workers.serve, *[workers.work] * 3], UPDATES, bound, momentum)
    server, *others = job.results
    history = server["history"]
    given = {rank: list(found["given"]) for rank, found in enumerate(others, start=1)}
    assert {rank: len(its) for rank, its in given.items()} == {
        rank: sum(worker == rank for worker, _ in history) for rank in given
    }
    assert torch.equal(play(history, given, momentum), server["params"])
    assert all(torch.equal(found["params"], server["params"]) for found in others)
    staleness = [late for _, late in history]
    assert len(history) == UPDATES and max(staleness) <= theory.most_staleness(3, bound)
    if bound in (0, math.inf):
        assert sum(staleness) / UPDATES == pytest.approx(theory.mean_staleness(3, UPDATES, bound))


def test_with_a_bound_of_0_a_round_is_a_synchronous_step():
    server, *others = run([workers.serve, *[workers.work] * 2], 8, 0).results
    params = workers.weights()
    for number in range(4):
        params -= workers.RATE * sum(workers.pull(worker, number, params) for worker in (1, 2))
    assert torch.allclose(server["params"], params, atol=1e-12)


def test_bytes_of_a_server():
    job = run([workers.serve, *[workers.work] * 3], UPDATES, 0, 0.0, 2, backend="gloo")
    formula = theory.parameter_server_bytes(8 * (workers.NUMEL + 1), 3, UPDATES)
    wanted = [formula["server"], *[formula["worker"]] * 3]
    assert sent(job, layer="algorithm").tolist() == pytest.approx(wanted)
    if sys.platform.startswith("linux"):
        assert sent(job).tolist() == pytest.approx(wanted, rel=0.03)


def test_a_server_without_workers_or_work_ends():
    assert run(workers.serve, 3, 0, ranks=1).results[0]["history"] == []
    assert run([workers.serve, workers.work], 0, 0).results[1]["brought"] == 0


@pytest.mark.parametrize("ranks, every, outer", [(3, 1, False), (2, 3, True)])
def test_local_steps_equal_models_that_are_kept_by_hand(ranks, every, outer):
    job = run(workers.local_steps, every, outer, 6, ranks=ranks, backend="gloo")
    for found in job.results:
        assert found["error"] < 1e-12
        assert found["averaged"] == [(step + 1) % every == 0 for step in range(6)]
    if sys.platform.startswith("linux"):
        formula = theory.local_sgd_bytes(job.results[0]["bytes"], ranks, every)
        steps = range(3, 6) if every == 3 else range(1, 6)
        per_step = sum(sent(job, steps=[step]) for step in steps) / len(steps)
        assert per_step.tolist() == pytest.approx([formula] * ranks, rel=0.1)


@pytest.mark.parametrize("samples, mean", [([1, 0, 3], 2.5), ([0, 5, 0], 2.0), ([2, 2, 2], 2.0)])
def test_ranks_count_by_their_samples_and_absent_ones_not_at_all(samples, mean):
    for found in run(workers.weighted, samples, ranks=3).results:
        assert found["total"] == sum(samples) and found["values"] == pytest.approx([mean, -mean])


def test_where_nobody_took_part_all_keep_what_they_have():
    found = run(workers.weighted, [0, 0], ranks=2).results
    assert [its["values"][0] for its in found] == [1.0, 2.0]


def test_what_cannot_be_is_refused():
    told = run(workers.refusals, ranks=1).results[0]
    assert told[0] == "TypeError: params: it must be float32 or float64 [numel], not torch.float32 [2, 2]."
    assert told[1].startswith("TypeError: params: it must be float32 or float64 [numel], not torch.int64")
    assert told[2] == "ValueError: bound=-1: it must be a number of at least 0."
    assert told[3] == "TypeError: gradient=None: it must be a function."
    assert told[4] == "TypeError: params: it must be a list of one or more parameters, of floating point."
    assert told[5].startswith("TypeError: params: it must be a list of parameters, such as")
    assert told[6] == "ValueError: local_steps=0: it must be a whole number of at least 1."
    assert told[7].startswith("ValueError: num_samples=-1: it must be a whole number from 0 to")
