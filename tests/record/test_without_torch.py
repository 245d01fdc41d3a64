"""A saved job can be loaded, and every reading taken, where torch is not installed."""

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
import course_lib
from course_lib import Job, Sweep, record

# what a reading takes beside the job
MORE = {"parity": ([[1.0, 2.0]],)}
job = Job.load(sys.argv[1])
print(job.steps, job.comm, job.memory, job.timeline, job)
found = {
    name: getattr(course_lib, name)(job, *MORE.get(name, ()))
    for name in record.__all__
    if name not in ("Job", "Sweep")
}
assert found["sent"].tolist() == [250, 251] and found["held"]["params"].tolist() == [40, 41]
assert found["calls"].loc[0, "all_reduce"] == 2 and len(found["step_seconds"]) == 3
assert found["overlap"]["communication_s"].tolist() == [0.1, 0.1] and 0 < found["bubble"] < 1
assert found["parity"] == 0 and found["span_seconds"] > 0 and found["samples_per_second"] > 0
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
