"""The demo prints one row per strategy, and saves pictures and jobs that can be read again."""

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from matplotlib import image

from course_lib import Job
from course_lib.demo.__main__ import main
from course_lib.demo.strategies import BASES, ONE_PROCESS, STRATEGIES, train_digits
from course_lib.jobs import run_quietly

ROOT = Path(__file__).resolve().parents[2]


def by_command(*arguments: str, cwd: Path, **environ: str) -> str:
    """What `python -m course_lib.demo` prints."""
    environ = {
        **os.environ,
        **environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    finished = subprocess.run(
        [sys.executable, "-m", "course_lib.demo", *arguments],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def rows(text: str) -> dict[str, list[str]]:
    """The table's cells after the name, by name; cells are two spaces apart."""
    lines = text.split("---\n", 1)[1].split("\n\n")[0].splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_demo_prints_its_table_and_saves_pictures_and_jobs(tmp_path, ranks, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path), "--ranks", str(ranks), "--epochs", "1", "--repeats", "1"]
    if ranks == 4:
        printed = by_command(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    else:  # here, which is the same without starting a Python
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert main(arguments) == 0
        printed = capsys.readouterr().out
    table = rows(printed)
    fitting = [strategy for strategy in STRATEGIES if strategy.fits(ranks)]
    names = [
        [base.name, *(strategy.name for strategy in fitting if strategy.network is base.network)]
        for base in BASES
    ]
    assert list(table) == sum(names, []) and (
        len(table) == 19 or "Left out with 1 rank: data x tensor (needs 4 ranks" in printed
    )
    for of_one_network in names:
        accuracies = [float(table[name][1].rstrip("%")) for name in of_one_network]
        assert max(accuracies) - min(accuracies) < 1
    bases = {base.name for base in BASES}
    for name, cells in table.items():
        assert len(cells) == 9 and cells[0] == ("1" if name in bases else str(ranks))
        assert all(float(cell.replace(",", "")) > 0 for cell in cells[2:4])
        assert cells[5:7] == ["-", "-"] if cells[0] == "1" else cells[6].endswith("%")
    for name in ("communication", "memory", "speedup"):
        height, width, _ = image.imread(tmp_path / f"{name}.png").shape
        assert height > 300 and width > 600 and f"{name}.png" in printed

    jobs = [Job.load(path) for path in sorted((tmp_path / "jobs").iterdir())]
    assert {(job.label, job.ranks) for job in jobs} == {(name, 1) for name in bases} | {
        (strategy.name, count)
        for strategy in STRATEGIES
        for count in {ranks, max(1, ranks // 2)}
        if strategy.fits(count)
    }
    by_name = {strategy.name: strategy for strategy in (*BASES, *STRATEGIES)}
    for base in BASES:
        losses = [job.results[0]["loss"] for job in jobs if by_name[job.label].network is base.network]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=0.02), "the same mathematics"
    for job in jobs:
        assert set(job.steps["phase"]) == {"warm-up", "traced", "timed"}
        strategy = by_name[job.label]
        sent = job.steps.loc[job.steps["phase"] == "timed", "wire_bytes"].astype(float).mean()
        assert sent == pytest.approx(mean(strategy.sent(job.ranks, True)), rel=0.03, abs=1000), job.label
        held = (
            job.memory[job.memory["category"].isin(("params", "grads", "optimizer_states"))]
            .groupby("rank")["bytes"]
            .sum()
        )
        expected = [sum(states.values()) for states in strategy.held(job.ranks)]
        assert list(held) == pytest.approx(expected, rel=0.05) and sum(held) == pytest.approx(
            sum(expected), rel=0.003
        ), job.label


def test_the_model_learns_the_digits():
    assert run_quietly(train_digits, ONE_PROCESS, 16, ranks=1).results[0]["accuracy"] > 0.9


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--ranks", "0"], "at least 1"),
        (["--ranks", "1000"], "at most 128 ranks"),
        (["--out", __file__], "is not a folder"),
    ],
)
def test_wrong_options_are_refused(options, reason, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert reason in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_same_command_works_with_a_gpu(tmp_path):
    printed = by_command(
        "--out", str(tmp_path), "--ranks", "2", "--epochs", "1", "--repeats", "1", cwd=tmp_path
    )
    assert set(rows(printed)) == {
        strategy.name for strategy in (*BASES, *STRATEGIES) if strategy in BASES or strategy.fits(2)
    }
    assert torch.cuda.get_device_name(0) in printed
