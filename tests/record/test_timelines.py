"""Overlap is worked out from intervals: pieces that overlap count once."""

import pytest

from course_lib.record import Job, bubble, overlap, span_seconds


def job(*rows) -> Job:
    timeline = [
        {"rank": 0, "kind": kind, "name": kind, "start_s": start, "seconds": end - start}
        for kind, start, end in rows
    ]
    return Job("job", 1, "gloo", "cpu", "CPU", 1.0, [None], [""], records={"timeline": timeline})


@pytest.mark.parametrize(
    "rows, compute_s, communication_s, both_s",
    [
        ([("span", 0, 2), ("communication", 2, 3)], 2, 1, 0),
        ([("span", 0, 2), ("communication", 1, 3)], 2, 2, 1),
        # pieces that overlap count once
        ([("span", 0, 2), ("backward", 1, 3), ("communication", 1, 2), ("communication", 1.5, 4)], 3, 3, 2),
        ([("span", 0, 1), ("span", 2, 3), ("communication", 0.5, 2.5)], 2, 2, 1),
        ([("span", 0, 1)], 1, 0, 0),
        ([], 0, 0, 0),
    ],
)
def test_overlap(rows, compute_s, communication_s, both_s):
    row = overlap(job(*rows)).loc[0]
    assert (row["compute_s"], row["communication_s"], row["both_s"]) == (compute_s, communication_s, both_s)
    assert row["hidden"] == (pytest.approx(both_s / communication_s) if communication_s else 0)


def test_overlap_with_named_spans_alone():
    mixed = job(("span", 0, 2), ("forward", 2, 4), ("communication", 1, 4))
    assert overlap(mixed).loc[0, "both_s"] == 3 and overlap(mixed, kinds=("span",)).loc[0, "both_s"] == 1


def test_a_bubble_is_measured_from_the_first_span_to_the_last():
    spans = job(("span", 1, 2), ("forward", 0, 4), ("span", 2.5, 3))
    assert span_seconds(spans) == 2 and bubble(spans) == pytest.approx(1 - 1.5 / 2)
    for read in (span_seconds, bubble):
        with pytest.raises(ValueError, match="has no span in its traced step"):
            read(job(("forward", 0, 1)))


def test_a_bubble_of_the_spans_with_some_names():
    rows = [("span", 0, 4), ("span", 1, 2), ("span", 2.5, 3)]
    spans = job(*rows)
    for row, name in zip(spans.records["timeline"], ("step", "F", "B")):
        row["name"] = name
    assert bubble(spans) == 0 and bubble(spans, names=["F", "B"]) == pytest.approx(1 - 1.5 / 2)
    with pytest.raises(ValueError, match="has no span called W in its traced step"):
        bubble(spans, names=["W"])
    with pytest.raises(ValueError, match="names='F'"):
        bubble(spans, names="F")
