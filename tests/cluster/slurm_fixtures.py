"""A real Slurm for the tests of each file of this folder, which import these fixtures."""

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest
import slurm_here

from course_lib import hosts


@pytest.fixture(scope="module")
def cluster():
    """A Slurm with two nodes. Where it cannot be had, a test is skipped, with the reason."""
    if reason := slurm_here.missing():
        pytest.skip(f"a real Slurm is needed: {reason}")
    try:
        cluster = slurm_here.SlurmHere().__enter__()
    except RuntimeError as error:
        pytest.skip(f"a real Slurm is needed: {error}")
    with contextlib.ExitStack() as stack:
        stack.push(cluster)
        os.environ.update(cluster.environ)
        if reason := hosts.Slurm(2).missing():
            pytest.skip(reason)
        stack.callback(os.environ.pop, "SLURM_CONF", None)
        yield cluster


@pytest.fixture
def jobs(cluster, tmp_path):
    """The folder for jobs. After the test nothing is left of them: no job, no process, no file."""
    folder = tmp_path / "jobs"
    yield folder
    end = time.monotonic() + 30
    while left := _left(cluster, folder):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _left(cluster, folder: Path) -> list:
    """Jobs that Slurm knows to be under way, processes of ranks, agents and couriers, and folders of jobs."""
    here = [process for process in psutil.process_iter(["cmdline", "status"]) if process.pid != os.getpid()]
    mine = [process for process in here if str(folder) in " ".join(process.info["cmdline"] or [])]
    return [
        *cluster.ask("squeue", "-h", "-o", "%i %T").splitlines(),
        *(p for p in mine if p.info["status"] != psutil.STATUS_ZOMBIE),
        *(p for p in psutil.Process().children(recursive=True) if "courier" in " ".join(_words(p))),
        *(folder.iterdir() if folder.exists() else ()),
    ]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
