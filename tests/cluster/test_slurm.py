"""Jobs on a real Slurm: the same Job as on one machine, a queue, an interrupt, and what is refused."""

import os
import re
import subprocess
import time
from pathlib import Path

import cluster_workers
import pytest
from slurm_fixtures import cluster, jobs

from course_lib import Job, RankError, hosts, run
from course_lib.ranks.progress import Progress

assert cluster and jobs  # fixtures

SCRIPTS = Path(hosts.__file__).parents[1] / "notebooks" / "scripts"


@pytest.fixture
def shown(monkeypatch):
    """What is shown while a job runs: (text, what ranks have printed), as it comes."""
    seen = []
    monkeypatch.setattr(
        Progress, "update", lambda self, text, fraction=None, outputs=tuple: seen.append((text, outputs()))
    )
    return seen


def test_a_job_on_slurm_is_the_job_that_one_knows(cluster, jobs, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", "my-secret")
    monkeypatch.setenv("MY_CHOICE", "blue")
    monkeypatch.setenv("SLURM_NTASKS", "77")  # as if the notebook itself ran in another job
    old = jobs / "job-old"  # what a job has left behind that never began: it is removed
    old.mkdir(parents=True, mode=0o700)
    jobs.chmod(0o700)
    (old / "alive").touch()
    os.utime(old / "alive", (0, 0))
    slurm = hosts.Slurm(2, folder=jobs, minutes=3, environment=("MY_CHOICE",), more={"comment": "a, b"})
    job = run(cluster_workers.trains, str(jobs), ranks=4, threads=2, on=slurm)
    places = job.results
    numbers = [tuple(place[name] for name in cluster_workers.NUMBERS) for place in places]
    assert numbers == [(0, 0, 4, 2, 0, 2), (1, 1, 4, 2, 0, 2), (2, 0, 4, 2, 1, 2), (3, 1, 4, 2, 1, 2)]
    assert [place["node"] for place in places] == ["n1", "n1", "n2", "n2"]
    assert len({place["master"] for place in places}) == 1 and places[0]["interface"] == "lo"
    assert [place["sum"] for place in places] == [64.0] * 4
    # the environment: what was named, and no token, neither in a rank nor in a file
    assert places[3]["environ"] == {"MY_CHOICE": "blue"} and places[0]["with_token"] == []
    assert set(places[0]["modes"].values()) == {0o700} and places[2]["cwd"] == os.getcwd()
    script = places[0]["script"]
    assert all(f"#SBATCH --{words}\n" in script for words in ("time=3", "cpus-per-task=4", "nodes=2"))
    assert "--comment='a, b'" in script and "my-secret" not in script
    # the ledger
    assert job.where.startswith("4 ranks, gloo on CPU (2 nodes of Slurm; n1, n2: each with ")
    assert set(job.comm["op"]) == {"all_reduce"} and sorted(set(job.comm["rank"])) == [0, 1, 2, 3]
    assert len(job.steps) == 4 * 3 and (job.steps["wire_bytes"].dropna() >= 4000).all()
    assert set(job.memory["rank"]) == {0, 1, 2, 3}
    assert job.output == [f"rank {rank} has 64\n" for rank in range(4)]
    assert job.timeline["start_s"].between(-1, 60).all()  # of two nodes, by one clock
    assert 0 < job.seconds < 60 and job.links.empty and "restarts" not in repr(job)
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json").comm.equals(job.comm)


def test_output_is_shown_as_it_comes_and_the_queue_before(cluster, jobs, shown, tmp_path):
    before = cluster.ask(
        "sbatch", "--parsable", "--exclusive", "-N2", "-o/dev/null", "--wrap", "exec sleep 600"
    )

    def look(self, text, outputs=tuple, ranks=tuple):
        printed = outputs()
        shown.append(text)
        if "Resources (until nodes are free)" in text:
            cluster.ask("scancel", before)
        if len(printed) == 2 and all(printed):
            (tmp_path / "go").touch()

    Progress.update = look  # `shown` takes it back
    job = run(cluster_workers.tells_and_waits, str(tmp_path), on=hosts.Slurm(2, folder=jobs))
    assert job.results == ["went on"] * 2
    texts = list(dict.fromkeys(re.sub(r"\d+ s", "N s", text) for text in shown))
    assert texts[0] == "is handed to Slurm, N s"
    assert "waits in Slurm's queue, N s: Resources (until nodes are free)" in texts
    assert any(re.fullmatch(r"starts on n\[1-2\] as job \d+, N s", text) for text in texts)
    assert texts[-1].endswith("(timeout N s)")  # which counts from here on


def test_a_rank_that_raises_is_named_with_its_role_and_its_line(cluster, jobs):
    with pytest.raises(RankError) as caught:
        run([cluster_workers.serve, cluster_workers.work], on=hosts.Slurm(1, folder=jobs))
    assert caught.value.headline == "serve and work failed on rank 1 (work)."
    told = {report.rank: report for report in caught.value.reports}
    assert told[1].state == "raised ValueError: no work today"
    assert told[1].place.startswith("cluster_workers.py, line ") and told[1].line.startswith("raise ValueE")
    assert "recv from rank 1 (work)" in told[0].state


def test_a_batch_script_runs_a_chapters_script_across_nodes(cluster, jobs, tmp_path):
    """slurm.sbatch, as one would hand it over by oneself."""
    out = tmp_path / "out.txt"
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environ |= {"PYTHON": os.sys.executable, "PYTHONPATH": str(SCRIPTS.parents[1])}
    command = ["sbatch", "--parsable", f"--output={out}", "slurm.sbatch", "ddp.py", "1"]
    number = subprocess.check_output(command, cwd=SCRIPTS, env=environ, text=True).strip()
    end = time.monotonic() + 300
    while cluster.ask("squeue", "-h", "-j", number, "-o", "%T") and time.monotonic() < end:
        time.sleep(0.2)  # sbatch --wait looks seldom
    assert re.search(r"2 processes on cpu: gradients of one process: True; \d+% of the", out.read_text())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"partition": "nope"}, "Slurm did not take trains: .*[Ii]nvalid partition"),
        ({"more": {"no-such-option": 1}}, "Slurm did not take trains: .*unrecognized option"),
        ({"nodes": 9}, r"it would never start: Partition(NodeLimit|Config) \(its partition .* so many nodes"),
    ],
)
def test_what_slurm_refuses_is_said_in_one_sentence(cluster, jobs, options, words):
    slurm = hosts.Slurm(**{"nodes": 1, "folder": jobs, **options})
    with pytest.raises(RuntimeError, match=words) as caught:
        run(cluster_workers.trains, "", ranks=slurm.nodes, on=slurm)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, RankError)
