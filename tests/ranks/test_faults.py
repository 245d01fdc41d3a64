"""Every fault is injected for real; the message, the time and the cleanup are asserted."""

import html
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import faults
import psutil
import pytest
from left_behind import Traces, shared_memory_of

from course_lib import RankError, RankWarning, last_error, run
from course_lib.ranks import budget, folder, follow, fork_server, one_job, output, places
from course_lib.ranks.launch import Group

# generous, for a busy machine, and long before a timeout: seconds are measured by tests/bench/bench_faults.py
SOON_S = 20.0
# of a job that is meant to end at its timeout; no test waits for that: see `at_the_timeout`
TIMEOUT_S = 200.0


def ranks_alive() -> list[psutil.Process]:
    """Processes below this one, other than the fork server and the supervisor that it keeps ready."""
    servers = [p for p in psutil.Process().children() if "course_lib.ranks.server" in " ".join(p.cmdline())]
    found = []
    for server in servers:
        found += server.children(recursive=True)
    return found


def soon(holds, wait_s: float = SOON_S) -> bool:
    """Whether `holds()` is true within `wait_s`."""
    end = time.monotonic() + wait_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def only_the_server_is_left() -> bool:
    """Whether, soon, no process is left but the fork server and the one supervisor that waits for the next
    job.
    """
    return soon(lambda: len(ranks_alive()) == 1)


def gone(processes: list[psutil.Process], wait_s: float = SOON_S) -> bool:
    """Whether all have ended within `wait_s`. A zombie has ended: in a container often nobody collects it."""
    end = time.monotonic() + wait_s
    while True:
        try:
            alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            continue
        if not alive or time.monotonic() > end:
            return not alive
        time.sleep(0.02)


@pytest.fixture
def nothing_left(tmp_path, monkeypatch):
    """After the test: no process, no socket, no file is left, and the next run works."""
    run(faults.addresses, ranks=1)  # the server is up
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors, ranks, take = psutil.Process().num_fds(), set(), Group._take_report

    def take_and_remember(group, record):
        ranks.update(record.get("pids", {}).values())
        take(group, record)

    monkeypatch.setattr(Group, "_take_report", take_and_remember)
    yield
    assert only_the_server_is_left(), "ranks were left"
    assert soon(lambda: psutil.Process().num_fds() == descriptors), (
        "sockets or files of this process were left"
    )
    assert not list(tmp_path.glob("course_lib-*")), "temporary files were left"
    assert soon(lambda: not shared_memory_of(ranks)), "shared memory was left"
    begin = time.monotonic()
    assert run(faults.addresses, ranks=2).ranks == 2
    assert time.monotonic() - begin < SOON_S


def fails(fn, *args, ranks=2, timeout=60.0, within=SOON_S, **kwargs) -> RankError:
    begin = time.monotonic()
    with pytest.raises(RankError) as caught:
        run(fn, *args, ranks=ranks, timeout=timeout, **kwargs)
    assert time.monotonic() - begin < within
    return caught.value


def once(monkeypatch, holds, act) -> list[float]:
    """Do `act` as soon as `holds` is true of what the ranks of a job have told. Returns a list that will hold
    when.
    """
    done, listen = [], Group.listen

    def listen_and_look(group, wait_s):
        listen(group, wait_s)
        if not done and holds(group.states):
            done.append(time.monotonic())
            act()

    monkeypatch.setattr(Group, "listen", listen_and_look)
    return done


def stand(*asleep: int):
    """Whether these ranks have told that they sleep for good, and all others that they are in a call of
    torch.distributed.
    """

    def holds(states) -> bool:
        return all(
            state.where
            and (
                any("time.sleep(100)" in places.line_of(frame) for frame in state.where["frames"][-1:])
                if state.rank in asleep
                else state.where["call"]
            )
            for state in states
        )

    return holds


def at_the_timeout(monkeypatch, holds, fn, **options):
    """Run `fn`, whose timeout is over as soon as `holds` is true of its ranks, however long they took to
    start, and not before.
    """
    late = once(monkeypatch, holds, lambda: None)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + TIMEOUT_S * bool(late))
    monkeypatch.setattr(one_job, "time", clock)
    try:
        return run(fn, timeout=TIMEOUT_S, **options)
    finally:
        assert late and time.monotonic() - late[0] < SOON_S


def late(*arguments, **options) -> RankError:
    """The error of a job that ends `at_the_timeout`."""
    with pytest.raises(RankError) as caught:
        at_the_timeout(*arguments, **options)
    assert f"had not finished after timeout={TIMEOUT_S:g} s." in caught.value.headline
    return caught.value


def test_row_1_a_rank_raises(nothing_left):
    error = fails(faults.raises, ranks=3)
    lines = str(error).splitlines()
    assert lines[0] == "raises failed on rank 1."
    assert lines[1].strip() == "rank 1: raised IndexError: list assignment index out of range"
    assert "faults.py, line" in lines[2] and "values[7] = 0" in lines[2]
    assert "stopped because rank 1 failed" in error.reports[0].state
    assert (
        "all_reduce of float32[2, 3]" in error.reports[2].state
        and "torch.ones(2, 3)" in error.reports[2].line
    )
    assert "Traceback" in error.reports[1].traceback and "faults.py" in error.reports[1].traceback


def test_row_1_every_rank_raises(nothing_left, monkeypatch):
    monkeypatch.setattr(follow, "GRACE_S", 60.0)  # it ends when all have been heard
    error = fails(faults.everyone_raises, ranks=3)
    assert error.headline == "everyone_raises failed on ranks 0, 1 and 2."


@pytest.mark.parametrize(
    "fn, words",
    [(faults.exits, "raised SystemExit: 3"), (faults.vanishes, "ended its process with exit code 0 before")],
)
def test_a_rank_exits(nothing_left, fn, words):
    assert words in fails(fn).reports[1].state


def test_row_2_a_rank_is_killed(nothing_left):
    error = fails(faults.is_killed, ranks=3)
    assert error.headline == "is_killed failed on rank 1."
    assert error.reports[1].state.startswith(
        "was killed (SIGKILL, often because the machine is out of memory); its peak memory was less than"
        " 50 MB above what it began with"
    )
    # whether or not its connection broke first
    waiting = "stopped because rank 1 failed; it was waiting in all_reduce of float32[5]"
    assert [error.reports[rank].state for rank in (0, 2)] == [waiting, waiting]


def test_row_2_the_peak_is_that_of_the_function(nothing_left):
    """Without Python and torch, which weigh another amount in every build of torch."""
    assert "its peak memory was 0.4 GB above" in fails(faults.is_killed_while_large).reports[1].state


def test_a_rank_crashes(nothing_left):
    assert "was killed (SIGSEGV)" in fails(faults.crashes).reports[1].state


def test_row_3_a_rank_leaves_early(nothing_left):
    error = fails(faults.leaves_early, ranks=3)
    assert "Rank 1 has finished without calling all_reduce, in which ranks 0 and 2 wait." in error.headline
    assert (
        error.reports[0].state == "waits in all_reduce of float32[4]"
        and "torch.ones(4)" in error.reports[0].line
    )
    assert error.reports[1].state == "had finished"


def test_row_4_a_rank_never_arrives(nothing_left, monkeypatch):
    error = late(monkeypatch, stand(1), faults.never_arrives, ranks=3)
    assert "Ranks 0 and 2 wait in all_reduce; rank 1 is not there." in error.headline
    assert error.reports[2].state == "waits in all_reduce of float32[4]"
    assert "time.sleep(100)" in error.reports[1].line


def test_row_4_ranks_wait_for_messages(nothing_left):
    error = fails(faults.waits_for_a_message)
    assert "Nobody sends." in error.headline
    assert error.reports[0].state == "waits in recv from rank 1 of float32[3]"
    assert "dist.recv(x" in error.reports[1].line


@pytest.mark.parametrize(
    "fn, ranks, words, hint",
    [
        (
            faults.everyone_sends_first,
            3,
            (
                "Each rank waits for another: rank 0 in send to rank 1 of float32[1000000]; rank 1 in send to"
                " rank 2"
            ),
            "use isend",
        ),
        (
            faults.groups_in_another_order,
            3,
            (
                "rank 1 in all_reduce of float32[5], over ranks 1 and 2; rank 2 in all_reduce of float32[5],"
                " over ranks 0 and 2"
            ),
            "same order",
        ),
        (
            faults.waits_for_one_that_left,
            2,
            "Each rank that is left waits for another: rank 0 in wait() of a message",
            "A recv needs a send",
        ),
    ],
)
def test_row_4_ranks_that_wait_for_each_other_are_not_left_to_the_timeout(
    nothing_left, fn, ranks, words, hint
):
    error = fails(fn, ranks=ranks, timeout=60.0)
    assert (
        "cannot go on, and was stopped" in error.headline
        and words in error.headline
        and hint in error.headline
    )
    assert all(
        "faults.py, line" in report.place for report in error.reports if report.state != "had finished"
    )


def test_row_4_a_rank_that_works_in_a_thread_is_waited_for(nothing_left):
    run(faults.slow_but_well, 4.5)


def test_row_4_a_rank_that_naps_waits_for_nothing(nothing_left, monkeypatch):
    error = late(monkeypatch, stand(0, 1), faults.naps_with_a_collective_under_way)
    assert (
        error.reports[0].state == "was running; all_reduce of float32[4] was under way"
        and "time.sleep(100)" in error.reports[0].line
    )


def test_a_collective_that_nobody_joined(nothing_left):
    with pytest.warns(
        RankWarning,
        match=r"Rank 0 called all_reduce of float32\[4\] and did not wait for it; rank 1 never called it",
    ):
        run(faults.forgets_to_wait)


def test_what_a_rank_says_at_its_end_is_not_undone_by_an_older_answer(nothing_left):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(faults.answers_late)


def test_a_thread_of_a_rank_raises(nothing_left):
    with pytest.warns(
        RankWarning,
        match=r"A thread of rank 1 raised ValueError: boom \(faults.py, line \d+, in raise_boom\)",
    ):
        run(faults.thread_raises)


def test_row_18_what_is_still_at_work_when_a_rank_returns_is_finished(nothing_left, tmp_path):
    folder = tmp_path / "late"
    folder.mkdir()
    job = run(faults.works_on, str(folder), ranks=1)
    # the temporary folder is gone
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert written == dict.fromkeys(("atexit", "executor", "process", "thread", "log"), "done")
    assert sorted(job.output[0].split()) == sorted(["done"] * 4 + ["thread", "executor", "process", "atexit"])


def test_row_18_what_never_ends_is_given_up_with_a_warning(nothing_left, monkeypatch):
    with pytest.warns(
        RankWarning,
        match=(
            rf"Ranks 0 and 1 had returned, and still worked after timeout={TIMEOUT_S:g} s \(faults.py,"
            r" line \d+, in .*What was not done is lost"
        ),
    ):
        job = at_the_timeout(
            monkeypatch,
            lambda states: all(state.phase == "finished" for state in states),
            faults.never_ends,
        )
    assert job.results == ["returned"] * 2


@pytest.mark.parametrize(
    "how, words",
    [
        ("thread", r"A thread of rank 1 raised ValueError: boom"),
        ("abort", r"Rank 1 was ended by a library's abort .*: it still worked after"),
    ],
)
def test_row_18_what_fails_after_a_rank_has_returned_is_told(nothing_left, how, words):
    with pytest.warns(RankWarning, match=words):
        assert run(faults.fails_at_the_end, how).results == ["returned"] * 2


@pytest.mark.parametrize(
    "fn, words",
    [
        (
            faults.groups_of_members_only,
            "ranks 0 and 1 made a group of ranks 0 and 1; ranks 2 and 3 made a group of ranks 2 and 3.",
        ),
        (
            faults.groups_with_other_lists,
            "rank 0 made a group of ranks 0 and 1; ranks 1 and 2 made a group of ranks 0, 1 and 2.",
        ),
        (
            faults.groups_of_each_ones_own,
            "ranks 0 and 1 made a group of ranks 0 and 1; ranks 2 and 3 made a group of ranks 2 and 3.",
        ),
    ],
)
def test_row_17_every_rank_must_make_every_group(nothing_left, fn, words):
    """Two groups get one name, and their messages mix: some hang, some go well by chance, and all are told
    within seconds.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            told = str(fails(fn, ranks=4, timeout=60.0))
        except pytest.fail.Exception:
            told = "".join(str(warning.message) for warning in heard)
    assert f"The ranks made different groups: {words} Every rank must call new_group for every group" in told


def test_row_17_groups_that_all_ranks_make_are_no_mistake(nothing_left, tmp_path, monkeypatch):
    told = tmp_path / "told"
    # a job is stopped for what two answers say
    once(monkeypatch, lambda states: all(state.answers >= 3 for state in states), told.touch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = run(faults.groups_as_they_should_be, str(told), ranks=4, timeout=TIMEOUT_S)
    assert job.results == [16.0] * 4


def test_row_20_a_role_fails(nothing_left):
    error = fails([faults.serves, faults.works, faults.works], "raises", ranks=3)
    lines = str(error).splitlines()
    assert lines[:2] == [
        "serves and works failed on rank 0 (serves).",
        "  rank 0, serves: raised ValueError: no more",
    ]
    assert "faults.py, line" in lines[2] and "in serves" in lines[2]
    assert error.reports[2].name == "rank 2, works" and error.reports[2].role == "works"
    assert error.reports[2].state == (
        "stopped because rank 0 (serves) failed; it was waiting in recv from rank 0 (serves) of float32[3]"
    )
    assert "<td>rank 1, works</td>" in error._repr_html_()


def test_row_20_roles_that_wait_for_each_other(nothing_left):
    error = fails([faults.serves, faults.works], "waits")
    assert "rank 0 (serves) in recv from rank 1 (works) of float32[3], which has finished" in error.headline
    assert "in serves" in error.reports[0].place and error.reports[1].state == "had finished"


def test_row_21_a_rank_fails_in_every_attempt(nothing_left, tmp_path):
    error = fails(faults.trains, str(tmp_path), 9, ranks=2, restarts=2)
    lines = str(error).splitlines()
    assert lines[0] == "trains failed on rank 1. All 3 attempts failed."
    assert lines[1] == "  rank 1: raised ValueError: boom" and "faults.py, line" in lines[2]
    reasons = [line.split(": ", 1) for line in lines[-3:]]
    assert [first for first, _ in reasons] == [
        "  attempt 1 (2 ranks, 5 steps)",
        "  attempt 2 (2 ranks, 1 step)",
        "  attempt 3 (2 ranks, 1 step)",
    ]
    assert all(why.startswith("rank 1 raised ValueError: boom (faults.py, line") for _, why in reasons)
    assert [attempt.number for attempt in last_error().attempts] == [1, 2, 3]
    assert error.attempts[1].output == ["attempt 1 from step 4 on 2\n"] * 2
    assert html.escape(str(error.attempts[2])) in error._repr_html_()


@pytest.mark.parametrize(
    "how, reason",
    [
        ("raises", "rank 1 raised ValueError: boom (faults.py, line "),
        ("killed", "rank 1 was killed (SIGKILL, often because"),
        ("leaves", "cannot go on, and was stopped. Rank 1 has finished without calling all_reduce"),
    ],
)
def test_row_22_a_rank_fails_once_and_the_next_attempt_succeeds(nothing_left, tmp_path, how, reason):
    before = last_error()
    job = run(faults.trains, str(tmp_path), 1, how, ranks=3, restarts=2)
    assert job.results == [(18.0, 1, 2)] * 3 and job.ranks == 3
    first, second = job.attempts
    assert (first.number, first.ranks, first.steps, first.begun_at) == (1, 3, 5, 0)
    assert (second.number, second.ranks, second.steps, second.begun_at) == (2, 3, 2, 4)
    assert first.reason.startswith(reason) and second.reason == ""
    assert first.output == ["attempt 0 from step 0 on 3\n"] * 3
    assert second.output == job.output == ["attempt 1 from step 4 on 3\n"] * 3
    assert 0 < first.seconds + second.seconds <= job.seconds + 1 and len(job.steps) == 2 * 3
    assert "2 attempts, 1 of 7 steps was done again" in repr(job) and last_error() is before


@pytest.mark.parametrize("ranks", [2, 4])
def test_row_23_a_link_goes_down(nothing_left, two_hosts, ranks):
    error = fails(faults.loses_its_link, ranks=ranks, on=two_hosts)
    lost = "rank 1" if ranks == 2 else "ranks 2 and 3"
    words = (
        f"The link of host 1 ({lost}) is down: nothing passes between it and host 0. Each rank waits: rank 0"
        " (host 0) in"
    )
    assert words in error.headline and "cannot go on, and was stopped" in error.headline
    assert {report.state for report in error.reports} == {"waits in all_reduce of float32[5000000]"}
    assert all("dist.all_reduce" in report.line for report in error.reports)


def test_row_24_a_host_disappears(nothing_left, two_hosts):
    error = fails(faults.loses_a_host, ranks=4, on=two_hosts)
    assert error.headline == (
        "loses_a_host failed on ranks 2 and 3 (host 1). Host 1 is gone: all its ranks were killed."
    )
    assert [report.cause for report in error.reports] == [False, False, True, True]
    assert error.reports[0].state.startswith("stopped because ranks 2 and 3 (host 1) failed")


def test_the_last_error_stays(nothing_left):
    error = fails(faults.raises, ranks=3)
    copied = error._render_traceback_()[-1].split(": ", 1)[1]
    assert copied == "from course_lib import last_error; print(last_error().reports[1].traceback)"
    with pytest.raises(ValueError):
        run(faults.raises, ranks=0)
    assert (
        str(last_error()) == str(error)
        and last_error().reports == error.reports
        and last_error().__traceback__ is None
    )


def test_a_rank_that_forks_speaks_for_itself(nothing_left):
    assert run(faults.forks).results == [2.0, 2.0]


@pytest.mark.parametrize(
    "kind, state",
    [
        ("long", "raised ValueError: " + "x" * 1000 + "... (2,000,000 characters)"),
        ("lines", "raised ValueError: one\n\ntwo"),
        ("mute", "raised Mute: (its message cannot be shown)"),
        ("lock", "raised Unsendable: with a lock"),
    ],
)
def test_row_1_odd_messages(nothing_left, kind, state):
    error = fails(faults.says_much, kind)
    assert error.reports[1].state == state
    if kind == "lines":
        assert "\n  rank 1: raised ValueError: one\n      two\n" in str(error)


@pytest.mark.parametrize("how", ["input", "breakpoint"])
def test_a_rank_has_no_keyboard(nothing_left, how):
    error = fails(faults.asks, how, ranks=1)
    assert "A rank has no keyboard" in error.reports[0].state and "input(" in error.reports[0].line


def test_row_5_different_collectives(nothing_left):
    error = fails(faults.different_collectives)
    assert "rank 0 called broadcast of float32[4]; rank 1 called all_gather of float32[4]" in error.headline


@pytest.mark.parametrize(
    "fn, first, second",
    [(faults.other_shape, "float32[9]", "float32[7]"), (faults.other_dtype, "float32[700]", "float64[700]")],
)
def test_row_6_shapes_or_dtypes_differ(nothing_left, fn, first, second):
    error = fails(fn)
    assert f"rank 0 called all_reduce of {first}; rank 1 called all_reduce of {second}" in error.headline
    # one of them may have had what it waited for, and be done
    lines = [report.line for report in error.reports if report.line]
    assert lines and all("dist.all_reduce" in line for line in lines)


def test_row_6_where_gloo_says_nothing(nothing_left):
    with pytest.warns(
        RankWarning,
        match=(
            r"rank 0 called broadcast of float32\[700\]; rank 1 called broadcast of float64\[700\].*No"
            r" library noticed"
        ),
    ):
        run(faults.silent_dtype)


def test_row_7_swapped_tensors(nothing_left):
    with pytest.warns(
        RankWarning,
        match=r"all_reduce of float32\[4\] from different lines.*all_reduce\(a\).*all_reduce\(b\)",
    ):
        job = run(faults.swapped)
    assert job.results == [4.0, 4.0]  # plainly wrong: the sum of zeros and ones, twice


def test_row_7_join_is_no_mistake(nothing_left):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(faults.uneven_with_join)


def without_answer(fn):
    """Whether rank 0 waits, and rank 1 is stopped, or searches without letting its other threads run."""
    used_s = {}  # of the CPU, by rank 1, when rank 0 was first seen to wait

    def holds(states) -> bool:
        if not states[0].where.get("call") or states[1].phase != "running":
            return False
        rank_1 = psutil.Process(states[1].pid)
        if fn is faults.is_stopped:
            return rank_1.status() == psutil.STATUS_STOPPED
        now_s = sum(rank_1.cpu_times()[:2])
        return now_s - used_s.setdefault(1, now_s) > 1  # nothing else than the search needs so much

    return holds


def test_row_8_a_rank_that_has_answered_before_is_where_it_is_now(nothing_left, tmp_path, monkeypatch):
    told = tmp_path / "told"
    once(monkeypatch, lambda states: states[1].answers and states[0].where.get("call"), told.touch)
    holds = without_answer(faults.holds_the_lock)
    error = late(
        monkeypatch,
        lambda states: told.exists() and holds(states),
        faults.holds_the_lock,
        told=str(told),
    )
    assert error.reports[1].state == "was running" and "re.match(" in error.reports[1].line
    assert error.reports[0].state == "waits in all_reduce of float32[4]"


@pytest.mark.parametrize(
    "fn, words",
    [
        (faults.is_stopped, "does not respond: its process was stopped (SIGSTOP)"),
        (faults.holds_the_lock, "was running"),
    ],
)
def test_row_8_a_rank_does_not_respond(nothing_left, monkeypatch, fn, words):
    error = late(monkeypatch, without_answer(fn), fn)
    assert error.reports[1].state == words
    assert error.reports[0].state == "waits in all_reduce of float32[4]"
    if fn is faults.holds_the_lock:
        assert "re.match(" in error.reports[1].line


def interrupts_once_ranks_wait(monkeypatch) -> list[float]:
    """SIGINT to this process as soon as the ranks of `never_arrives` have told that they are where they hang.
    Returns a list that will hold when.
    """
    return once(monkeypatch, stand(1), lambda: os.kill(os.getpid(), signal.SIGINT))


def test_row_9_interrupt(nothing_left, monkeypatch):
    """SIGINT to the process that runs the job, as the Interrupt button sends it."""
    pressed = interrupts_once_ranks_wait(monkeypatch)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(faults.never_arrives, ranks=3)
    assert time.monotonic() - pressed[0] < SOON_S
    assert "never_arrives was interrupted." in str(caught.value)
    assert "waits in all_reduce of float32[4]" in str(caught.value) and "time.sleep(100)" in str(caught.value)


def test_row_9_interrupted_again_and_again(nothing_left, monkeypatch):
    """Impatience changes nothing: the same report, and nothing left (see the fixture)."""

    def impatient(method):
        def press_first(*args):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            return method(*args)

        return press_first

    with monkeypatch.context() as patch:
        for name in ("ask_and_wait", "close"):
            patch.setattr(Group, name, impatient(getattr(Group, name)))
        interrupts_once_ranks_wait(patch)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(faults.never_arrives, ranks=3)
        assert "never_arrives was interrupted." in str(caught.value) and "time.sleep(100)" in str(
            caught.value
        )
        # pressed while a good job is cleaned up: put off, not forgotten
        with pytest.raises(KeyboardInterrupt):
            run(faults.addresses)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts its background jobs
        try:
            run(faults.addresses)
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("function", ["faults.hangs_and_tells", "[faults.hangs_and_tells] * 3"])
def test_row_10_the_kernel_is_killed(tmp_path, function):
    """SIGKILL to a process that runs a job whose ranks wait in a native collective: nothing is left."""
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import faults
        from course_lib import run
        run({function}, {str(tmp_path)!r}, ranks=3)"""
    kernel = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert soon(lambda: len([path for path in tmp_path.glob("pid*") if path.stat().st_size]) == 3, 240)
    below = psutil.Process(kernel.pid).children(recursive=True)
    pids = {int(path.read_text()) for path in tmp_path.glob("pid*")}
    assert len(pids) == 3 and pids <= {process.pid for process in below}
    kernel.kill()
    kernel.wait()
    assert gone(below)


RESTARTS = """
import os, signal, socket, sys
sys.path.insert(0, sys.argv[1])
import faults
from course_lib import run
from course_lib.ranks import launch

def end(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[3]
start_again, send_fds = launch.Group.start_again, socket.send_fds

def start_again_and_end(*arguments):
    if where == "between order and channels":
        launch.socket.send_fds = end
    elif where == "before the order":
        launch.Group._ask_for = end
    start_again(*arguments)
    if where == "after both":
        end()

launch.Group.start_again = start_again_and_end
run(faults.hangs_in_the_second_attempt, sys.argv[2], ranks=3, restarts=1)
"""


@pytest.mark.parametrize("where", ["before the order", "between order and channels", "after both", "later"])
def test_row_10_the_kernel_is_killed_while_ranks_start_again(tmp_path, where):
    """No process and no directory is left, at whatever moment it is."""
    (tmp_path / "tmp").mkdir()
    traces = Traces(tmp_path / "tmp")
    arguments = [str(Path(__file__).parent), str(tmp_path), where]
    kernel = subprocess.Popen([sys.executable, "-c", RESTARTS, *arguments], env=traces.environ)
    try:
        if where == "later":
            assert soon(
                lambda: len([path for path in tmp_path.glob("pid*") if path.stat().st_size]) == 3, 600
            )
            assert traces.files()
        else:
            assert kernel.wait(600) == -signal.SIGKILL
    finally:
        kernel.kill()
        kernel.wait()
    assert traces.left(SOON_S) == []


@pytest.mark.parametrize(
    "starts, told", [(faults.starts_a_child, "child"), (faults.starts_a_session_and_fails, "session0")]
)
def test_what_a_rank_started_ends_with_it(nothing_left, tmp_path, starts, told):
    fails(starts, str(tmp_path), within=2 * SOON_S)
    child = int((tmp_path / told).read_text())
    assert not psutil.pid_exists(child) or gone([psutil.Process(child)])


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nobody adopts a process that has left its group"
)
def test_nothing_is_left_of_a_job_that_ends_well(nothing_left, tmp_path):
    run(faults.leaves_a_session, str(tmp_path))
    assert not [path for path in tmp_path.glob("session*") if psutil.pid_exists(int(path.read_text()))]


@pytest.mark.parametrize("keeps", [faults.keeps_shared_memory, faults.keeps_shared_tensors])
def test_shared_memory_of_a_rank_ends_with_it(nothing_left, keeps):
    assert not set(run(keeps).results) & set(os.listdir("/dev/shm"))


def test_the_environment_stands_in_no_file(nothing_left, monkeypatch, tmp_path):
    """What is sent has no name, and of the environment it has only what the fork server does not have
    already.
    """
    monkeypatch.setenv("OLD_NAME", "x")
    # as if it had been there when the server was started
    monkeypatch.setitem(fork_server.the_server()._environ, "OLD_NAME", "x")
    monkeypatch.setenv("NEW_SECRET", "not for others")
    monkeypatch.delenv("OLD_NAME")
    difference = fork_server.the_server().difference()
    assert (
        difference["environ"]["NEW_SECRET"] == "not for others"
        and "HOME" not in difference["environ"]
        and "OLD_NAME" in difference["environ_without"]
    )
    (found,) = run(faults.reads_its_directory, str(tmp_path), ranks=1).results
    assert found == {
        "secret": "not for others",
        "old": None,
        "files": ["rank0.out", "rank0.stack", "rendezvous"],
        "told": False,
    }


def test_the_supervisor_is_killed(nothing_left):
    """Its ranks end with it, and the kernel removes the directory."""
    assert "was killed (SIGKILL" in str(fails(faults.kills_its_supervisor))


def test_both_are_killed_and_the_next_start_sweeps(tmp_path):
    """Kernel and supervisor at once: nobody is left to remove the directory but the next fork server of this
    user.
    """
    (tmp_path / "tmp").mkdir()
    traces = Traces(tmp_path / "tmp")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import faults; from course_lib"
        " import run; "
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", code + f"run(faults.hangs_and_tells, {str(tmp_path)!r}, ranks=2)"],
        env=traces.environ,
    )
    assert soon(lambda: len([path for path in tmp_path.glob("pid*") if path.stat().st_size]) == 2, 240)
    supervisor = psutil.Process(int((tmp_path / "pid0").read_text())).parent()
    for process in (psutil.Process(kernel.pid), supervisor):
        process.suspend()
    for process in (kernel, supervisor):
        process.kill()
    kernel.wait()
    assert soon(lambda: len(traces.left(0)) == 1)
    (left,) = traces.left(0)
    assert left.startswith("course_lib-job-")
    subprocess.run(
        [sys.executable, "-c", code + "run(faults.addresses)"], env=traces.environ, check=True, timeout=600
    )
    assert traces.left(SOON_S) == []


def test_a_sweep_takes_only_what_nobody_holds(tmp_path):
    held, free, theirs = (
        tmp_path / name for name in ("course_lib-job-held", "course_lib-job-free", "job-of-others")
    )
    lock = folder.make(str(held))
    os.close(folder.make(str(free)))
    (free / "rank0.out").write_text("x")
    theirs.mkdir()
    for name in (
        "course_lib-output-new.txt",
        "course_lib-output-old.txt",
        "course_lib-check-old/state",
        "course_lib-check-new/state",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        if "old" in name:
            for each in (path, path.parent) if path.parent != tmp_path else (path,):
                os.utime(each, (0, 0))
    (tmp_path / "course_lib-job-link").symlink_to(theirs)
    folder.sweep(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "course_lib-job-held",
        "job-of-others",
        "course_lib-output-new.txt",
        "course_lib-check-new",
        "course_lib-job-link",
    }
    os.close(lock)
    folder.sweep(str(tmp_path))
    assert not held.exists()


def test_output_without_end_stops_the_job(nothing_left, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "MOST_BYTES", 5_000_000)
    error = fails(faults.prints_for_ever, timeout=60)
    assert (
        error.headline
        == "prints_for_ever cannot go on, and was stopped. Rank 1 has printed more than 5 MB: print less, or"
        " not in every step."
    )
    assert 'print("x" * 1000)' in error.reports[1].line
    assert len(error.reports[1].output) < 200_000 and "bytes left out ..." in error.reports[1].output
    assert not list(tmp_path.glob("course_lib-output*"))  # what was stopped for its size is not kept


@pytest.mark.parametrize("how", ["thread", "atexit"])
def test_output_without_end_after_the_function_stops_the_job(nothing_left, tmp_path, monkeypatch, how):
    monkeypatch.setattr(output, "MOST_BYTES", 5_000_000)
    with pytest.warns(
        RankWarning,
        match=(
            r"Ranks? (0 and )?1 had returned, and still worked when the job was stopped"
            r" \(faults.py, line \d+, in print_on\). "
            r"Rank 1 has printed more than 5 MB: print less, or not in every step. What was not done is lost."
        ),
    ) as heard:
        job = run(faults.prints_after_return, how, timeout=600)
    assert len(heard) == 1 and job.results == ["returned"] * 2 and len(job.output[1]) < 200_000
    assert not list(tmp_path.glob("course_lib-output*"))


LIMITED = """
import resource, sys
limit, number, ranks = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from course_lib import run
from course_lib.ranks import budget
sys.path.insert(0, sys.argv[1])
import faults
if "unforeseen" in sys.argv:
    budget.look = lambda *args: None
resource.setrlimit(getattr(resource, limit), (number, number))
for function in (faults.addresses, faults.starts_threads):
    try: print(run(function, ranks=ranks).ranks)
    except Exception as error: print(type(error).__name__, str(error).splitlines()[0])
"""


def limited(*arguments) -> list[str]:
    """What `run` says in a process under a limit, as a user to whom it applies."""
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), *map(str, arguments)]
    if os.getuid() == 0 and "RLIMIT_NPROC" in arguments:
        if not shutil.which("setpriv"):
            pytest.skip("root is free of this limit, and there is no setpriv to become somebody else")
        user = str(random.randrange(2**20, 2**21))  # with no other process
        caps = "-all,+dac_override,+dac_read_search"
        command = [
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
            f"--inh-caps={caps}",
            f"--ambient-caps={caps}",
            f"--bounding-set={caps}",
            *command,
        ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ).stdout.splitlines()


def test_row_13_a_limit_on_processes_is_told_as_such():
    first, _ = limited("RLIMIT_NPROC", 24, 8)
    assert re.match(
        r"ValueError ranks=8 is more than this machine allows: the limit on processes is 24, with \d+ in use,"
        r" and a rank counts for 5 ",
        first,
    )
    for number in (6, 18, 30):  # too few for the server, for the ranks, for their threads
        first, _ = limited("RLIMIT_NPROC", number, 8, "unforeseen")
        assert first.startswith(
            f"ValueError ranks=8 is more than this machine allows: the limit on processes is {number}, and a"
            " rank counts for 5 "
        ), (number, first)
    first, second = limited("RLIMIT_NPROC", 40, 2)
    assert first == "2"  # what fits runs, and what does not fit later is told with the limit
    assert re.match(
        r"RankError starts_threads failed on ranks? .*\. The limit on processes is 40 \(threads count"
        r" too\)\.$",
        second,
    ), second


def test_row_13_a_limit_on_open_files_is_told_as_such():
    first, _ = limited("RLIMIT_NOFILE", 16, 8)
    assert first.startswith(
        "ValueError ranks=8 is more than this machine allows: the limit on open files is 16. Close files"
    ), first


def test_row_13_processes_of_a_container_and_a_user_count(tmp_path):
    (tmp_path / "pids.current").write_text("90\n")
    (tmp_path / "pids.max").write_text("100\n")
    assert budget._processes(tmp_path) == (90, 100)
    (tmp_path / "pids.max").write_text("max\n")
    assert budget._processes(tmp_path)[1] != 100
    small = budget.Machine(cores=8, free_bytes=2**34, shm_free_bytes=None, processes=90, processes_limit=100)
    with pytest.raises(
        ValueError,
        match=(
            "ranks=3 is more than this machine allows: the limit on processes is 100, with 90 in use, and a"
            " rank counts for 5"
        ),
    ):
        budget.look(3, 1, small)
    assert budget.look(2, 1, small) is None


def test_a_fork_server_that_gives_no_answer_is_told_as_that(monkeypatch):
    monkeypatch.setattr(fork_server, "START_TIMEOUT_S", 0.5)
    server = fork_server.ForkServer()
    os.kill(server.process.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="gave no answer for .* minutes, and was stopped; the next run"):
        server.hand_over([])
    assert server.process.poll() is not None
    server.stop()


def test_a_supervisor_that_fails_says_so(nothing_left, tmp_path, monkeypatch):
    """And not that its ranks were killed for their memory."""
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            RuntimeError, match="addresses could not run, because the supervisor of its ranks failed .*null"
        ),
    ):
        patch.setattr(folder, "new_path", lambda: Path(f"{tmp_path}/a\0b"))
        patch.setattr(folder, "remove", lambda path: None)
        run(faults.addresses)
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="addresses cannot start, because its files cannot be written"),
    ):
        patch.setattr(folder, "new_path", lambda: tmp_path / "nowhere" / "job")
        run(faults.addresses)


def test_row_11_jobs_at_once(nothing_left):
    """Twelve jobs of 4 ranks at the same moment, from threads of one process (tests/bench runs 30 from 30
    processes).
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(12) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs = list(pool.map(lambda _: run(faults.addresses, ranks=4), range(12)))
    assert len(jobs) == 12


def test_row_12_very_long_output(nothing_left, tmp_path):
    job = run(faults.prints, 10)
    assert len(job.output[0]) < 200_000
    assert job.output[0].startswith("first line\n") and job.output[0].rstrip().endswith("last line")
    saved = [path for path in tmp_path.glob("course_lib-output-*")]
    assert len(saved) == 1 and saved[0].stat().st_size > 9e6 and str(saved[0]) in job.output[0]
    assert saved[0].stat().st_mode & 0o077 == 0
    saved[0].unlink()  # the one file that is kept on purpose


def test_row_13_a_small_machine():
    small = budget.Machine(cores=2, free_bytes=300 * 2**20, shm_free_bytes=2**30)
    with pytest.raises(ValueError, match="ranks=8 is more than this machine can hold.*at most 4 ranks"):
        budget.look(8, 1, small)
    roomy = budget.Machine(cores=2, free_bytes=2**34, shm_free_bytes=2**30)
    assert budget.look(4, 1, roomy) is None
    assert "Up to 8 ranks run well enough" in budget.look(12, 1, roomy)
    assert "/dev/shm has only 2 MB free" in budget.look(4, 1, budget.Machine(2, 2**34, 2_000_000))
    assert budget.look(4, 1, budget.Machine(2, 2**34, None)) is None


def test_row_13_threads_count_too():
    roomy = budget.Machine(cores=2, free_bytes=2**34, shm_free_bytes=2**30)
    with pytest.raises(
        ValueError,
        match="threads=65 is more than this machine can hold: it has 2 cores, and allows at most 64 threads.",
    ):
        budget.look(1, 65, roomy)
    with pytest.raises(ValueError, match="ranks=5 .* the cores allow at most 4 ranks"):
        budget.look(5, 16, roomy)
    assert "1 rank with 16 threads each share 2 cores" in budget.look(
        1, 16, roomy
    ) and "Up to 8 threads run well enough" in budget.look(1, 16, roomy)


def test_row_13_cached_files_of_a_container_make_room(tmp_path):
    for name, text in (
        ("memory.max", "1000"),
        ("memory.current", "950"),
        ("memory.stat", "anon 100\nactive_file 300\ninactive_file 500\n"),
    ):
        (tmp_path / name).write_text(text)
    assert budget._cgroup_free_bytes(tmp_path) == 850
    (tmp_path / "memory.max").write_text("max\n")
    assert budget._cgroup_free_bytes(tmp_path) == float("inf") == budget._cgroup_free_bytes(tmp_path / "none")


def test_no_room_for_temporary_files(nothing_left, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            OSError,
            match="cannot start, because its files cannot be written to the folder for temporary .*TMPDIR",
        ),
    ):
        patch.setattr(tempfile, "tempdir", "/proc/self")
        run(faults.addresses)


def test_row_15_the_last_complete_checkpoint_is_found_after_a_kill(nothing_left, tmp_path):
    root = tmp_path / "saved"
    run(faults.saves, root, 9)
    error = fails(faults.saves, root, 10, killed=True)
    assert "was killed" in error.reports[1].state
    assert len(list(root.iterdir())) == 2, "nothing of the second save is there: it was not interrupted"
    assert run(faults.loads, root).results == [(9, [9.0, 9.0])] * 2


def test_row_16_nobody_can_connect(nothing_left, tmp_path):
    job = run(faults.addresses, ranks=3)
    assert all(
        set(listening) <= {"127.0.0.1"} and set(peers) <= {"127.0.0.1"} for listening, peers in job.results
    )
    os.umask(umask := os.umask(0))
    assert run(faults.modes, str(tmp_path)).results == [({0o700}, {0o600}, umask)] * 2
    assert only_the_server_is_left()
    # no store listens in kernel, server or supervisor
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        assert not [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def test_an_error_reads_the_same_everywhere(nothing_left):
    error = fails(faults.raises, ranks=3)
    plain = "\n".join(error._render_traceback_())
    plain = re.sub(r"\x1b\[[\d;]*m", "", plain)
    assert str(error) in plain
    assert all(report.state in error._repr_html_().replace("&#x27;", "'") for report in error.reports)
    import pickle

    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_server_is_replaced_when_it_dies(nothing_left):
    (server,) = [p for p in psutil.Process().children() if "course_lib.ranks.server" in " ".join(p.cmdline())]
    server.kill()
    server.wait()
    assert run(faults.addresses, ranks=2).ranks == 2
