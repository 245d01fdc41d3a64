"""parity: the largest relative error of what ranks returned."""

import math

import numpy as np
import pytest
import torch
from saved_job import job

from course_lib.record import parity

WANTED = torch.tensor([3.0, 4.0])  # of length 5


@pytest.mark.parametrize(
    "found, error",
    [
        ([WANTED, WANTED.clone()], 0.0),
        ([WANTED, torch.tensor([3.0, 4.5])], 0.1),
        ([torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.5])], 0.2),
        ([np.array([3.0, 4.5])], 0.1),
        ([[3, 4.5]], 0.1),
        ([torch.tensor([3.0, 4.5], dtype=torch.bfloat16)], 0.1),
        ([torch.tensor([3.0, 4.5], requires_grad=True)], 0.1),
    ],
)
def test_the_largest_error_of_any_rank_counts(found, error):
    assert parity(found, [WANTED]) == pytest.approx(error)


def test_each_rank_may_have_its_own_reference():
    assert parity([WANTED, 2 * WANTED], [WANTED, 2 * WANTED]) == 0
    assert parity([WANTED, 2 * WANTED], [2 * WANTED, WANTED]) == 1


def test_of_a_tuple_each_thing_is_looked_at_alone():
    large = torch.full((100,), 1e6)
    assert parity([(large, torch.tensor(2.0))], [(large, torch.tensor(1.0))]) == 1


def test_a_dict_is_one_thing_and_ranks_may_have_parts_of_it():
    wanted = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    stages = [{"a": torch.tensor([3.5])}, {"b": torch.tensor([4.0])}]
    assert parity(stages, [wanted]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no rank returned 'b'"):
        parity(stages[:1], [wanted])
    with pytest.raises(ValueError, match="parts of other names"):
        parity([wanted | {"c": torch.ones(1)}], [wanted])


def test_relative_to_how_far_training_has_moved():
    one = [([3.0, 3.0], [3.0, 4.0])]
    assert parity([(None, [3.0, 4.5])], one, of=1, start=0) == pytest.approx(0.5)
    moved = {"before": {"a": 1.0, "b": 2.0}, "after": {"a": 1.0, "b": 4.0}}
    ranks = [{"after": {"a": 2.0}}, {"after": {"b": 4.0}}]
    assert parity(ranks, [moved], of="after", start="before") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="the reference returned a dict that has no 'begin'"):
        parity(ranks, [moved], of="after", start="begin")


def test_a_job_is_compared_with_a_job():
    one = job(results=[{"scores": WANTED, "pid": "x"}])
    two = job(results=[{"scores": WANTED, "pid": "y"}, {"scores": WANTED + torch.tensor([0.0, 0.5])}])
    assert parity(two, one, of="scores") == pytest.approx(0.1)
    assert parity(two, [{"scores": WANTED}], of="scores") == pytest.approx(0.1)
    assert parity(job(results=[(7, WANTED)]), [("x", WANTED)], of=1) == 0


def test_nothing_and_not_a_number():
    zero = [torch.zeros(2)]
    assert parity(zero, zero) == 0 and parity([WANTED], zero) == math.inf
    assert math.isnan(parity([torch.tensor([math.nan, 1.0]), WANTED], [WANTED]))
    assert math.isnan(parity([WANTED, torch.tensor([math.nan, 1.0])], [WANTED]))


@pytest.mark.parametrize(
    "found, wanted, words",
    [
        ([torch.ones(3)], [WANTED], r"rank 0 has numbers of shape \(3,\), and \(2,\) is expected"),
        ([WANTED] * 3, [WANTED] * 2, "the reference is of 2 ranks: it must be of one, or of 3 like the job"),
        ([(WANTED, WANTED)], [(WANTED,)], "rank 0 returned 2 things, and 1 are expected"),
        ([], [WANTED], "it must hold what one rank returned, at least"),
        ([{}], [{"a": WANTED}], "parts of other names"),
    ],
)
def test_forms_must_match(found, wanted, words):
    with pytest.raises(ValueError, match=words):
        parity(found, wanted)


def test_a_saved_job_has_tensors_as_text_only(tmp_path):
    from course_lib.record import Job

    saved = job(results=[WANTED, WANTED])
    saved.save(tmp_path / "job.json")
    with pytest.raises(TypeError, match="rank 0 returned a str: parity compares tensors and numbers"):
        parity(Job.load(tmp_path / "job.json"), [WANTED])
    with pytest.raises(ValueError, match="rank 0 returned a Tensor that has no 'x'"):
        parity(saved, [WANTED], of="x")
