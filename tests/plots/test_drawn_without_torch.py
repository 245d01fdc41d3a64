"""A saved job is drawn where torch is not installed, and without the launcher."""

import os
import subprocess
import sys
from pathlib import Path

from test_plots import make_job

ROOT = Path(__file__).resolve().parents[2]
DRAW_EVERYTHING = """
import inspect, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is not installed here")

sys.meta_path.insert(0, NoTorch())

import matplotlib
matplotlib.use("Agg")
from course_lib import Job, Sweep, plots
from course_lib.plots import pictures

job, numbers = Job.load(sys.argv[1]), [[1, 2], [10, 20]]
step = pictures.ring_steps([[("start", None, row)] for row in numbers])[0]
drawn = {
    "communication": plots.communication(job, theory=1e6),
    "memory": plots.memory(job, theory={"params": 4000}),
    "timeline": plots.timeline(job),
    "speedup": plots.speedup(Sweep("train", (job,), 1), theory=lambda n: n, scaling="weak"),
    "alive": plots.alive([("F0", [4]), ("B0", [4])], "layers", job.where),
    "schedule": plots.schedule([(0, 0, 0, "forward", 0.0, 1.0)], "schedule"),
    "panel": plots.panel("own", job.where),
    "collective": pictures.collective("all_gather", "", numbers, numbers),
    "ring": pictures.ring(step),
    "mesh": pictures.mesh("mesh", "", [{"dp": 0}, {"dp": 1}], {"dp": [[0, 1]]}),
    "equation": pictures.equation("product", "", "=", ("A", 2, 2, "whole")),
    "slider": pictures.slider(lambda number: pictures.ring(step), 1),
}
for ax in drawn.values():
    if ax is not None:
        ax.figure.savefig(sys.argv[2])
public = {name: getattr(module, name) for module in (plots, pictures) for name in module.__all__}
offered = {name for name, value in public.items() if inspect.isfunction(value)}
assert offered - set(drawn) == {"sources", "ring_steps"}, offered - set(drawn)
assert not {"torch", "course_lib.ranks", "course_lib.jobs", "course_lib.measure"} & set(sys.modules)
print("all drawn")
"""


def test_a_saved_job_is_drawn_where_torch_is_not_installed(tmp_path):
    make_job().save(tmp_path / "job.json")
    finished = subprocess.run(
        [sys.executable, "-c", DRAW_EVERYTHING, tmp_path / "job.json", tmp_path / "figure.png"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("all drawn\n")
