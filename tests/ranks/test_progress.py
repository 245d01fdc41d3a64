"""The sign of life, with what ranks print: in a terminal line by line, in a kernel as one display."""

import io
import sys
from types import SimpleNamespace

import IPython
import pytest

from course_lib.jobs import run, sweep
from course_lib.ranks import output, progress
from course_lib.ranks.errors import RankError

CLEAN = "\r\x1b[K"


def terminal(monkeypatch):
    """What is written to a terminal from now on (pytest takes its own before a test begins)."""
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    return written


def test_in_a_terminal_lines_come_as_they_are_printed_and_the_rest_at_the_end(monkeypatch):
    written = terminal(monkeypatch)
    with progress.Progress("work on 2 ranks") as shown:
        shown.update("running", lambda: ["one\ntwo\nhal", ""])
        shown.update("running", lambda: ["one\ntwo\nhalf\n", "three\n"])
        shown.over(["one\ntwo\nhalf\n", "three\nfour\n"], "job.output[{rank}]")
    assert written.getvalue() == (
        f"{CLEAN}rank 0 | one\n{CLEAN}rank 0 | two\n\rwork on 2 ranks: running\x1b[K"
        f"{CLEAN}rank 0 | half\n{CLEAN}rank 1 | three\n\rwork on 2 ranks: running\x1b[K"
        f"{CLEAN}rank 1 | four\n\rwork on 2 ranks\x1b[K\n"
    )


def test_in_a_terminal_a_rank_that_prints_much_gets_a_few_lines_and_one_more(monkeypatch):
    written = terminal(monkeypatch)
    much = "".join(f"line {number}\n" for number in range(100))
    with progress.Progress("work on 2 ranks") as shown:
        for _ in range(2):
            shown.update("running", lambda: [much, ""])
        shown.over([much, ""], "job.output[{rank}]")
    lines = [line for line in written.getvalue().split("\n") if "rank 0 |" in line]
    assert len(lines) == 7 and lines[-1].endswith("rank 0 | ... 94 more, the last: line 99"), lines


def speak(times=1):
    import torch.distributed as dist

    for number in range(times):
        print("word", number)
    return dist.get_rank()


def fail():
    print("before the end")
    raise ValueError("boom")


def test_in_a_terminal_a_short_job_and_one_that_fails_show_what_was_printed(monkeypatch):
    written = terminal(monkeypatch)
    monkeypatch.setattr(progress, "QUIET_S", 1000.0)  # as if both were over at once
    run(speak)
    assert written.getvalue() == f"{CLEAN}rank 0 | word 0\n{CLEAN}rank 1 | word 0\n"
    with pytest.raises(RankError):
        run(fail, ranks=1)
    assert written.getvalue().endswith(f"{CLEAN}rank 0 | before the end\n")


def test_elsewhere_nothing_is_shown(capsys):
    run(speak)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def kernel(monkeypatch):
    """What is displayed, in a kernel at which a person looks."""
    displayed = []
    compile = SimpleNamespace(format_code_name=lambda filename: None)
    events = SimpleNamespace(register=lambda event, function: None)
    shell = SimpleNamespace(kernel=1, user_ns={}, events=events, compile=compile)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: displayed.append(data))
    monkeypatch.setattr(progress, "QUIET_S", 1000.0)
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    return displayed


def test_where_a_person_looks_the_lines_of_the_ranks_stay_below_the_line(kernel):
    job = run(speak, 7)
    (shown,) = kernel
    assert shown["text/plain"] == "speak on 2 ranks" and job.output[0].endswith("word 6\n")
    panel = shown["text/html"]
    assert panel.count("rank 0 |") == panel.count("rank 1 |") == 7
    assert panel.index("rank 0 |") < panel.index("rank 1 |")
    assert "... 1 more, the last: word 6" in panel and "all of it: job.output[0]" in panel
    run(speak)
    assert "all of it" not in kernel[-1]["text/html"]
    with pytest.raises(RankError):
        run(fail, ranks=1)
    assert "before the end" in kernel[-1]["text/html"]
    sweep(speak, ranks=(1, 2), repeats=1)
    assert "the last of 2 jobs printed:" in kernel[-1]["text/html"]


def test_lines_of_ranks_that_have_roles_say_so(kernel, monkeypatch):
    run([speak, speak], 7)
    assert kernel[-1]["text/plain"] == "speak on 2 ranks"
    assert kernel[-1]["text/html"].count("rank 1, speak |") == 7
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    written = terminal(monkeypatch)
    run([speak, speak])
    assert f"{CLEAN}rank 1, speak | word 0\n" in written.getvalue()


def test_nothing_but_the_line_is_stored_where_no_person_looks_or_nothing_is_printed(kernel, monkeypatch):
    run(len, "x")
    monkeypatch.delenv("JPY_SESSION_NAME")
    run(speak)
    assert kernel == [{"text/plain": "len on 2 ranks"}, {"text/plain": "speak on 2 ranks"}]


def test_what_was_printed_is_read_only_where_something_is_drawn(monkeypatch):
    terminal(monkeypatch)
    asked = []
    monkeypatch.setattr(progress, "QUIET_S", 1000.0)
    with progress.Progress("work on 2 ranks") as shown:
        shown.update("running", lambda: asked.append(1) or ["", ""])
    assert not asked
    path = SimpleNamespace(stat=lambda: SimpleNamespace(st_size=0))
    assert output.read(path, False, output.LIVE_BYTES) == ""  # no file is opened
