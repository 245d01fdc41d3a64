"""Rows 25 to 28 of the table of faults, injected for real; rows 2 to 8 once more, on nodes; jobs that are
interrupted, or lose their kernel.

`jobs` looks after each test that nothing is left: no job, no process, no file.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cluster_workers
import faults
import psutil
import pytest
from slurm_fixtures import cluster, jobs
from test_faults import late, stand

from course_lib import RankError, RankWarning, hosts, run
from course_lib.ranks.errors import RankInterrupt
from course_lib.ranks.progress import Progress

assert cluster and jobs  # fixtures

SOON_S = 60.0  # generous, for a busy machine


class Hanging:
    """A job that hangs: `when(act)` acts once all its ranks do, in a thread."""

    def __init__(self, folder: Path, ranks: int):
        self._folder, self._ranks, self.acted_at = folder, ranks, 0.0

    @property
    def told(self) -> list[list[int]]:
        """Of each rank: its process, the one that it has left behind, the number of the job."""
        paths = [self._folder / f"hangs{rank}" for rank in range(self._ranks)]
        return [list(map(int, path.read_text().split())) for path in paths if path.exists()]

    def when(self, act) -> threading.Thread:
        def wait():
            end = time.monotonic() + 2 * SOON_S
            while not (len(told := self.told) == self._ranks and all(len(one) == 3 for one in told)):
                if time.monotonic() > end:
                    return
                time.sleep(0.05)
            time.sleep(0.5)  # rank 0 is in its recv
            self.acted_at = time.monotonic()
            act(str(told[0][2]))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def is_gone(self) -> bool:
        """Whether, soon, no process of it is left."""
        end = time.monotonic() + SOON_S
        while any(_lives(pid) for one in self.told for pid in one[:2]):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def hanging(tmp_path):
    return Hanging(tmp_path, 2)


@pytest.fixture
def alone(tmp_path):
    return Hanging(tmp_path, 1)


def fails(hanging, jobs, act, nodes: int = 1, **options) -> RankError:
    """The error of a job of hanging ranks, on which `act(number of the job)` is done."""
    acting = hanging.when(act)
    with pytest.raises(RankError) as caught:
        run(
            cluster_workers.tells_and_hangs,
            str(hanging._folder),
            ranks=hanging._ranks,
            timeout=300,
            on=hosts.Slurm(nodes, folder=jobs, **options),
        )
    print(f"told after {time.monotonic() - hanging.acted_at:.1f} s: {caught.value.headline}")
    acting.join()
    assert hanging.is_gone()
    return caught.value


def tells_where_ranks_were(error: RankError) -> bool:
    first, second = error.reports
    return (
        first.state.startswith("waits in recv from rank 1")
        and first.line.startswith("dist.recv(")
        and first.output == "rank 0 hangs\n"
        and second.line == "time.sleep(600)"
        and not first.cause
    )


def test_row_27_somebody_cancels_the_job(cluster, jobs, hanging):
    error = fails(hanging, jobs, lambda number: cluster.ask("scancel", number))
    assert error.headline.startswith("tells_and_hangs was stopped from outside. Slurm job ")
    assert "was cancelled from outside this notebook (scancel" in error.headline
    assert tells_where_ranks_were(error)


def test_row_25_the_time_that_slurm_gives_is_over(cluster, jobs, hanging):
    """Slurm counts in minutes and looks twice a minute: the limit is put to now, for a test's sake."""

    def end_now(number):
        cluster.ask("scontrol", "update", f"JobId={number}", "EndTime=now")

    error = fails(hanging, jobs, end_now, minutes=1)
    assert "its time limit of 1 minute was over. Ask for more: hosts.Slurm(..., minutes=10)" in error.headline
    assert tells_where_ranks_were(error)


def test_row_26_slurm_kills_for_memory(cluster, jobs):
    with pytest.raises(RankError) as caught:
        run(cluster_workers.grows, 3000, timeout=200, on=hosts.Slurm(1, folder=jobs, more={"mem": "1500M"}))
    assert "Slurm killed job " in caught.value.headline and " on node n1 " in caught.value.headline
    assert "MB, and it may use 1,573 MB. Ask for more: hosts.Slurm(..., more=" in caught.value.headline
    assert caught.value.reports[0].output == "grows\n"


def test_row_28_a_node_fails(cluster, jobs, hanging):
    try:
        error = fails(hanging, jobs, lambda number: cluster.kill_node("n2"), nodes=2)
        assert error.headline.startswith("tells_and_hangs was stopped from outside. Node n2 of Slurm job ")
        assert error.reports[0].state.startswith(("waits in recv from rank 1", "raised RuntimeError: "))
        assert error.reports[0].line.startswith("dist.recv(")
        assert [report.output for report in error.reports] == ["rank 0 hangs\n", "rank 1 hangs\n"]
    finally:
        cluster.revive_node("n2")


@pytest.mark.parametrize(
    "fault, words, states",
    [
        pytest.param(
            faults.is_killed,
            "is_killed failed on rank 1 (host 1).",
            ["stopped because rank 1 (host 1) failed", "was killed (SIGKILL"],
            id="row 2",
        ),
        pytest.param(
            faults.leaves_early,
            "Rank 1 (host 1) has finished without calling all_reduce, in which rank 0 (host 0) waits.",
            ["waits in all_reduce of float32[4]", "had finished"],
            id="row 3",
        ),
        pytest.param(
            faults.different_collectives,
            "rank 0 (host 0) called broadcast of float32[4]; rank 1 (host 1) called all_gather",
            ["", ""],
            id="row 5",
        ),
        pytest.param(
            faults.other_shape,
            "rank 0 (host 0) called all_reduce of float32[9]; rank 1 (host 1) called all_reduce of",
            ["", ""],
            id="row 6",
        ),
    ],
)
def test_rows_2_to_6_what_ranks_do_to_each_other(cluster, jobs, fault, words, states):
    """As on one machine."""
    with pytest.raises(RankError) as caught:
        run(fault, timeout=300, on=hosts.Slurm(2, folder=jobs))
    assert words in caught.value.headline
    assert all(report.state.startswith(state) for report, state in zip(caught.value.reports, states))


def test_row_4_a_rank_never_arrives(cluster, jobs, monkeypatch):
    error = late(monkeypatch, stand(1), faults.never_arrives, on=hosts.Slurm(2, folder=jobs))
    assert "Rank 0 (host 0) waits in all_reduce; rank 1 (host 1) is not there." in error.headline


def test_row_7_swapped_tensors(cluster, jobs):
    with pytest.warns(RankWarning, match=r"from different lines: rank 0 \(host 0\) at faults.py, line "):
        run(faults.swapped, on=hosts.Slurm(2, folder=jobs))


def test_row_8_a_rank_is_stopped(cluster, jobs, monkeypatch):
    """The notebook does not know its process: it may be on another machine."""

    def holds(states) -> bool:
        return bool(states[0].where.get("call")) and psutil.STATUS_STOPPED in map(
            _status, cluster.processes()
        )

    error = late(monkeypatch, holds, faults.is_stopped, on=hosts.Slurm(2, folder=jobs))
    assert error.reports[0].state == "waits in all_reduce of float32[4]"
    assert error.reports[1].state == "does not respond"


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return ""


def test_an_interrupt_cancels_the_job(cluster, jobs, alone):
    acting = alone.when(lambda number: os.kill(os.getpid(), signal.SIGINT))
    folder, one = str(alone._folder), hosts.Slurm(1, folder=jobs)
    with pytest.raises(RankInterrupt) as caught:
        run(cluster_workers.tells_and_hangs, folder, ranks=1, timeout=300, on=one)
    acting.join()
    assert caught.value.headline == "tells_and_hangs was interrupted." and alone.is_gone()
    assert caught.value.reports[0].line == "time.sleep(600)"


def test_an_interrupt_takes_a_job_out_of_the_queue(cluster, jobs, monkeypatch):
    before = cluster.ask(
        "sbatch", "--parsable", "--exclusive", "-N2", "-o/dev/null", "--wrap", "exec sleep 600"
    )

    def interrupt(self, text, fraction=None, outputs=tuple):
        if "Resources" in text:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", interrupt)
    try:
        with pytest.raises(RankInterrupt, match="It did not run yet: it waits in Slurm's queue, .*Resources"):
            run(cluster_workers.work, on=hosts.Slurm(2, folder=jobs))
        assert cluster.ask("squeue", "-h", "-o", "%i") == before
    finally:
        cluster.ask("scancel", before)


def test_the_process_that_speaks_to_slurm_is_killed(cluster, jobs, alone):
    error = fails(alone, jobs, lambda number: courier_of(os.getpid()).kill())
    assert error.headline.endswith("The process beside the notebook that speaks to Slurm was killed.")


def courier_of(pid: int) -> psutil.Process:
    (found,) = [p for p in psutil.Process(pid).children() if "slurm.courier" in " ".join(p.cmdline())]
    return found


@pytest.mark.parametrize("both", [False, True], ids=["the kernel", "kernel and courier"])
def test_nothing_is_left_when_the_kernel_is_killed(cluster, jobs, alone, both):
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import cluster_workers
        from course_lib import hosts, run
        from course_lib.ranks.slurm import group
        group.SILENT_S = 4.0
        run(cluster_workers.tells_and_hangs, {str(alone._folder)!r}, ranks=1, timeout=300,
            on=hosts.Slurm(1, folder={str(jobs)!r}))"""
    kernel = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])

    def kill(number):
        courier = courier_of(kernel.pid)
        kernel.kill()
        if both:
            courier.kill()

    alone.when(kill).join()
    assert kernel.wait(SOON_S) == -signal.SIGKILL
    assert len(alone.told) == 1 and alone.is_gone()
