"""Every program of the clinic on real ranks: as it is published it fails as the table says, and mended it
computes what one process does.
"""

import re
from pathlib import Path

import pytest

from course_lib import check, parity, run, sent
from course_lib.clinic.case import COUNTED, DIFFERS, WAITS
from course_lib.clinic.families import CASES, page
from course_lib.clinic.patients import PATIENTS
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
