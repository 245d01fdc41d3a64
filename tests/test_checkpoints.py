"""Jobs that are killed and go on from their last complete save: the same weights, and as much lost as the
formulas say.
"""

import math
import random

import checkpoint_workers as workers
import pytest
import torch

from course_lib import run, theory


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(workers.trains, str(tmp_path_factory.mktemp("undisturbed")), ranks=2).results[0][0]


@pytest.mark.parametrize("background", [False, True])
def test_a_job_whose_rank_was_killed_ends_with_the_same_weights_bit_for_bit(
    undisturbed, tmp_path, background
):
    job = run(workers.trains, str(tmp_path), 10, background=background, ranks=2, restarts=2)
    assert [attempt.steps for attempt in job.attempts] == [10, 4]
    assert "was killed (SIGKILL" in job.attempts[0].reason
    for weights, first in job.results:
        assert first == 8 and torch.equal(weights, undisturbed)


def test_what_is_not_saved_shows(undisturbed, tmp_path):
    job = run(workers.trains, str(tmp_path), 10, forgets="random", ranks=2, restarts=1)
    assert not torch.equal(job.results[0][0], undisturbed)


def test_on_fewer_ranks_the_curve_stays(tmp_path):
    (tmp_path / "straight").mkdir()
    straight = run(workers.trains, str(tmp_path / "straight"), dropout=0.0, ranks=3).results[0][0]
    job = run(workers.trains, str(tmp_path), 6, dropout=0.0, ranks=3, restarts=1, min_ranks=2)
    assert [attempt.ranks for attempt in job.attempts] == [3, 2] and job.results[0][1] == 4
    assert (job.results[0][0] - straight).norm() < 1e-5 * straight.norm()


def test_a_failure_loses_what_was_done_since_the_last_save(tmp_path):
    lifetimes, every, steps = [5, 0, 7, 2, 4, 99], 3, 12
    job = run(workers.endures, str(tmp_path), steps, every, lifetimes, ranks=2, restarts=9)
    assert [attempt.steps for attempt in job.attempts] == [5, 0, 7, 2, 3]
    assert sum(attempt.steps for attempt in job.attempts) - steps == sum(
        life % every for life in [5, 0, 7, 2]
    )


@pytest.mark.parametrize("every, mtbf", [(1, 20), (3, 20), (9, 20), (27, 20), (10, 5), (50, 1000)])
def test_lost_steps_are_those_of_many_failures(every, mtbf):
    """Within 3% and 0.02 steps, over 40,000 lifetimes."""
    draw = random.Random(every)
    lost = [int(draw.expovariate(1 / mtbf)) % every for _ in range(40_000)]
    assert theory.lost_steps(every, mtbf) == pytest.approx(sum(lost) / len(lost), rel=0.03, abs=0.02)


def played(interval_s, save_s, mtbf_s, restart_s, intervals=5_000):
    """Shares of the time of a job of so many intervals; failures come at any moment, in restarts and saves,
    too.
    """
    draw, now, again, restarts = random.Random(0), 0.0, 0.0, 0.0
    fails_at = draw.expovariate(1 / mtbf_s)
    for _ in range(intervals):
        while now + interval_s + save_s > fails_at:
            again += fails_at - now
            down = fails_at
            now, fails_at = fails_at, fails_at + draw.expovariate(1 / mtbf_s)
            while now + restart_s > fails_at:
                now, fails_at = fails_at, fails_at + draw.expovariate(1 / mtbf_s)
            now += restart_s
            restarts += now - down
        now += interval_s + save_s
    spent = {"useful": intervals * interval_s, "saves": intervals * save_s}
    spent |= {"restarts": restarts, "work done again": again}
    return {what: seconds / now for what, seconds in spent.items()}


@pytest.mark.parametrize(
    "case", [(1000, 60, 11_000, 600), (300, 5, 11_000, 600), (900, 100, 1000, 50), (50, 0, 400, 0)]
)
def test_goodput_is_that_of_a_job_that_is_played(case):
    """Within 3%, over 5,000 intervals; what it loses otherwise within 0.01 of its time."""
    found = played(*case)
    assert theory.goodput(*case) == pytest.approx(found["useful"], rel=0.03)
    shares = theory.goodput_shares(*case)
    assert list(shares) == list(found) and shares == pytest.approx(found, abs=0.01)
    assert sum(shares.values()) == pytest.approx(1)


def test_where_no_interval_ends_all_goes_to_restarts_and_to_work_that_is_done_again():
    shares = theory.goodput_shares(1e6, 60, 100, 50)
    assert shares["useful"] == shares["saves"] == 0 and sum(shares.values()) == pytest.approx(1)
    assert shares["restarts"] == pytest.approx(1 - math.exp(-0.5))


def test_twice_the_ranks_fail_twice_as_often():
    """Each rank fails by itself; the first to fail ends the job."""
    draw, ranks = random.Random(1), 8
    firsts = [min(draw.expovariate(1 / 400) for _ in range(ranks)) for _ in range(20_000)]
    assert sum(firsts) / len(firsts) == pytest.approx(theory.mtbf_seconds(400, 1, 1, ranks), rel=0.03)
    assert theory.mtbf_seconds(54, 419, 16_384, 2 * 16_384) == pytest.approx(54 / 419 / 2)


def test_no_interval_is_better_than_dalys():
    for save_s, mtbf_s in ((60, 11_000), (5, 11_000), (30, 400)):
        best = theory.goodput(theory.checkpoint_interval(save_s, mtbf_s), save_s, mtbf_s)
        others = [theory.goodput(save_s * 1.1**k, save_s, mtbf_s) for k in range(-20, 60)]
        assert max(others) <= best * 1.0005
        young = theory.checkpoint_interval(save_s, mtbf_s, "young")
        assert young == pytest.approx((2 * save_s * mtbf_s) ** 0.5) and young > 0
    assert theory.checkpoint_interval(300, 100) == 100


def test_the_published_interruptions_are_419():
    table = theory.published("llama3_interruptions")
    assert sum(row["count"] for row in table["rows"]) == 419
