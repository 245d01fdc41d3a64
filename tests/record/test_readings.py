"""What is read off a job's tables, on a job that can be worked out by hand."""

import math
from dataclasses import replace

import pytest
from saved_job import job

from course_lib.record import Sweep, calls, held, samples_per_second, sent, step_seconds

NOT_COUNTED = {"wire bytes": "NCCL moves bytes past the counters"}


def bare(**tables):
    """A job of which only these tables have rows."""
    return replace(job(), records={"seconds": [1.0, 2.0], **tables})


def test_sent_is_the_median_of_all_steps_but_the_warm_up():
    # steps 1 to 4 of 100, 200, 300 and 400 bytes, and one byte more on rank 1
    assert sent(job()).to_dict() == {0: 250.0, 1: 251.0}
    assert sent(job()).name == "wire_bytes" and sent(job()).index.name == "rank"


@pytest.mark.parametrize("steps, of_rank_0", [([1], 100), ([2, 3], 250), (range(2, 5), 300), ([0], 0)])
def test_sent_in_given_steps(steps, of_rank_0):
    assert sent(job(), steps).to_dict() == {0: of_rank_0, 1: of_rank_0 + 1}


def test_sent_by_the_textbook():
    by_textbook = sent(job(), layer="algorithm")
    assert by_textbook.to_dict() == {0: 192.0, 1: 64.0} and by_textbook.name == "algorithm_bytes"


def test_sent_by_the_most_of_its_steps():
    assert sent(job(), over="max").to_dict() == {0: 400.0, 1: 401.0}
    assert sent(job(), [1, 2], over="max").to_dict() == {0: 200.0, 1: 201.0}


def test_payload_is_what_was_handed_to_the_collectives():
    records = job().records
    comm = [row | {"payload_bytes": 10 if row["op"] == "broadcast" else 7} for row in records["comm"]]
    payload = sent(bare(steps=records["steps"], comm=comm), layer="payload")
    assert payload.to_dict() == {0: 21.0, 1: 10.0} and payload.name == "payload_bytes"


def test_who_receives_sends_nothing():
    comm = [row | {"op": "recv" if row["rank"] else "send"} for row in job().records["comm"]]
    message = bare(steps=job().records["steps"], comm=comm)
    assert sent(message, layer="payload").to_dict() == {0: 192.0, 1: 0.0}
    assert sent(message, layer="payload", ops=["recv"]).to_dict() == {0: 0.0, 1: 64.0}


def test_sent_of_some_collectives_alone():
    assert sent(job(), layer="payload", ops=["all_reduce"]).to_dict() == {0: 128.0, 1: 0.0}
    assert sent(job(), layer="algorithm", ops=("broadcast", "barrier")).to_dict() == {0: 64.0, 1: 64.0}
    assert sent(job(), layer="payload", ops=["send"]).to_dict() == {0: 0.0, 1: 0.0}


def test_sent_in_some_groups_alone():
    comm = [
        row | {"group": "0,1,2,3" if row["op"] == "broadcast" else "0,1"} for row in job().records["comm"]
    ]
    meshed = bare(steps=job().records["steps"], comm=comm)
    assert sent(meshed, layer="algorithm", groups=["0,1"]).to_dict() == {0: 192.0, 1: 0.0}
    assert sent(meshed, layer="algorithm", groups=["0,1,2,3"]).to_dict() == {0: 0.0, 1: 64.0}
    assert sent(meshed, layer="payload", groups=["0,2"]).to_dict() == {0: 0.0, 1: 0.0}


def test_where_the_wire_is_not_counted_sent_is_the_textbooks_and_says_so():
    not_counted = job(NOT_COUNTED)
    assert sent(not_counted).equals(sent(not_counted, layer="algorithm"))
    assert sent(not_counted, [2]).isna().all()


def test_sent_of_a_rank_that_measured_no_such_step():
    steps = [row for row in job().records["steps"] if row["rank"] == 0]
    assert sent(bare(steps=steps)).to_dict() == {0: 250.0, 1: 0.0}


def test_held_has_a_row_per_rank_and_the_categories_in_order():
    table = held(job())
    assert table.to_dict("index") == {
        0: {"params": 40, "grads": 20, "activations": 7, "peak": 90},
        1: {"params": 41, "grads": 21, "activations": 8, "peak": 91},
    }
    assert list(table) == ["params", "grads", "activations", "peak"] and all(table.dtypes == "int64")


def test_calls_are_counted_per_rank_without_barriers():
    assert calls(job()).to_dict("index") == {
        0: {"all_reduce": 2, "broadcast": 0},
        1: {"all_reduce": 0, "broadcast": 1},
    }


def test_calls_with_barriers():
    assert calls(job(), barriers=True).to_dict("index") == {
        0: {"all_reduce": 2, "barrier": 1, "broadcast": 0},
        1: {"all_reduce": 0, "barrier": 0, "broadcast": 1},
    }


def test_calls_of_a_job_without_any():
    assert calls(bare(steps=job().records["steps"])).shape == (2, 0)


def test_step_seconds_are_those_of_the_slowest_rank():
    assert step_seconds(job()).round(6).to_dict() == {2: 0.21, 3: 0.31, 4: 0.41}


def test_samples_per_second_are_those_of_all_ranks_by_the_usual_step():
    assert samples_per_second(job()) == pytest.approx(16 / 0.31)
    # of the timed steps alone, and of each rank its own
    told = {(1, 1): 1000, (1, 2): 4, (1, 3): 5, (1, 4): 100}
    steps = [
        row | {"samples": told.get((row["rank"], row["step"]), row["samples"])}
        for row in job().records["steps"]
    ]
    assert samples_per_second(bare(steps=steps)) == pytest.approx((8 + 5) / 0.31)


def test_samples_per_second_of_a_job_that_told_none():
    steps = [row | {"samples": None} for row in job().records["steps"]]
    assert math.isnan(samples_per_second(bare(steps=steps)))


@pytest.mark.parametrize(
    "read, words",
    [
        (lambda: sent(bare()), "has traced no step"),
        (lambda: calls(bare(steps=job().records["steps"][:1])), "run two steps or more"),
        (lambda: held(bare(steps=job().records["steps"])), "counted no memory"),
        (lambda: step_seconds(bare()), "has timed no step"),
        (lambda: samples_per_second(bare()), "has timed no step"),
        (lambda: sent(job(), [9]), r"no step with a number of \[9\]"),
        (lambda: sent(job(), [1], layer="algorithm"), "collectives are traced in one step only"),
        (lambda: sent(job(), [1], layer="payload"), 'layer="payload" takes none'),
        (lambda: sent(job(), layer="air"), "'wire', 'algorithm', 'payload'"),
        (lambda: sent(job(), over="mean"), "'median', 'max'"),
        (lambda: sent(job(), ops=["send"]), "the wire does not know collectives apart"),
        (lambda: sent(job(), layer="payload", ops="send"), "a list of some of all_reduce, "),
        (lambda: sent(job(), layer="payload", ops=["sending"]), "a list of some of all_reduce, "),
        (lambda: sent(job(), groups=["0,1"]), "the wire does not know groups apart"),
        (lambda: sent(job(), layer="payload", groups=[(0, 1)]), "a list of groups, such as"),
    ],
)
def test_what_was_not_measured_cannot_be_read(read, words):
    with pytest.raises(ValueError, match=words):
        read()


def test_readings_take_a_job():
    for read in (sent, held, calls, step_seconds, samples_per_second):
        with pytest.raises(TypeError, match="it must be a Job, what run returns"):
            read(None)


def test_the_speedup_of_a_sweep_is_the_median_of_its_repeats():
    def timed(ranks, seconds):
        step = {"rank": 0, "step": 2, "phase": "timed", "seconds": seconds, "samples": 8, "wire_bytes": 0}
        return replace(bare(steps=[step]), ranks=ranks)

    jobs = [timed(*pair) for pair in ((1, 0.4), (2, 0.4), (1, 0.4), (2, 0.2), (1, 0.4), (2, 0.1))]
    sweep = Sweep("sweep", tuple(jobs), repeats=3)
    assert (sweep.speedup(1), sweep.speedup(2)) == (1, 2)
    with pytest.raises(ValueError, match="ranks=4: this sweep has jobs on 1, 2 ranks"):
        sweep.speedup(4)
