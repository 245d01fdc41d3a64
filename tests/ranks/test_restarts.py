"""Jobs that start again after a failure: how often, on how many ranks, and what is told of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from test_faults import SOON_S, fails, late, nothing_left, once, stand
from test_progress import CLEAN, terminal

from course_lib import Job, RankError, run, sweep
from course_lib.ranks import devices
from course_lib.ranks.attempts import Attempts
from course_lib.ranks.errors import RankInterrupt, RankReport
from course_lib.ranks.launch import Group, RankState
from course_lib.ranks.options import Options
from course_lib.record.tables import COLUMNS

assert nothing_left  # a fixture

BOOM = RankError(
    "train failed on rank 1.",
    [
        RankReport(0, "stopped because rank 1 failed"),
        RankReport(1, "raised ValueError: two\n\nlines", "a.py, line 3, in train", "x", cause=True),
    ],
    "train",
)


def after(*statuses, restarts=1, min_ranks=None, **more):
    """What is decided after a failure in which ranks had ended like this, and what the error says then."""
    attempts = Attempts(Options(len(statuses), "auto", 60.0, 1, "train", restarts, min_ranks))
    states = [RankState(rank, phase="running", status=status) for rank, status in enumerate(statuses)]
    return attempts.who_comes_back(BOOM, states, [""], **more), str(attempts.tell(BOOM)).splitlines()


@pytest.mark.parametrize(
    "statuses, min_ranks, back",
    [
        ((None, None), None, [0, 1]),
        ((None, -signal.SIGKILL), None, [0, 1]),
        ((-signal.SIGKILL, None), 1, [1]),
        ((None, -signal.SIGTERM, -signal.SIGKILL), 1, [0]),
        ((None, -signal.SIGSEGV), 1, [0, 1]),
        ((None, -signal.SIGABRT, 3, 0), 1, [0, 1, 2, 3]),
        ((-signal.SIGKILL,) * 3, 1, []),
        ((None, None, -signal.SIGKILL), 3, []),
    ],
)
def test_who_was_killed_from_outside_comes_back_without_min_ranks_only(statuses, min_ranks, back):
    assert after(*statuses, min_ranks=min_ranks)[0] == back


def test_a_rank_that_was_killed_after_it_had_failed_by_itself_comes_back():
    attempts = Attempts(Options(2, "auto", 60.0, 1, "train", 1, 1))
    states = [RankState(rank, phase="failed", status=-signal.SIGKILL) for rank in range(2)]
    assert attempts.who_comes_back(BOOM, states, [""]) == [0, 1]


def test_a_step_is_done_when_all_ranks_have_done_it():
    def steps(*last, roles=()):
        attempts = Attempts(Options(3, "auto", 60.0, 1, "train", 1))
        states = [RankState(rank, roles, step=step, begun_at=7) for rank, step in enumerate(last)]
        attempts.keep(states, [""])
        return attempts.past[0].steps

    assert steps(4, 3, 5) == 4 and steps(0, None, 1) == 0 and steps(None, None, None) == 0
    assert steps(None, 3, 5, roles=["serve", "work", "work"]) == 4


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(restarts=0), "train failed on rank 1."),
        (dict(timed_out=True), "It was attempt 1 of 2; the timeout is for all attempts together."),
        (dict(supervised=False), "It was attempt 1 of 2; the process that starts ranks was ended, too."),
        (dict(min_ranks=2), "It was attempt 1 of 2; ranks that are left: 1, and min_ranks=2."),
    ],
)
def test_why_there_is_no_other_attempt_is_told(options, words):
    ranks, lines = after(None, -signal.SIGKILL, **options)
    assert ranks == [] and lines[0].endswith(words)
    reason = "  attempt 1 (2 ranks): rank 1 raised ValueError: two lines (a.py, line 3, in train)"
    assert (lines[-1] == reason) is (options != dict(restarts=0))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(restarts=-1), "restarts=-1: it must be a whole number of at least 0."),
        (dict(restarts=1.5), "restarts=1.5"),
        (dict(restarts=True), "restarts=True"),
        (dict(restarts=1, min_ranks=0), "min_ranks=0: it must be a whole number from 1 to 2."),
        (dict(restarts=1, min_ranks=3), "min_ranks=3: it must be a whole number from 1 to 2."),
        (dict(min_ranks=1), "min_ranks=1: it is on how few ranks a job may start again. Give restarts=1"),
    ],
)
def test_row_14_bad_restarts(options, words):
    with pytest.raises(ValueError) as caught:
        run(faults.variables_of_torchrun, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_row_14_restarts_where_they_make_no_sense():
    with pytest.raises(ValueError, match="each rank has a function of its own, so none can be left out"):
        run([faults.serves, faults.works], "waits", restarts=1, min_ranks=1)
    for options in (dict(restarts=1), dict(min_ranks=1)):
        with pytest.raises(ValueError, match="sweep compares times.*are for run"):
            sweep(faults.variables_of_torchrun, **options)


def test_a_job_that_goes_well_at_once_has_one_attempt_or_none(nothing_left):
    job = run(faults.variables_of_torchrun, restarts=2)
    assert job.results == [["0", "2"]] * 2
    (attempt,) = job.attempts
    assert (attempt.number, attempt.ranks, attempt.reason, attempt.steps) == (1, 2, "", 0)
    job = run(faults.variables_of_torchrun)
    assert job.results == [["0", "0"]] * 2 and job.attempts == []


def test_one_that_was_killed_from_outside_is_left_out(nothing_left, tmp_path):
    job = run(faults.trains, str(tmp_path), 1, "killed", ranks=3, restarts=2, min_ranks=2)
    # four steps of three ranks were saved
    assert job.results == [(4 * 3.0 + 2 * 2.0, 1, 2)] * 2 and job.ranks == 2
    assert [attempt.ranks for attempt in job.attempts] == [3, 2]
    assert job.steps["rank"].nunique() == 2 and len(job.output) == 2
    lost, last = job.attempts
    assert {row["rank"] for row in lost.records["steps"]} == {0, 1, 2}
    assert len(lost.records["steps"]) >= 3 * lost.steps > 0
    for table in ("comm", "timeline"):  # of the traced step, which each had ended
        assert {row["rank"] for row in lost.records[table]} == {0, 1, 2}
    assert all(last.records[table] == job.records[table] for table in COLUMNS)


def test_too_few_are_left(nothing_left, tmp_path):
    error = fails(faults.trains, str(tmp_path), 9, "terminated", ranks=2, restarts=5, min_ranks=2)
    assert error.headline == (
        "trains failed on rank 1. It was attempt 1 of 6; ranks that are left: 1, and min_ranks=2."
    )


def test_one_that_fails_by_itself_comes_back(nothing_left, tmp_path):
    job = run(faults.trains, str(tmp_path), 1, "crashes", ranks=2, restarts=1, min_ranks=1)
    assert job.results == [(12.0, 1, 1)] * 2


def test_nothing_of_an_attempt_is_left_when_the_next_begins(nothing_left, tmp_path):
    (tmp_path / "told").mkdir()
    job = run(faults.leaves_a_session_and_looks, str(tmp_path / "told"), ranks=2, restarts=1)
    assert job.results == [False, False] and job.output == ["", ""]
    assert [text.count("before") for text in job.attempts[0].output] == [1, 1]


def test_a_job_whose_time_is_over_does_not_start_again(nothing_left, monkeypatch):
    error = late(monkeypatch, stand(1), faults.never_arrives, ranks=2, restarts=2)
    assert "It was attempt 1 of 3; the timeout is for all attempts together." in error.headline
    assert str(error.attempts[0]).startswith("attempt 1 (2 ranks): was stopped: it had not finished after")


def press_in_the_second(monkeypatch):
    """SIGINT as soon as the ranks of the second attempt hang."""
    began = []
    start_again = Group.start_again
    monkeypatch.setattr(Group, "start_again", lambda *args: (start_again(*args), began.append(1)))
    return once(
        monkeypatch,
        lambda states: began and states[0].where and states[1].where.get("call"),
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )


def test_an_interrupt_ends_at_once_and_is_never_followed_by_another_attempt(
    nothing_left, tmp_path, monkeypatch
):
    pressed = press_in_the_second(monkeypatch)
    with pytest.raises(RankInterrupt) as caught:
        run(faults.hangs_in_the_second_attempt, str(tmp_path), restarts=5)
    assert time.monotonic() - pressed[0] < SOON_S
    error = caught.value
    assert error.headline == "hangs_in_the_second_attempt was interrupted. It was attempt 2 of 6."
    assert len(error.attempts) == 1 and "time.sleep(1000)" in error.reports[0].line


def test_an_interrupt_while_ranks_start_again(nothing_left, monkeypatch):
    start_again = Group.start_again

    def press_first(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        start_again(*args)

    monkeypatch.setattr(Group, "start_again", press_first)
    with pytest.raises(RankInterrupt, match="everyone_raises was interrupted. It was attempt 2 of 6."):
        run(faults.everyone_raises, restarts=5)


def test_the_supervisor_is_killed_and_nobody_starts_again(nothing_left):
    error = fails(faults.kills_its_supervisor_once, restarts=3)
    assert "It was attempt 1 of 4; the process that starts ranks was ended, too." in error.headline


def test_in_a_terminal_each_failure_has_a_line_and_what_ranks_print_comes_anew(
    monkeypatch, tmp_path, nothing_left
):
    written = terminal(monkeypatch)
    monkeypatch.setattr("course_lib.ranks.progress.QUIET_S", 1000.0)  # as if all were over at once
    run(faults.trains, str(tmp_path), 1, ranks=2, restarts=1)
    lines = written.getvalue().replace("\r", "").replace("\x1b[K", "").splitlines()
    assert lines[:2] == [f"rank {rank} | attempt 0 from step 0 on 2" for rank in range(2)]
    assert lines[2].startswith(
        "attempt 1 (2 ranks, 5 steps): rank 1 raised ValueError: boom (faults.py, line"
    )
    assert lines[3:] == [
        *(f"rank {rank} | attempt 1 from step 4 on 2" for rank in range(2)),
        "trains on 2 ranks: 2 attempts, 1 of 7 steps was done again",
    ]
    assert CLEAN in written.getvalue()


SCRIPT = """
import json, sys
import torch.distributed as dist
import faults
dist.init_process_group("gloo")
result = faults.trains(sys.argv[1], 1)
with open(f"{sys.argv[1]}/{dist.get_rank()}.json", "w") as file:
    json.dump(result, file)
dist.destroy_process_group()
"""


def test_under_torchrun_the_same_function_starts_again_alike(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "ours").mkdir()
    job = run(faults.trains, str(tmp_path / "ours"), 1, restarts=2)
    folders = [Path(faults.__file__).parent, Path(faults.__file__).parents[2]]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += ["--nproc-per-node=2", "--max-restarts=2", str(tmp_path / "script.py"), str(tmp_path)]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "GLOO_SOCKET_IFNAME": devices.loopback(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        # else all attempts share one store, and gloo finds the addresses of ranks that are gone in it
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = [tuple(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(2)]
    assert theirs == job.results == [(12.0, 1, 2)] * 2
    for attempt in job.attempts:
        for text in attempt.output:
            assert text.strip() in done.stdout  # torchrun may put two lines of two ranks into one


def test_a_job_that_has_started_again_is_loaded_as_it_was(tmp_path, nothing_left):
    job = run(faults.trains, str(tmp_path), 1, ranks=2, restarts=1)
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json").attempts == job.attempts
