"""A saved job can be loaded and read where torch is not installed."""

import os
import subprocess
import sys
from pathlib import Path

from saved_job import job

import course_lib

# Put before a program: from here on torch cannot be imported.
NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""

READ = """
from course_lib import Job, Sweep, bubble, calls, held, overlap, parity, sent, step_seconds

job = Job.load(sys.argv[1])
print(job.steps, job.comm, job.memory, job.timeline, job)
assert sent(job).tolist() == [250, 251] and held(job)["params"].tolist() == [40, 41]
assert calls(job).loc[0, "all_reduce"] == 2 and len(step_seconds(job)) == 3
assert overlap(job)["communication_s"].tolist() == [0.1, 0.1] and 0 < bubble(job) < 1
assert parity(job, [[1.0, 2.0]]) == 0
print(Sweep("sweep", (job,), repeats=1).table)
assert "torch" not in sys.modules
"""


def run_without_torch(program: str, *arguments) -> None:
    """Run a program in an interpreter of its own, in which importing torch fails."""
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(course_lib.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr


def test_a_saved_job_is_loaded_and_read(tmp_path):
    job().save(tmp_path / "job.json")
    run_without_torch(READ, tmp_path / "job.json")
