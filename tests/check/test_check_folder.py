"""The folders in which trials write: nothing stays of them, also where a kernel is killed in the midst of a
check.
"""

import subprocess
import sys
import time

import pytest
from left_behind import Traces

from course_lib.check.folder import trial_folder

SOON_S = 60.0  # for what ends by itself
KILLED = """
import pathlib, time
from course_lib import check

def waits(*arguments):
    pathlib.Path({told!r}).touch()
    time.sleep(1000)

check.{name}(*[waits] * {answers})
"""


def test_a_folder_is_gone_after_the_block_also_where_it_raises():
    with pytest.raises(ZeroDivisionError), trial_folder() as folder:
        (folder / "more").mkdir()
        (folder / "more" / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
        _ = 1 / 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "answers"),
    [("chain_broadcast", 1), ("sharded_checkpoint", 2)],
)
def test_the_next_start_sweeps_what_a_killed_check_has_left(name, answers, tmp_path):
    (tmp_path / "tmp").mkdir()
    traces, told = Traces(tmp_path / "tmp"), tmp_path / "told"
    code = KILLED.format(told=str(told), name=name, answers=answers)
    kernel = subprocess.Popen([sys.executable, "-c", code], env=traces.environ)
    while not told.exists():
        with pytest.raises(subprocess.TimeoutExpired):  # it runs
            kernel.wait(0.05)
    kernel.kill()
    kernel.wait()
    deadline = time.monotonic() + SOON_S
    while len(left := traces.left(0)) != 1:  # processes, and the job's own directory, go by themselves
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert left[0].startswith("course_lib-job-")
    code = "from course_lib import run; run(len, (), ranks=1)"
    subprocess.run([sys.executable, "-c", code], env=traces.environ, check=True, timeout=600)
    assert traces.left(SOON_S) == []
