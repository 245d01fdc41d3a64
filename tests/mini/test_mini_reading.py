"""mini.reading on real ranks: each sample once, equal to one process wherever a job goes on; orders."""

import pytest
import reading_workers as workers

from course_lib import run
from course_lib.mini import reading


def test_a_job_that_goes_on_elsewhere_is_that_of_one_process():
    (straight, read_straight), *_ = run(workers.go_on, None, 9, 0, ranks=1).results
    begun = run(workers.go_on, None, 4, 2, ranks=2).results  # its workers have read ahead
    gone_on = run(workers.go_on, begun[0][0], 5, 0, ranks=3).results
    together = [
        sorted(sum(parts, [])) for job in (begun, gone_on) for parts in zip(*(read for _, read in job))
    ]
    assert together == [sorted(step) for step in read_straight]
    assert gone_on[0][0]["places"] == straight["places"] == {"trained": 9 * workers.BATCH}
    for found, _ in gone_on:
        for name, wanted in straight["model"].items():
            assert (found["model"][name] - wanted).norm() < 1e-12 * wanted.norm()


@pytest.mark.parametrize("ranks, sizes", [(2, [7, 0]), (3, [1, 9, 4])])
def test_the_mean_is_that_of_all_samples_also_where_a_rank_has_none(ranks, sizes):
    assert max(run(workers.uneven_gradient, sizes, ranks=ranks).results) < 1e-12


@pytest.mark.parametrize(
    "ranks, workers_each, sizes", [(2, 2, [5, 0, 11, 3, 9]), (3, 0, [1, 1]), (1, 3, [8])]
)
def test_each_sample_of_files_is_read_once(ranks, workers_each, sizes):
    by_rank = run(workers.shards, sizes, workers_each, ranks=ranks).results
    assert sorted(number for its in by_rank for _, number, *_ in its) == list(range(sum(sizes)))
    counts = [len(its) for its in by_rank]
    assert max(counts) - min(counts) <= 1
    pieces = {(shard, start, stop) for its in by_rank for shard, _, start, stop in its}
    assert len(pieces) <= len(sizes) + ranks * max(1, workers_each) - 1


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 64, 65, 1000])
def test_an_order_is_a_permutation_and_each_epoch_has_its_own(samples):
    orders = [
        [reading.sample_at(place, samples, seed, epoch) for place in range(samples)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(order) == list(range(samples)) for order in orders)
    if samples >= 64:
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert sum(a == b for a, b in zip(orders[one], orders[other])) < 8
        steps = {(b - a) % samples for a, b in zip(orders[0], orders[0][1:])}
        assert len(steps) > samples / 3, "it is regular"


def test_neighbours_go_everywhere():
    """Of the first tenth of places, each tenth of the samples gets about as many."""
    samples = 10_000
    found = [0] * 10
    for place in range(samples // 10):
        found[reading.sample_at(place, samples, 3, 5) * 10 // samples] += 1
    assert all(60 < count < 145 for count in found), found


def test_a_huge_order_costs_nothing():
    samples = 10**15
    found = {reading.sample_at(place, samples, 0, 0) for place in range(samples - 500, samples)}
    assert len(found) == 500 and max(found) < samples


def test_a_state_of_something_else_is_refused():
    steps = reading.Steps(10, 4, 0, 0, 1)
    with pytest.raises(ValueError, match="with the key 'trained'"):
        steps.load_state_dict({"epoch": 3})
    with pytest.raises(ValueError, match="trained=-1: it must be"):
        steps.load_state_dict({"trained": -1})
    with pytest.raises(ValueError, match="rank=2: it must be a whole number from 0 to 1"):
        reading.Steps(10, 4, 0, 2, 2)
