"""The scripts for outside the course: each is short, and runs under torchrun as it stands. Where a cell of
its chapter runs it, and nbval compares what it prints, it is not run here as well (but once a week, with
CASES).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.ranks import devices

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "notebooks" / "scripts").glob("*.py"))
# A fault of torch at Python's end, in one of some hundred runs on a busy machine, after all is said. The
# default arguments of torch.distributed.nn.functional, which DDP imports late, keep the process group, so
# that destroy_process_group does not wait for gloo's threads. One that then lets go of what Python owns is
# ended by Python, and C++ aborts (seen with torch 2.13 and Python 3.11).
AT_PYTHONS_END, TRIES = "terminate called without an active exception", 3
LONGEST, AT_LEAST = 60, ("init_process_group(", "LOCAL_RANK", "set_device(", "destroy_process_group(")


def _compared_in_a_cell() -> set[str]:
    """The names of those that a chapter runs in a cell whose output is compared."""
    found = set()
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source, ignored = (
                "".join(cell["source"]),
                "nbval-ignore-output" in cell["metadata"].get("tags", ()),
            )
            if cell.get("outputs") and not ignored and "torch.distributed.run" in source:
                found |= {script.name for script in SCRIPTS if script.name in source}
    return found


IN_A_CELL = _compared_in_a_cell() if os.environ.get("CASES", "0") == "0" else set()
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def test_there_are_scripts():
    assert SCRIPTS


@each_script
def test_a_script_is_short_and_does_itself_what_run_does_for_a_chapter(script):
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LONGEST
    assert [words for words in AT_LEAST if words not in source] == []


@each_script
def test_a_script_runs_under_torchrun(script, tmp_path):
    if script.name in IN_A_CELL:
        pytest.skip("a cell of its chapter runs it, and what it prints is compared")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": devices.loopback(),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [*torchrun, "--nproc-per-node=2", str(script)]
    for _ in range(TRIES):
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        if AT_PYTHONS_END not in done.stderr:
            break
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[:2000]}\n...\n{done.stderr[-2000:]}"
    last = done.stdout.splitlines()[-1:]
    assert last and re.search(r"\d.*[a-z]|[a-z].*\d", last[0]), (
        f"the last line says what it reached, not {last}"
    )
