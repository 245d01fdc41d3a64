"""What needs no Slurm: arguments, what is missing, what nodes get, and Slurm's words in ours."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

from course_lib import hosts, run
from course_lib.ranks.slurm import ask, mail, submit


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hosts.Slurm(0), "nodes=0: it must be a whole number of at least 1."),
        (lambda: hosts.Slurm(2, minutes=0), "minutes=0: it must be a whole number of at least 1."),
        (lambda: hosts.Slurm(2, partition=3), "partition=3: it must be a str, the name of one."),
        (lambda: hosts.Slurm(2, environment="HOME"), "environment='HOME': it must be names"),
        (lambda: hosts.Slurm(2, environment=7), "environment=7: it must be names"),
        (lambda: hosts.Slurm(2, more=["--mem=8G"]), "it must be a dict, as in {'mem': '8G'}."),
        (lambda: hosts.Slurm(2, folder=3), "folder=3: it must be a path."),
        (lambda: run(len, "x", ranks=3, on=hosts.Slurm(2)), "ranks=3: each of 2 nodes gets as many"),
        (lambda: run(len, "x", backend="nccl", ranks=4, on=hosts.Slurm(2, gpus=1)), "one GPU for each of 2"),
        (lambda: run(len, "x", restarts=1, on=hosts.Slurm(2)), "restarts=1: a job on Slurm does not start"),
    ],
)
def test_row_14_arguments_that_cannot_work(monkeypatch, make, words):
    monkeypatch.setattr(hosts.Slurm, "missing", lambda self: "")
    with pytest.raises((ValueError, TypeError), match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lacks, words",
    [
        ("submitit", "need submitit, which is not installed: pip install submitit."),
        ("sbatch", "by its command sbatch, and there is none here: start the notebook on a login node"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(monkeypatch, lacks, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == lacks else name)
    assert words in hosts.Slurm(2).missing()
    with pytest.raises(RuntimeError, match=re.escape(words)):
        run(len, "x", on=hosts.Slurm(2))


def test_commands_that_no_slurm_answers_are_not_enough(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *a, **b: subprocess.CompletedProcess(a, 1, "", ""))
    assert "no Slurm answers them" in hosts.Slurm(2).missing()


def test_nothing_is_loaded_for_slurm_unless_asked():
    code = "import sys, course_lib.jobs; print([n for n in sys.modules if 'slurm' in n or 'submitit' in n])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_what_a_job_asks_for_by_itself():
    plan = hosts.Slurm(2).request(4, "auto", 60, "serve and work")["slurm"]
    assert plan["minutes"] == 6 and plan["gpus"] == 0 and plan["name"] == "serve-and-work"
    assert plan["folder"] == os.path.expanduser("~/.course_lib")
    assert hosts.Slurm(2).request(4, "nccl", 60, "f")["slurm"]["gpus"] == 2
    assert hosts.Slurm(2).placement(4, "nccl").devices == ("cuda:0", "cuda:1") * 2
    assert hosts.Slurm(2, gpus=2).placement(4, "auto").backend == "nccl"
    shared = hosts.Slurm(2, gpus=1).placement(4, "auto")
    assert shared.backend == "gloo" and shared.devices == ("cuda:0",) * 4
    assert hosts.Slurm(2).placement(4, "auto").devices == ("cpu",) * 4


def test_nodes_get_no_tokens():
    names = ["PATH", "LC_ALL", "NCCL_DEBUG", "HF_TOKEN", "AWS_SECRET_KEY", "CUDA_VISIBLE_DEVICES", "WANDB"]
    sent = submit.names_to_send(dict.fromkeys(names, "x"), ["WANDB"])
    assert sent == ["LC_ALL", "NCCL_DEBUG", "PATH", "WANDB"]


OLD = "slurmstepd-n2: error: StepId=7.0 exceeded memory limit (307208192 > 209715200), being killed"
OOM = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed."
)


@pytest.mark.parametrize(
    "state, reason, log, words",
    [
        (
            "TIMEOUT",
            "TimeLimit",
            "",
            "limit of 6 minutes was over. Ask for more: hosts.Slurm(..., minutes=12)",
        ),
        ("COMPLETING", "TimeLimit", "", "time limit of 6 minutes was over"),
        ("CANCELLED", "None", "", "job 7 was cancelled from outside this notebook"),
        ("PREEMPTED", "None", "", "to make room for one that comes first"),
        ("OUT_OF_MEMORY", "OutOfMemory", "", "Slurm killed job 7 for its memory. Ask for more"),
        ("FAILED", "NonZeroExitCode", OLD, "on node n2 for its memory: 307 MB, and it may use 210 MB. Ask"),
        ("OUT_OF_MEMORY", "", OOM, "Slurm killed job 7 for its memory. Ask for more"),
        ("NODE_FAIL", "None", "", "A node of n[1-2] of Slurm job 7 has failed; Slurm has taken the job down"),
        ("FAILED", "NonZeroExitCode", "a\nsrun: error: no python\n", "Its log says: srun: error: no python"),
        ("FAILED", "NonZeroExitCode", "", "have written nothing into /jobs/1: give hosts.Slurm(folder=...)"),
    ],
)
def test_how_slurm_ended_a_job_in_words(state, reason, log, words):
    text = ask.ended_in_words(ask.Told(state, reason, "n[1-2]"), "7", 6, log, [], "/jobs/1")
    assert words in text and "\n" not in text


def test_why_a_job_waits_in_words():
    assert ask.reason_in_words("Priority") == "Priority (other jobs come first)"
    assert ask.reason_in_words("None") == "it was just handed in"
    assert ask.reason_in_words("Licenses") == "Licenses"
    assert ask.will_never_start("PartitionNodeLimit") and not ask.will_never_start("Resources")


def test_messages_arrive_whole_and_in_order(tmp_path):
    (tmp_path / "node0").touch()
    out, inbox = (kind(mail.path_of(str(tmp_path), 0)) for kind in (mail.Outbox, mail.Inbox))
    out.send(3, b"x" * 5_000_000)
    out.report(beat=True)
    assert [(rank, len(content)) for rank, content in inbox.read()] == [(3, 5_000_000), (mail.REPORT, 14)]
    whole = (tmp_path / "node0").read_bytes()
    (tmp_path / "node0").write_bytes(whole + whole[:100])
    assert list(inbox.read()) == []  # the rest is still on its way
    (tmp_path / "node0").write_bytes(whole + whole)
    assert [len(content) for _, content in inbox.read()] == [5_000_000, 14]
    (tmp_path / "node0").unlink()
    with pytest.raises(FileNotFoundError):
        out.send(3, b"")
    with pytest.raises(FileNotFoundError):
        list(inbox.read())
