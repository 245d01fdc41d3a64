"""Every program of the clinic on real ranks: as it is published it fails as the table says, and mended it
computes what one process does.
"""

import contextlib
import os
import re
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from course_lib import RankError, check, parity, run, sent
from course_lib.clinic.case import COUNTED, DIFFERS, WAITS
from course_lib.clinic.families import CASES, page
from course_lib.clinic.patients import PATIENTS
from course_lib.clinic.tools import stack_of
from course_lib.clinic.visits import bill, healthy, visit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_program_fails_as_the_table_says_and_is_right_once_it_is_mended(case):
    assert len(case.wrong) == len(case.stops) >= 1
    for program, words in zip(case.wrong, case.stops):
        found = case.look_at(program)
        assert words in found.stopped and bool(words) == bool(found.stopped) and not found.right, found
    assert case.look_at(case.mended).right


def test_there_are_thirty_and_each_has_a_name_a_question_and_a_chapter():
    assert len(CASES) == len({case.name for case in CASES}) == 30
    assert {case.question for case in CASES} == {WAITS, DIFFERS, COUNTED}
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert {case.chapter for case in CASES} <= set(
        re.findall(r"\w+", design.split("## The plan for the book")[1])
    )


def test_the_page_of_symptoms_is_that_of_the_table():
    """`python -m course_lib.clinic > docs/symptoms.md` writes it anew."""
    assert (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8") == page()


def test_a_patient_that_ends_is_as_ill_as_the_chapter_says():
    """The others, Ada and Ben, hang: their checks are tested with that."""
    assert [f"mended_{name}" for name in PATIENTS] == list(check._CHECKS["clinic"])
    for name, right, thrifty in (("cleo", False, True), ("dora", False, True), ("emil", True, False)):
        job = run(visit, PATIENTS[name], name, ranks=3)
        assert (parity(job, [healthy(name)]) < 1e-9) == right
        assert (sent(job, layer="algorithm").max() <= 1.02 * bill(name)) == thrifty


def test_a_visit_refuses_who_is_no_patient():
    with pytest.raises(ValueError, match="name"):
        healthy("frieda")


@pytest.mark.parametrize(
    "name, inside",
    [
        ("one rank calls", "all_reduce"),
        ("ranks one after the other", "ranks_one_after_the_other"),
        ("every 2000 of 500", "every_2000_of_500"),
    ],
)
def test_py_spy_sees_where_a_silent_rank_is(name, inside):
    """In the families for which the table names it: one waits in a collective, one for ranks that never come,
    and one works.
    """
    (of_itself, *_) = stack_of(os.getpid())
    if of_itself.startswith("py-spy cannot look"):
        pytest.skip(of_itself)
    program = next(case.wrong[0] for case in CASES if case.name == name)

    def looked_at():
        pids, end = [None, None], time.monotonic() + 60
        dist.all_gather_object(pids, os.getpid())
        if dist.get_rank() == 0:
            while True:
                with contextlib.suppress(RuntimeError):  # who waits for a rank gives up after a second
                    program()
        stack = []
        while not any(call.startswith(inside) for call in stack) and time.monotonic() < end:
            stack = stack_of(pids[0])
        raise ValueError(" < ".join(stack))

    with pytest.raises(RankError) as stopped:
        run(looked_at, ranks=2, backend="gloo")
    assert f"{inside} (" in str(stopped.value.reports[1].traceback)


def test_py_spy_says_why_it_cannot_look():
    (line,) = stack_of(2**22 + 1)  # more than there are
    assert line.startswith("py-spy cannot look") and len(line) < 300
