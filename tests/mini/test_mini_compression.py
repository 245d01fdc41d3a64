"""mini.compression on real ranks: values against one process, bytes against the formula, training with and
without error feedback.
"""

import math
import sys

import compression_workers as workers
import pytest

from course_lib import run, sent, theory

SHAPE = (512, 256)
OPTIONS = {"top_k": {"share": 0.2}}
HEADERS = 600  # bytes of a call, for each other rank


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_means_are_those_of_one_process_and_nothing_is_lost_with_feedback(ranks):
    for told in run(workers.against_one_process, ranks=ranks).results:
        for case, error in told.items():
            limit = 0.02 if case[0] == "rounded" else 1e-12  # a sum of bf16, on its way, rounds more
            assert error < limit, case


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_are_those_of_the_formula_within_a_percent_and_headers(ranks):
    job = run(workers.steps_of_all, SHAPE, ranks=ranks, backend="gloo")
    assert all(told == dict.fromkeys(workers.METHODS, 4 * math.prod(SHAPE)) for told in job.results)
    if not sys.platform.startswith("linux"):
        pytest.skip("bytes on the wire are counted on Linux")
    for number, name in enumerate(workers.METHODS):
        steps = [1 + 3 * number + step for step in range(3)]
        formula = theory.compressed_bytes(name, SHAPE, ranks, **OPTIONS.get(name, {}))
        for its_bytes in sent(job, steps=steps):
            assert formula <= its_bytes <= 1.01 * formula + 2 * (ranks - 1) * HEADERS, name
    plain = theory.collective_bytes("all_reduce", 4 * math.prod(SHAPE), ranks)
    assert theory.compressed_bytes("rounded", SHAPE, ranks) == plain / 2


@pytest.mark.parametrize("name", ["one_bit", "low_rank"])
def test_the_hook_does_in_ddp_what_one_does_by_hand(name):
    assert max(run(workers.by_hook_and_by_hand, name, ranks=2).results) < 1e-12


def test_with_error_feedback_it_learns_as_much_as_without_compression():
    for told in run(workers.accuracies, ranks=2, timeout=300).results:
        assert told["plain"] > 0.9
        assert min(told["feedback"], told["one bit"], told["low rank"]) > told["plain"] - 0.03
        assert told["without"] < told["plain"] - 0.04


def test_what_cannot_be_averaged_is_refused():
    told = run(workers.refusals, ranks=1).results[0]
    assert told == [
        "TypeError: method=3: it must be a function.",
        "TypeError: key is a list: it must be the parameter, or its name.",
        "ValueError: gradient: it must be a tensor of floating point numbers, one at least.",
        "ValueError: gradient: it must be a tensor of floating point numbers, one at least.",
        "ValueError: share=0.0: it must be above 0, and 1 at most.",
        "ValueError: rank=0: it must be a whole number of at least 1.",
        "TypeError: memory=None: it must be a dict.",
    ]
