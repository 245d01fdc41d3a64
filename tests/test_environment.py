"""The first cell of every chapter, and the report for who helps."""

import getpass
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_lib import about
from course_lib.environment import VARIABLES, report


def test_it_names_versions_and_the_backend(capsys):
    about()
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Python {platform.python_version()}, torch {torch.__version__}"
    assert second.startswith("Two ranks would run with ") and " on " in second


def test_the_report_says_what_ranks_depend_on_and_no_secret(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NCCL_SECRET", "hf_secret")
    text = report()
    lines = dict(line.split(":", 1) for line in text.splitlines())
    assert torch.__version__ in lines["torch"] and platform.python_version() in lines["Python"]
    assert "gloo" in lines["backends"] and "lo (up" in lines["interfaces"]
    assert "GLOO_SOCKET_IFNAME=eth7" in lines["variables"] and "NCCL_DEBUG=INFO" in lines["variables"]
    home = str(Path.home())
    secrets = ["hf_secret", "TOKEN", socket.gethostname(), home if home != "/" else "hf_", sys.prefix]
    assert not [word for word in secrets if word in text] and "127.0.0.1" not in text
    assert len(text) < 2000
    assert getpass.getuser() not in text.replace("root", "") or getpass.getuser() == "root"


def test_without_any_of_its_variables_it_says_so():
    assert report({}).endswith("variables:  none")
    told = report({"RANK": "3", "PASSWORD": "x", "https_proxy": "http://anna:secret@proxy"})
    assert told.endswith("variables:  RANK=3, https_proxy is set") and "PASSWORD" not in VARIABLES
    with pytest.raises(TypeError, match="environ=3: it must be a dict"):
        report(3)


def test_the_module_prints_it():
    command = [sys.executable, "-m", "course_lib.environment"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("system:") and "RuntimeWarning" not in done.stderr
