"""What ranks have printed, in a few lines."""

import html
import re
from dataclasses import replace

from saved_job import job as saved_job

from course_lib.record import printed


def numbered(count):
    return "".join(f"line {number}\n" for number in range(count))


def test_the_first_lines_of_each_rank_in_rank_order_and_how_many_more():
    assert printed.rows(["b\na\n", "", "c"]) == [(0, "b"), (0, "a"), (2, "c")]
    assert printed.rows([numbered(12)]) == [(0, f"line {number}") for number in range(12)]
    assert printed.rows([numbered(1_013), "\n"])[-2:] == [
        (0, "line 11"),
        (0, "... 1,001 more, the last: line 1012"),
    ]
    two = printed.rows([numbered(7), numbered(6)])
    assert [rank for rank, _ in two] == [0] * 7 + [1] * 6 and two[6] == (0, "... 1 more, the last: line 6")
    many = printed.rows([numbered(2)] * 20)
    assert many[:2] == [(0, "line 0"), (0, "... 1 more, the last: line 1")] and len(many) == 40
    assert printed.rows(["", ""]) == []


def test_lines_as_a_terminal_leaves_them():
    bar = "\r 10%|#   |\r100%|####|\nlost\rkept\r\n\x1b[31mred\x1b[0m\x1b]0;title\x07\a\tx  "
    assert printed.rows([bar]) == [(0, "100%|####|"), (0, "kept"), (0, "red     x")]
    long = printed.rows(["x" * 1_000])[0][1]
    assert len(long) == printed.WIDTH and long.endswith("...")


def test_of_an_output_that_was_cut_no_number_of_lines_is_told():
    cut = numbered(20) + "\n... 12,345 bytes left out ...\n" + numbered(2)
    assert printed.rows([cut])[-1] == (0, "... more, the last: line 1")
    assert printed.in_words([cut], "job.output[{rank}]")[0].startswith("rank 0 printed very much (job.ou")


def test_a_job_shows_that_its_ranks_have_printed_and_says_where_it_is():
    job = replace(saved_job(), output=["", "one <b>\ntwo\n"])
    *_, last = repr(job).splitlines()
    assert last == "  rank 1 printed 2 lines (job.output[1]): one <b>"
    panel = job._repr_html_()
    assert panel.count("<details>") == 1 and "rank 1 printed 2 lines</summary>" in panel
    assert html.escape("one <b>\ntwo") in panel and "rank 0 printed" not in panel
    silent = replace(saved_job(), output=["", "\n"])
    assert "printed" not in repr(silent) + silent._repr_html_()


def test_a_fold_has_all_lines_or_the_beginning_and_the_end():
    lines = re.findall(r"line \d+|\.\.\. .*? \.\.\.", printed.folds_html([numbered(401)], "o[{rank}]"))
    assert lines == [
        *(f"line {number}" for number in range(200)),
        "... 1 more: o[0] ...",
        *(f"line {number}" for number in range(201, 401)),
    ]
    assert "o[0]" not in printed.folds_html([numbered(400)], "o[{rank}]")
