"""Checks of the chapter "Beyond one machine": an all_reduce that sums inside each host first, the order of a
mesh's axes over hosts, and the environment that Slurm does not set.
"""

import itertools
import random
import re
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from course_lib import measure, theory
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import BYTES_LIMIT, ERROR_LIMIT, Demand, largest, sends, values
from course_lib.collectives import of_kind
from course_lib.record import Job, sent

__all__ = ["hierarchical_all_reduce", "axis_order", "slurm_environment"]

STEPS, COLUMNS = 3, 15_000  # float64, two rows for each rank of a host: S is 720 or 480 kB


def _parts(job: Job) -> tuple[int, int, int]:
    """Bytes of the tensor, hosts, ranks of each."""
    found = job.results[0]
    return found["nbytes"], found["hosts"], job.ranks // found["hosts"]


def _other_ways(job: Job) -> str:
    """Calls that belong to neither of the two groups."""
    messages = job.comm[job.comm["op"].isin(of_kind("send", "receive"))]
    if not messages.empty:
        return f"you used {messages.iloc[0]['op']}. Use collectives of the two groups alone."
    strange = job.comm[~job.comm["group"].isin(job.results[0]["groups"])]
    if strange.empty:
        return ""
    call = strange.iloc[0]
    return (
        f"you called {call['op']} over the ranks {call['group']}, which are neither those of one host nor"
        " those with one number on each host. Give it `group=inside` or `group=between`."
    )


def _asked_for(job: Job, kind: str) -> dict[int, float]:
    """What each rank sends in collectives of its groups of this kind, by the textbook."""
    groups = [group for group, its in job.results[0]["groups"].items() if its == kind]
    return sent(job, layer="algorithm", groups=groups).to_dict()


def _between(job: Job) -> str:
    S, hosts, per_host = _parts(job)
    enough, asked = (
        theory.host_bytes(S, hosts, per_host, hosts_first=True) / per_host,
        _asked_for(job, "between"),
    )
    rank = max(asked, key=asked.get)
    if asked[rank] <= BYTES_LIMIT * enough:
        return ""
    told = f"rank {rank} sends {asked[rank] / S:.2f} S to other hosts, and {enough / S:.2f} S are enough."
    if min(asked.values()) == 0:
        return told + (
            " One rank of each host sends for all, and the others wait. Let each rank take a part of the"
            " tensor to the other hosts."
        )
    return told + " A rank needs to take only its own part of its host's sum there, a 1/k of the tensor."


def _inside(job: Job) -> str:
    S, _, per_host = _parts(job)
    enough, asked = theory.collective_bytes("all_reduce", S, per_host), _asked_for(job, "inside")
    rank = max(asked, key=asked.get)
    if asked[rank] <= BYTES_LIMIT * enough:
        return ""
    return (
        f"rank {rank} sends {asked[rank] / S:.2f} S inside its host, and {enough / S:.2f} S are enough: a"
        " reduce_scatter leaves each rank the sum of its part, and an all_gather puts parts together."
    )


def _all_bytes(job: Job) -> float:
    S, hosts, per_host = _parts(job)
    own = theory.gloo_bytes("reduce_scatter", S, per_host) + theory.gloo_bytes("all_gather", S, per_host)
    return own + theory.gloo_bytes("all_reduce", S / per_host, hosts)


@exercise(
    sum=values(
        "every rank has the sum over all ranks, in place",
        "the tensor is not the sum over all ranks (relative error {error:.2g}).",
    ),
    groups=Demand("only collectives of the two groups were used", _other_ways),
    between=Demand(f"no rank sends more than {BYTES_LIMIT} times 2(h-1)/h S/k to other hosts", _between),
    inside=Demand(f"no rank sends more than {BYTES_LIMIT} times 2(k-1)/k S inside its host", _inside),
    bytes=sends(
        "what gloo needs for these in all",
        _all_bytes,
        "rank {rank} sends {times:.2f} times what gloo needs for it in all.",
        right=lambda job: largest(job, "error") < ERROR_LIMIT,
    ),
)
def hierarchical_all_reduce(judge: Judge, answer: Callable) -> None:
    """`answer(tensor, inside, between)` sums up over all ranks, in place.

    In the last step one rank comes late.
    """

    def trial(answer, hosts, per_host, seed):
        on_rank.use_cpu()
        rank, ranks = dist.get_rank(), hosts * per_host
        kinds = {
            "inside": [list(range(at, at + per_host)) for at in range(0, ranks, per_host)],
            "between": [list(range(local, ranks, per_host)) for local in range(per_host)],
        }
        mine = {}
        for kind, each in kinds.items():
            for members in each:
                group = dist.new_group(members)
                if rank in members:
                    mine[kind] = group
        draw = torch.Generator().manual_seed(on_rank.private_seed())
        found = {"error": 0.0, "looks": "", "hosts": hosts}
        found["groups"] = {",".join(map(str, one)): kind for kind, each in kinds.items() for one in each}
        for step in range(STEPS):
            tensor = torch.randn(2 * per_host, COLUMNS, generator=draw, dtype=torch.float64)
            start, wanted = tensor.clone(), tensor.clone()
            dist.all_reduce(wanted)
            dist.barrier()
            with measure.step():
                if step == STEPS - 1 and rank == seed % ranks:
                    on_rank.come_late("sum")
                answer(tensor, mine["inside"], mine["between"])
                now = tensor.clone()  # before what comes late can still come
            if step == STEPS - 1:
                on_rank.is_back("sum")
            error = on_rank.apart(now, wanted)
            sums = {kind: start.clone() for kind in mine}
            for kind, group in mine.items():
                dist.all_reduce(sums[kind], group=group)
            guesses = {
                "what it was before: the sum must stand in the tensor that you were given": start,
                "the sum inside this host alone": sums["inside"],
                "the sum over the ranks with this number on each host: nothing was added up inside": sums[
                    "between"
                ],
                "the mean, and not the sum": wanted / ranks,
                "the sum, counted once per rank of a host": wanted * per_host,
                "the sum, counted once per host": wanted * hosts,
            }
            if error > ERROR_LIMIT and not found["looks"]:
                late = on_rank.NOT_WAITED if step == STEPS - 1 and found["error"] < ERROR_LIMIT else ""
                found["looks"] = (
                    on_rank.looks(now.flatten(), {w: g.flatten() for w, g in guesses.items()}) or late
                )
            found["error"] = max(found["error"], error)
        return found | {"nbytes": start.nbytes}

    for hosts, per_host in ((2, 3), (3, 2)):
        case = f"{hosts} hosts with {per_host} ranks"
        if not judge.tried(case, trial, answer, hosts, per_host, judge.seed, ranks=hosts * per_host):
            return  # the other one would say it again


# -- the order of axes

Sizes = Mapping[str, int]
Bytes = Mapping[str, float]
DRAWN_MESHES = 24
AS_GOOD = 1.001  # times the fewest bytes


def _leaving(order: tuple[str, ...], sizes: Sizes, sends_bytes: Bytes, per_host: int) -> float:
    """The bytes that leave the busiest host in a step, with the axes in this order."""
    lengths = [sizes[axis] for axis in order]
    ranks = torch.arange(torch.Size(lengths).numel()).view(lengths)
    by_host = torch.zeros(ranks.numel() // per_host, dtype=torch.float64)
    for dim, axis in enumerate(order):
        here, there = ranks.flatten() // per_host, ranks.roll(-1, dim).flatten() // per_host
        by_host += torch.bincount(here[here != there], minlength=len(by_host)) * float(sends_bytes[axis])
    return by_host.max().item()


def _meshes(seed: int) -> list[tuple[dict[str, int], dict[str, float], int]]:
    """Sizes, bytes that a rank sends along each axis, and ranks on a host."""
    draw = random.Random(seed)
    cases = [
        ({"dp": 2, "tp": 2}, {"dp": 4.0, "tp": 9.0}, 2),
        ({"dp": 2, "tp": 2}, {"dp": 9.0, "tp": 4.0}, 2),
        # the axis that sends most is longer than a host
        ({"dp": 8, "pp": 4, "tp": 1}, {"dp": 5.0, "pp": 4.0, "tp": 9.0}, 4),
        ({"a": 3, "b": 2, "c": 2}, {"a": 1.0, "b": 3.0, "c": 2.0}, 4),
    ]
    while len(cases) < 4 + DRAWN_MESHES:
        axes = draw.sample(["dp", "pp", "tp", "cp", "ep"], draw.choice([2, 3, 3, 4]))
        sizes = {axis: draw.choice([1, 2, 2, 3, 4, 8]) for axis in axes}
        ranks = torch.Size(sizes.values()).numel()
        fits = [per for per in (2, 3, 4, 6, 8) if per < ranks and ranks % per == 0]
        if fits and ranks <= 128:
            cases.append((sizes, {axis: float(draw.randint(1, 40)) for axis in axes}, draw.choice(fits)))
    return cases


@exercise(
    axes="every axis once",
    least="no other order lets fewer bytes leave the busiest host",
)
def axis_order(judge: Judge, answer: Callable) -> None:
    """`answer(sizes, sends, per_host)` is the order of the axes, the one whose neighbours have neighbouring
    ranks last.
    """
    cases = _meshes(judge.seed)
    for (sizes, sends_bytes, per_host), order in zip(cases, judge.call(answer, cases)):
        order = on_rank.plain(order)
        case = f"sizes {sizes}, sends {sends_bytes}, {per_host} ranks on a host"
        if not isinstance(order, list) or not all(isinstance(axis, str) for axis in order):
            judge.refuse(f"{case}: it must return the names of the axes in order, not {on_rank.short(order)}")
        if sorted(order) != sorted(sizes):
            judge.demand("axes", f"{case}: you have {on_rank.listed(order)}. Each axis must be there once.")
            return
        found = _leaving(tuple(order), sizes, sends_bytes, per_host)
        best = min(
            itertools.permutations(sizes), key=lambda axes: _leaving(axes, sizes, sends_bytes, per_host)
        )
        least = _leaving(best, sizes, sends_bytes, per_host)
        if found > AS_GOOD * least:
            judge.demand("axes", "")
            back = found == _leaving(best[::-1], sizes, sends_bytes, per_host) and len(sizes) == 2
            judge.demand(
                "least",
                f"{case}: with {on_rank.listed(order)}, {found:g} bytes leave the busiest host. With"
                f" {on_rank.listed(best)} it is {least:g}."
                + (" Neighbours along the last axis have neighbouring ranks." if back else ""),
            )
            return
    judge.demand("axes", "")
    judge.demand("least", "")


# -- Slurm's variables

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _first_host(nodes: str) -> str:
    name, bracket = re.match(r"([^,\[]+)(?:\[([^,\]-]+))?", nodes).groups()
    return name + (bracket or "")


def _slurms(seed: int) -> list[dict[str, str]]:
    """What Slurm sets for a task."""
    draw = random.Random(seed)
    lists = [
        *(
            "node7",
            "n[1-2]",
            "gpu[003-006,009]",
            "gpu[003,017-018],big1",
            "a100-12,a100-14",
            "rack2-h[008-011]",
        ),
        *(
            "login",
            "c[10-11],d[1-2]",
            f"p{draw.randrange(10)}n[{str(draw.randrange(10)).zfill(3)}-{draw.randrange(100, 999)}]",
        ),
    ]
    cases = []
    for nodes in lists:
        job_id = draw.choice([draw.randrange(1, 10_000), draw.randrange(10**4, 10**8)])
        if not cases:
            job_id = 1 + job_id % 999  # one has three digits at most
        per_host, hosts = draw.choice([1, 2, 4, 8]), draw.randint(2, 9)
        task = draw.randrange(hosts * per_host)
        cases.append(
            {
                "SLURM_JOB_ID": str(job_id),
                "SLURM_JOB_NODELIST": nodes,
                "SLURM_LOCALID": str(task % per_host),
                "SLURM_NODEID": str(task // per_host),
                "SLURM_NTASKS": str(hosts * per_host),
                "SLURM_PROCID": str(task),
                "PATH": "/usr/bin",
            }
        )
    return cases


def _wanted(slurm: Mapping[str, str]) -> dict[str, str]:
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "MASTER_ADDR": _first_host(slurm["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(20_000 + int(slurm["SLURM_JOB_ID"]) % 10_000),
    }


@exercise(
    names=f"the five variables {', '.join(NAMES)}, as text",
    ranks="RANK, LOCAL_RANK and WORLD_SIZE are those of the task",
    meeting="all tasks of a job meet at one address and port: the first host's",
)
def slurm_environment(judge: Judge, answer: Callable) -> None:
    """`answer(slurm)` is what torch.distributed needs, of what Slurm sets for a task."""
    cases = _slurms(judge.seed)
    for slurm, found in zip(cases, judge.call(answer, [(case,) for case in cases])):
        if not isinstance(found, dict):
            judge.refuse(f"it must return a dict, not {on_rank.short(found)}")
        wanted = _wanted(slurm)
        if missing := [name for name in NAMES if name not in found]:
            judge.demand("names", f"{missing[0]} is missing.")
            return
        if strange := [name for name in NAMES if not isinstance(found[name], str)]:
            judge.demand(
                "names",
                f"{strange[0]} is {on_rank.short(found[strange[0]])}, which is no text: os.environ takes text"
                " alone.",
            )
            return
        for key, names in (("ranks", NAMES[:3]), ("meeting", NAMES[3:])):
            if wrong := [name for name in names if found[name] != wanted[name]]:
                said = ", ".join(f"{name}={value}" for name, value in slurm.items() if name != "PATH")
                judge.demand("names", "")
                if key == "meeting":
                    judge.demand("ranks", "")
                judge.demand(
                    key,
                    f"{wrong[0]} is {on_rank.short(repr(found[wrong[0]]))}, and must be"
                    f" {wanted[wrong[0]]!r}, where Slurm says {said}.",
                )
                return
    for key in ("names", "ranks", "meeting"):
        judge.demand(key, "")
