"""A link between hosts that sleeps: what crosses it by formula is what the real one counts, and a step pays
for it.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from course_lib import hosts, measure, run
from course_lib.record import step_seconds
from course_lib.stand_ins.links_of_hosts import how_known, link_bytes, machines, run_on

NUMEL = 50_000
TWO = hosts.Linked(2, mbit=8)  # a million bytes in a second


def makes_calls(kind: str, steps: int = 3) -> float:
    """One kind of traffic among four ranks, in each step."""
    rank, values = dist.get_rank(), torch.ones(NUMEL)
    groups = {name: dist.new_group(ranks) for name, ranks in {"inside": [0, 1], "between": [0, 2]}.items()}
    wraps = {"ddp": DistributedDataParallel, "fully_shard": fully_shard}
    model = wraps[kind](torch.nn.Linear(200, 200)) if kind in wraps else None
    for _ in range(steps):
        with measure.step():
            if model is not None:
                model(torch.ones(2, 200)).sum().backward()
            elif kind == "ring":
                dist.all_reduce(values)
            elif kind == "message":
                if rank == 1:
                    dist.send(values, 2)
                elif rank == 2:
                    dist.recv(values, 1)
            elif rank in dist.get_process_group_ranks(groups[kind]):
                dist.all_reduce(values, group=groups[kind])
    return float(os.environ["LOCAL_RANK"]) + 10 * float(os.environ["GROUP_RANK"])


@pytest.fixture
def no_hosts(monkeypatch):
    monkeypatch.setattr(hosts, "_tried", lambda switch, delay: {"failed": "none here", "absent": ""})


@pytest.mark.parametrize("kind", ["ring", "message", "ddp", "fully_shard"])
def test_what_crosses_by_formula_is_what_a_real_link_counts(two_hosts, kind, request):
    real = run_on(hosts.Linked(2, mbit=1000), makes_calls, kind)
    request.getfixturevalue("no_hosts")
    modelled = run_on(TWO, makes_calls, kind)
    assert (how_known(real), how_known(modelled)) == ("measured", "modelled")
    assert link_bytes(modelled) == pytest.approx(link_bytes(real), rel=0.05)
    assert modelled.results == real.results == [0, 1, 10, 11]


def test_a_step_pays_for_what_crosses_and_says_that_it_sleeps(no_hosts):
    job = run_on(TWO, makes_calls, "ring", 4, label="slept")
    assert link_bytes(job) == 1.5 * 4 * NUMEL
    assert step_seconds(job).min() >= 1.5 * 4 * NUMEL / 1e6
    assert "2 linked hosts, 8 Mbit/s, by a link that sleeps: modelled" in job.where
    assert job.links.empty and job.label == "slept"
    assert "modelled link" in set(job.timeline["name"])
    inside = run_on(TWO, makes_calls, "inside")
    assert link_bytes(inside) == 0 and inside.label == "makes_calls"


def test_what_cannot_be(no_hosts):
    with pytest.raises(ValueError, match="ranks=3: each of 2 linked hosts gets as many; take 4."):
        run_on(TWO, makes_calls, "ring", ranks=3)
    with pytest.raises(ValueError, match="has no link in a traced step"):
        link_bytes(run(makes_calls, "ring", ranks=4))


def test_programs_run_where_there_are_no_hosts_and_end_with_the_block(no_hosts):
    with machines(TWO) as (popen, meeting):
        says = popen(1, [sys.executable, "-S", "-c", "print(7)"], stdout=subprocess.PIPE, text=True)
        assert says.communicate()[0] == "7\n" and meeting.startswith("127.0.0.1:")
        stays = popen(0, ["sleep", "500"])
        with pytest.raises(ValueError, match="host=2: it must be a whole number from 0 to 1"):
            popen(2, ["true"])
    assert stays.returncode == -9


def test_programs_run_on_hosts(two_hosts):
    with machines(two_hosts) as (popen, meeting):
        asks = popen(1, ["hostname"], stdout=subprocess.PIPE, text=True)
        assert asks.communicate()[0].strip() == two_hosts.addresses[1]
        assert meeting == f"{two_hosts.addresses[0]}:29500"
