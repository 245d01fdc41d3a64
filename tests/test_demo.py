"""The demo prints one row per strategy, and saves pictures and jobs that can be read again."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import image

from course_lib import Job, theory
from course_lib.strategies import ONE_PROCESS, STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
NAMES = [strategy.name for strategy in (ONE_PROCESS, *STRATEGIES)]


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "course_lib.demo", "--out", str(folder), *arguments]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200)


def rows(text: str) -> dict[str, list[str]]:
    """The table's cells after the name, by name; cells are two spaces apart."""
    lines = text.split("---\n", 1)[1].split("\n\n")[0].splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("ranks, epochs", [(1, 1), (2, 16)])
def test_the_demo_prints_its_table_and_saves_pictures_and_jobs(tmp_path, ranks, epochs):
    finished = demo(tmp_path, "--ranks", str(ranks), "--epochs", str(epochs), "--repeats", "1")
    assert finished.returncode == 0, finished.stderr
    table = rows(finished.stdout)
    assert list(table) == NAMES
    accuracies = [float(cells[1].rstrip("%")) for cells in table.values()]
    assert max(accuracies) - min(accuracies) < 1 and (epochs == 1 or min(accuracies) > 90)
    for name, cells in table.items():
        assert len(cells) == 9 and cells[0] == ("1" if name == ONE_PROCESS.name else str(ranks))
        assert all(float(cell.replace(",", "")) > 0 for cell in cells[2:4])
        assert cells[5:7] == ["-", "-"] if cells[0] == "1" else cells[6].endswith("%")
    for name in ("communication", "memory", "speedup"):
        height, width, _ = image.imread(tmp_path / f"{name}.png").shape
        assert height > 300 and width > 600 and f"{name}.png" in finished.stdout

    jobs = [Job.load(path) for path in sorted((tmp_path / "jobs").iterdir())]
    assert sorted(job.label for job in jobs) == sorted(NAMES)
    losses = [job.results[0]["loss"] for job in jobs]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=0.02), "all strategies do the same mathematics"
    for strategy in STRATEGIES:
        job = next(job for job in jobs if job.label == strategy.name)
        params = 4 * job.results[0]["numel"]
        assert job.ranks == ranks and set(job.steps["phase"]) == {"warm-up", "traced", "timed"}
        sent = job.steps.loc[job.steps["phase"] == "timed", "wire_bytes"].astype(float).mean()
        assert sent == pytest.approx(theory.step_bytes(strategy.step_bytes_on_gloo, params, ranks), rel=0.03, abs=1000)
        held = job.memory[job.memory["category"].isin(("params", "grads", "optimizer_states"))]["bytes"].sum() / ranks
        assert held == pytest.approx(sum(theory.zero_memory(params // 4, ranks, strategy.stage).values()), rel=0.02)


def test_wrong_options_are_refused(tmp_path):
    finished = demo(tmp_path, "--ranks", "0")
    assert finished.returncode == 2 and "at least 1" in finished.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_same_command_works_with_a_gpu(tmp_path):
    finished = subprocess.run([sys.executable, "-m", "course_lib.demo", "--out", str(tmp_path), "--ranks", "2", "--epochs", "1", "--repeats", "1"],
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert list(rows(finished.stdout)) == NAMES and torch.cuda.get_device_name(0) in finished.stdout
