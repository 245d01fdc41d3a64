"""Linked hosts: real namespaces and a real link. What takes how long is measured by
tests/bench/bench_linked.py; here bytes and counts are compared, and times only with what no link can beat.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import faults
import linked_workers
import psutil
import pytest
from test_faults import gone, soon

from course_lib import Job, RankError, hosts, run, theory
from course_lib.ranks import holder, network

MB = 1_000_000
NUMEL = MB  # of float32: 4 MB
HEADERS = 1.02  # of frames of 9000 bytes, and acknowledgements


def networks_in_use() -> set[int]:
    """Numbers of all network namespaces in which a process is, or that a process holds open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for path in (process / "ns/net", *_open(process)):
            try:
                if kept := re.fullmatch(r"net:\[(\d+)\]", os.readlink(path)):
                    found.add(int(kept[1]))
            except OSError:  # it has ended, or is closed
                pass
    return found


def _open(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def nothing_left_of(folder: Path, ranks: int) -> bool:
    """Whether, soon, nobody is in the networks of which ranks have told, or holds them."""
    told = {int((folder / f"network{rank}").read_text()) for rank in range(ranks)}
    assert len(told) == 2
    return soon(lambda: not told & networks_in_use())


def test_ranks_are_numbered_as_torchrun_does_it(two_hosts):
    places = run(linked_workers.place, ranks=4, on=two_hosts).results
    assert [place["sum"] for place in places] == [6.0] * 4
    numbers = [tuple(place[name] for name in linked_workers.NAMES) for place in places]
    assert numbers == [(0, 0, 4, 2, 0, 2), (1, 1, 4, 2, 0, 2), (2, 0, 4, 2, 1, 2), (3, 1, 4, 2, 1, 2)]
    assert [place["host"] for place in places] == [two_hosts.addresses[host] for host in (0, 0, 1, 1)]
    assert len({place["network"] for place in places} - {linked_workers.network()}) == 2
    assert all(place["interfaces"] == ["eth0", "lo"] for place in places)
    (alone,) = run(linked_workers.place, ranks=1).results
    assert [alone[name] for name in linked_workers.NAMES] == [0, 0, 1, 1, 0, 1]


def test_three_hosts_meet_at_a_switch(two_hosts):
    three = hosts.Linked(3, mbit=500)
    if reason := three.missing():
        pytest.skip(reason)
    job = run(linked_workers.reduces, NUMEL, 3, ranks=3, on=three)
    assert job.results == [27.0] * 3
    sent = job.links[job.links["phase"] == "traced"].set_index("host")["sent_bytes"]
    ring = 4 / 3 * 4 * NUMEL  # 2 (n - 1) / n of S, from each host
    assert all(ring <= sent[host] <= HEADERS * ring for host in range(3))


def test_the_bytes_on_the_link_are_those_of_the_ring_and_no_link_is_faster_than_its_rate(two_hosts):
    job = run(linked_workers.reduces, NUMEL, 4, ranks=4, on=two_hosts)
    links, ring = job.links, 1.5 * 4 * NUMEL  # of a ring of four ranks, one send of each host leaves it
    assert links["phase"].tolist() == ["warm-up", "traced", "timed", "timed"] * 2
    traced = links[links["phase"] == "traced"]["sent_bytes"]
    assert all(ring <= sent <= HEADERS * ring for sent in traced)
    # no byte is lost between steps
    assert links.groupby("host")["sent_bytes"].sum().tolist() == pytest.approx([4 * ring] * 2, rel=0.02)
    at_least_s = ring * 8 / 200e6 - network.BURST_S
    assert job.steps["seconds"].max() >= 0.95 * at_least_s
    assert job.where.startswith("4 ranks, gloo on CPU (2 linked hosts, 200 Mbit/s; ")
    assert "sent over its link in a step: host 0 6.0" in repr(job)


def test_first_within_each_host_is_a_third_less_on_the_link(two_hosts):
    workers = (
        linked_workers.reduces,
        linked_workers.reduces_by_host,
        linked_workers.reduces_by_parts,
    )
    jobs = [run(fn, NUMEL, 3, ranks=4, on=two_hosts) for fn in workers]
    assert [job.results for job in jobs] == [[64.0] * 4] * 3
    flat, *nested = (job.links[job.links["phase"] == "traced"]["sent_bytes"].mean() for job in jobs)
    for sent in nested:
        assert flat / sent == pytest.approx(1.5, rel=0.02)
        assert sent == pytest.approx(theory.host_bytes(4 * NUMEL, 2, 2, hosts_first=True), rel=0.02)


def test_what_ranks_of_one_host_say_to_each_other_does_not_pass_the_link(two_hosts):
    job = run(linked_workers.chats_inside, NUMEL, 3, ranks=4, on=two_hosts)
    assert job.steps["wire_bytes"].min() >= 4 * NUMEL
    assert job.links["sent_bytes"].max() < 0.01 * 4 * NUMEL


def test_the_link_of_a_host_whose_first_rank_measures_nothing_is_counted_as_well(two_hosts):
    numel = NUMEL // 4
    job = run([linked_workers.answers, *[linked_workers.asks] * 3], numel, 3, on=two_hosts)
    assert job.links["host"].tolist() == [0] * 3 + [1] * 3
    sent, two_ranks = job.links[job.links["phase"] == "traced"]["sent_bytes"], 2 * 4 * numel
    assert all(two_ranks <= one <= HEADERS * two_ranks for one in sent)


def test_the_link_counts_what_goes_past_torch_as_well(two_hosts):
    job = run(linked_workers.sends_past_torch, list(two_hosts.addresses), ranks=2, on=two_hosts)
    _, by_socket, by_datagram = job.links[job.links["host"] == 0]["sent_bytes"]
    assert 5 * MB <= by_socket <= HEADERS * 5 * MB
    assert 50_000 <= by_datagram <= 60_000
    mine = job.steps[job.steps["rank"] == 0]["wire_bytes"].tolist()
    assert mine == [0, 5 * MB, 0], "the process's own counter knows no datagrams"


def test_a_slow_link_is_no_standstill(two_hosts):
    """While the link carries what the system has taken, no rank writes a byte, for seconds."""
    job = run(linked_workers.sends, 40_000, ranks=2, on=hosts.Linked(2, mbit=0.3))
    assert job.seconds >= 0.9 * 160_000 * 8 / 0.3e6


def test_ranks_that_wait_for_each_other_are_found_as_elsewhere(two_hosts):
    with pytest.raises(RankError, match="Each rank waits for another: rank 0 ") as caught:
        run(faults.waits_for_a_message, ranks=2, on=two_hosts)
    assert "rank 0 (host 0) in recv from rank 1 (host 1)" in caught.value.headline
    assert "Nobody sends." in caught.value.headline


def test_a_hang_among_roles_names_role_and_host(two_hosts):
    roles = [linked_workers.serve, linked_workers.work, linked_workers.work, linked_workers.work]
    with pytest.raises(RankError) as caught:
        run(roles, ranks=4, on=two_hosts)
    told = caught.value.headline
    assert "rank 0 (serve, host 0) in recv from rank 3 (work, host 1) of float32[3]" in told
    assert "rank 3 (work, host 1) in recv from rank 0 (serve, host 0) of float32[3]" in told
    assert [report.name for report in caught.value.reports] == [
        "rank 0, serve, host 0",
        "rank 1, work, host 0",
        "rank 2, work, host 1",
        "rank 3, work, host 1",
    ]


def test_a_job_elsewhere_has_no_link(tmp_path):
    job = run(linked_workers.reduces, 10, 3, ranks=2)
    assert job.links.empty and list(job.links.columns) == ["host", "step", "phase", "sent_bytes"]
    with pytest.raises(RankError, match="cut_link is for a rank on linked hosts"):
        run(hosts.cut_link, ranks=1)
    with pytest.raises(RuntimeError, match="cut_link is for a rank on linked hosts"):
        hosts.cut_link()


def test_a_job_with_links_is_saved_and_loaded(two_hosts, tmp_path):
    job = run(linked_workers.reduces, 1000, 3, ranks=2, on=two_hosts)
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json").links.equals(job.links)


def test_a_delay_is_there_or_absent_with_the_reason(two_hosts):
    late = hosts.Linked(2, mbit=200, delay_ms=20)
    job = run(linked_workers.reduces, 10, 4, ranks=2, on=late)
    if reason := job.absent.get("link delay"):
        assert "this system cannot delay packets" in reason and ", 20 ms" not in job.where
    else:
        assert "200 Mbit/s, 20 ms" in job.where and job.steps["seconds"].min() >= 0.02


@pytest.mark.parametrize("which", ["nobody", "rank", "supervisor", "server"])
def test_nothing_is_left_whoever_is_killed(two_hosts, tmp_path, which):
    try:
        run(linked_workers.tells_and_kills, str(tmp_path), which, ranks=2, on=two_hosts)
        assert which in ("nobody", "server")
    except RankError as error:
        assert which in ("rank", "supervisor") and "was killed (SIGKILL" in str(error)
    assert nothing_left_of(tmp_path, 2)


def test_nothing_is_left_when_the_kernel_is_killed(two_hosts, tmp_path):
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import linked_workers
        from course_lib import hosts, run
        run(linked_workers.tells_and_hangs, {str(tmp_path)!r}, ranks=2, on=hosts.Linked(2))"""
    kernel = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert soon(lambda: all((tmp_path / f"network{rank}").exists() for rank in range(2)), 240)
    below = psutil.Process(kernel.pid).children(recursive=True)
    kernel.kill()
    kernel.wait()
    assert nothing_left_of(tmp_path, 2) and gone(below)


SHOW = "import os, socket; print(os.stat('/proc/self/ns/net').st_ino, socket.gethostname(), flush=True); "


def test_programs_run_in_the_hosts_and_end_with_the_block(two_hosts):
    before = psutil.Process().num_fds()
    with hosts.Linked(2, mbit=200) as two:
        sleeps = SHOW + "import subprocess; subprocess.Popen(['sleep', '500'], start_new_session=True).wait()"
        command = [sys.executable, "-S", "-c", sleeps]
        programs = [two.popen(host, command, stdout=subprocess.PIPE, text=True) for host in range(2)]
        told = [program.stdout.readline().split() for program in programs]
        assert [name for _, name in told] == list(two.addresses)
        networks = {int(number) for number, _ in told}
        assert len(networks) == 2 and networks <= networks_in_use()
        says = two.popen(1, [sys.executable, "-S", "-c", "import sys; sys.exit(7)"])
        assert says.wait() == 7
        seen = two.popen(0, ["ip", "-brief", "address"], stdout=subprocess.PIPE, text=True).communicate()[0]
        assert f"{two.addresses[0]}/24" in seen
    assert [program.wait() for program in programs] == [-9, -9]
    assert soon(lambda: not networks & networks_in_use())
    for program in programs:
        program.stdout.close()
    assert psutil.Process().num_fds() == before
    with pytest.raises(RuntimeError, match="within `with hosts.Linked"):
        two.popen(0, ["true"])


@pytest.mark.parametrize("which", ["holder", "kernel"])
def test_programs_end_whoever_is_killed(two_hosts, which):
    code = f"""
        import os, signal, subprocess, sys
        sys.path.insert(0, {str(Path(hosts.__file__).parents[1])!r})
        from course_lib import hosts
        with hosts.Linked(2) as two:
            program = two.popen(1, [sys.executable, "-S", "-c", {SHOW + "input()"!r}], stdin=subprocess.PIPE)
            if sys.stdin.readline().strip() == "holder":
                two._held[0][0].kill()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        print(program.wait())"""
    kernel = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    number = int(kernel.stdout.readline().split()[0])
    assert number in networks_in_use()
    below = psutil.Process(kernel.pid).children(recursive=True)
    assert len(below) == 2
    rest, _ = kernel.communicate(which)
    assert rest == ("-9\n" if which == "holder" else "")
    assert gone(below) and soon(lambda: number not in networks_in_use())


SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
import linked_workers
torch.set_num_threads(1)
dist.init_process_group("gloo")
told = {"bias": linked_workers.train(), **{name: int(os.environ[name]) for name in linked_workers.NAMES}}
with open(os.path.join(sys.argv[1], f"{dist.get_rank()}.json"), "w") as file:
    json.dump(told, file)
dist.destroy_process_group()
"""


def test_torchrun_over_two_hosts_gives_what_run_gives(two_hosts, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    folders = [str(Path(linked_workers.__file__).parent), str(Path(hosts.__file__).parents[1])]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    with hosts.Linked(2, mbit=200) as two:
        torchrun = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes=2", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={two.addresses[0]}:29500"),
            *(str(tmp_path / "train.py"), str(tmp_path)),
        ]
        started = [
            two.popen(host, torchrun, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
            for host in range(2)
        ]
        told = [process.communicate(timeout=900)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], told[0][-2000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    under_run = run(linked_workers.train, ranks=4, on=two_hosts).results
    assert [place["bias"] for place in found] == under_run and under_run[0] == under_run[3]
    assert [(place["RANK"], place["LOCAL_RANK"], place["LOCAL_WORLD_SIZE"]) for place in found] == [
        (0, 0, 2),
        (1, 1, 2),
        (2, 0, 2),
        (3, 1, 2),
    ]
    # torchrun numbers its hosts as they come
    assert {place["GROUP_RANK"] for place in found} == {0, 1}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hosts.Linked(1), "hosts=1: it must be a whole number from 2 to 16."),
        (lambda: hosts.Linked(2, mbit=0), "mbit=0: it must be a number above 0."),
        (lambda: hosts.Linked(2, mbit=1e9), "mbit=1000000000.0: it must be from 0.01 to 100000"),
        (lambda: hosts.Linked(2, delay_ms=-1), "delay_ms=-1: it must be a number of at least 0."),
        (lambda: run(len, "x", ranks=3, on=hosts.Linked(2)), "ranks=3: each of 2 linked hosts gets as many"),
        (lambda: run(len, "x", on=hosts.Linked(2), backend="nccl"), "backend='nccl': NCCL moves bytes"),
        (lambda: run(len, "x", on=2), "on=2: it must be a Linked, as in on=hosts.Linked(2, mbit=200)."),
    ],
)
def test_row_14_arguments_that_cannot_work(make, words):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        make()


def try_without(monkeypatch, code: str) -> dict:
    """What a try tells that begins with this code: of a machine that lacks something."""
    command = holder.command("try", json.dumps(hosts.Linked(2).plan()))
    command[command.index("-c") + 1] = command[command.index("-c") + 1].replace(
        "; main()", f"; {code}; main()"
    )
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


NETWORK = "from course_lib.ranks import network as n"


@pytest.mark.parametrize(
    "code, words",
    [
        ("n._FOLDERS = ''", "there is no ip here: install the package iproute2"),
        ("n._call = lambda *args: exec('raise PermissionError(1, \"not permitted\")')", "not permitted"),
        ("n._NEWNET = n._NEWUSER = -1", "this system does not let you make one"),
        (
            "n._try = lambda *args: 'tc says no'",
            "Linked hosts cannot be made here: tc says no. The kernel needs",
        ),
        ("import sys; sys.platform = 'darwin'", "which only Linux has"),
    ],
)
def test_what_a_machine_lacks_is_said_in_one_sentence(monkeypatch, code, words):
    told = try_without(monkeypatch, f"{NETWORK}; {code}")
    assert words in told["failed"] and "\n" not in told["failed"]
    monkeypatch.setattr(hosts, "_tried", lambda switch, delay: told)
    assert hosts.Linked(2).missing() == told["failed"]
    with pytest.raises(RuntimeError, match=re.escape(told["failed"][:40])):
        run(len, "x", ranks=2, on=hosts.Linked(2))


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="to become another user, one must be root"
)
def test_another_user_needs_no_root(two_hosts, tmp_path):
    """By a user namespace; the program is still that user there, and may change its network."""
    script = tmp_path / "other.py"
    script.write_text(
        f"import subprocess, sys\nsys.path.insert(0, {str(Path(hosts.__file__).parents[1])!r})\n"
        "from course_lib.ranks import network\nimport os\n"
        "try:\n    places, _ = network.build(2, 100)\n"
        "except network.NetworkError as error:\n    sys.exit(f'skip {error}')\n"
        "network.enter(places[1])\n"
        "print(os.getuid(), subprocess.run(['ip', 'link', 'set', 'eth0', 'down']).returncode)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(folder, 0o755)
    python = "/usr/bin/python3"  # that of this environment may lie where only root can read
    done = subprocess.run(
        [python, "-B", str(script)], user=65534, group=65534, extra_groups=[], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout.split() == ["65534", "0"]


def test_where_it_is_not_asked_for_it_costs_nothing(monkeypatch):
    monkeypatch.setattr(hosts, "_tried", None)  # nothing is tried
    monkeypatch.setattr(network, "build", None)
    assert run(len, "x", ranks=1).results == [1]
