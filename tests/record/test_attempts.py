"""Attempts of a job, and what was lost in those that failed."""

import json
from dataclasses import replace

import pytest
from saved_job import job

from course_lib.record import Job
from course_lib.record.attempts import Attempt, lost_in_words, steps_done_again


def attempts(*steps_from, ranks=4):
    """Of (steps, begun_at) in turn; all but the last have failed."""
    last = len(steps_from)
    return [
        Attempt(
            number,
            ranks,
            "rank 1 raised ValueError: boom" * (number < last),
            0.5,
            steps,
            begun_at,
            [""],
            {"steps": [{"rank": 0, "step": step, "phase": "timed", "seconds": 0.1} for step in range(steps)]},
        )
        for number, (steps, begun_at) in enumerate(steps_from, 1)
    ]


@pytest.mark.parametrize(
    "tried, again, words",
    [
        ([(6, 0)], 0, ""),
        ([(5, 0), (2, 4)], 1, "2 attempts, 1 of 7 steps was done again"),
        ([(5, 0), (6, 0)], 5, "2 attempts, 5 of 11 steps were done again"),
        ([(4, 0), (2, 4)], 0, "2 attempts, none of 6 steps were done again"),
        ([(5, 0), (1, 4), (2, 4)], 2, "3 attempts, 2 of 8 steps were done again"),
        ([(5, 0), (1, 2), (4, 2)], 4, "3 attempts, 4 of 10 steps were done again"),
        ([(5, None), (6, None)], None, "2 attempts, 5 steps in those that failed"),
        ([(1, None), (6, 1)], None, "2 attempts, 1 step in those that failed"),
        ([(0, None), (6, None)], 0, "2 attempts, none of 6 steps were done again"),
        ([(0, None), (0, None)], 0, "2 attempts"),
    ],
)
def test_what_was_done_again_is_known_where_steps_have_numbers(tried, again, words):
    assert steps_done_again(attempts(*tried)) == again and lost_in_words(attempts(*tried)) == words


def test_an_attempt_in_one_line():
    failed, well = attempts((5, 0), (1, 4))
    assert str(failed) == "attempt 1 (4 ranks, 5 steps): rank 1 raised ValueError: boom"
    assert str(replace(failed, ranks=1, steps=0)) == "attempt 1 (1 rank): rank 1 raised ValueError: boom"
    assert str(well) == "attempt 2 (4 ranks, 1 step): all went well"


def test_a_job_shows_what_failed_and_keeps_it_in_a_file(tmp_path):
    tried = replace(job(), attempts=attempts((5, 0), (2, 4)))
    lines = repr(tried).splitlines()
    assert lines[1:3] == [
        "  2 attempts, 1 of 7 steps was done again",
        "  attempt 1 (4 ranks, 5 steps): rank 1 raised ValueError: boom",
    ]
    assert "all went well" not in repr(tried) and "attempt" not in repr(job())
    assert "1 of 7 steps" in tried._repr_html_()
    tried.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json").attempts == tried.attempts


def test_a_file_of_before_has_attempts_without_records(tmp_path):
    path, tried = tmp_path / "job.json", attempts((5, 0), (2, 4))
    replace(job(), attempts=tried).save(path)
    kept = json.loads(path.read_text())
    for attempt in kept["attempts"]:
        del attempt["records"]
    path.write_text(json.dumps(kept))
    assert Job.load(path).attempts == [replace(attempt, records={}) for attempt in tried]


def test_a_job_without_them_is_saved_as_before(tmp_path):
    job().save(tmp_path / "job.json")
    assert not {"attempts", "roles"} & set(json.loads((tmp_path / "job.json").read_text()))
    again = Job.load(tmp_path / "job.json")
    assert again.attempts == [] and again.roles == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("attempts", 3),
        ("attempts", [3]),
        ("attempts", [{"number": 1}]),
        ("attempts", [{**vars(attempts((1, 0))[0]), "steps": "five"}]),
        ("attempts", [{**vars(attempts((1, 0))[0]), "output": 3}]),
        ("attempts", [{**vars(attempts((1, 0))[0]), "output": [3]}]),
        ("attempts", [{**vars(attempts((1, 0))[0]), "records": [3]}]),
        ("roles", 3),
        ("roles", ["serve", 3]),
        ("roles", ["serve"]),
    ],
)
def test_a_file_with_damaged_ones_is_refused_in_one_sentence(tmp_path, name, value):
    path = tmp_path / "job.json"
    job().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=f"is damaged: '{name}'") as caught:
        Job.load(path)
    assert "\n" not in str(caught.value)
