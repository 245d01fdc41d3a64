"""The scripts for outside the course: each is short, and runs under torchrun as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib.ranks import devices

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "notebooks" / "scripts").glob("*.py"))
LONGEST, AT_LEAST = 60, ("init_process_group(", "LOCAL_RANK", "set_device(", "destroy_process_group(")

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
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": devices.loopback(),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [*torchrun, "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    last = done.stdout.splitlines()[-1:]
    assert last and re.search(r"\d.*[a-z]|[a-z].*\d", last[0]), (
        f"the last line says what it reached, not {last}"
    )
