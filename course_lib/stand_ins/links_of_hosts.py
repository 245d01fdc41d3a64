"""A modelled link between hosts, for a machine that cannot make linked hosts (`hosts.Linked(2).missing()`
says why): its ranks are told that they are on several hosts, and each of their steps ends with a sleep, as
long as the link would need for the bytes that cross it.

    two = hosts.Linked(2, mbit=200)
    job = run_on(two, train, ranks=4)  # on linked hosts where they can be had, else over a link that sleeps
    link_bytes(job), how_known(job)  # 6015258.0, "measured"; or 6000000.0, "modelled"
    with machines(two) as (popen, meeting):  # the same for programs such as torchrun
        popen(1, ["torchrun", "--nnodes=2", f"--rdzv-endpoint={meeting}", ...])

A figure of such a run must say which it is: `job.where` does.
"""

import contextlib
import dataclasses
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist

from course_lib import measure, theory
from course_lib.arguments import instance, whole
from course_lib.collectives import COLLECTIVES
from course_lib.hosts import Linked, in_turn
from course_lib.jobs import run
from course_lib.measure import calls
from course_lib.ranks import devices
from course_lib.record import Job
from course_lib.roles import label_of

__all__ = ["run_on", "link_bytes", "how_known", "machines"]

Popen = Callable[..., subprocess.Popen]

_MODELLED = "modelled_links"  # a row for each host, in Job.records


def run_on(on: Linked, fn: Callable, *args, ranks: int = 4, **options) -> Job:
    """Run `fn(*args)` as `course_lib.run(fn, *args, ranks=ranks, on=on)` does, on linked hosts; where this
    machine cannot make them, on the machine as it is, over a link that sleeps.

    The link that sleeps counts what the first step of `measure.step` hands over to other hosts: of a
    collective, what a ring over its ranks in their order sends from host to host, as gloo runs it. Each later
    step then sleeps at its end, so nothing hides under computing.

    Args:
        on: the hosts, and how fast their link is.
        ranks: of all hosts together, the same number on each.
        options: those of `run`, and the function's own.

    Returns:
        The Job. Where its link slept, `job.where` says so, and `job.links`, which is measured, is empty.

    Errors: those of `run`.
    """
    instance("on", on, Linked, "as in hosts.Linked(2, mbit=200)")
    if not on.missing():
        return run(fn, *args, ranks=ranks, on=on, **options)
    if whole("ranks", ranks) % on.hosts:
        raise ValueError(f"ranks={ranks}: each of {on.hosts} linked hosts gets as many; take {2 * on.hosts}.")
    options = {"label": label_of(fn), **options}
    over = functools.partial(_over_a_link, fn, in_turn(ranks, on.hosts), on.mbit * 1e6 / 8)
    job = run(over, *args, ranks=ranks, **options)
    results, crossed = zip(*job.results)
    return dataclasses.replace(
        job,
        results=list(results),
        hardware=f"{on.in_words()}, by a link that sleeps: modelled; {job.hardware}",
        records=job.records | {_MODELLED: [{"sent_bytes": sent} for sent in crossed[0]]},
    )


def link_bytes(job: Job) -> float:
    """Return the bytes that the busiest host sends over its link in a step: counted on its interface in the
    traced step, or by formula where the link slept (see `how_known`).

    Errors: ValueError for a job on one host.
    """
    instance("job", job, Job, "what run_on returns")
    rows = job.links[job.links["phase"] == "traced"].to_dict("records") or job.records.get(_MODELLED)
    if not rows:
        raise ValueError(
            f"{job.label} has no link in a traced step: run it with run_on, for two steps or more."
        )
    return float(max(row["sent_bytes"] for row in rows))


def how_known(job: Job) -> str:
    """Return "modelled" for a job whose link slept, else "measured"."""
    return "modelled" if _MODELLED in instance("job", job, Job, "what run_on returns").records else "measured"


@contextlib.contextmanager
def machines(on: Linked) -> Iterator[tuple[Popen, str]]:
    """Within this context, start programs on linked hosts; where there are none, beside each other on this
    machine, as if each terminal were another host.

    Yields:
        popen(host, program, **options), as `hosts.Linked.popen`; and where programs may meet, "address:port"
        on host 0. When the context ends, what still runs is killed.
    """
    instance("on", on, Linked, "as in hosts.Linked(2, mbit=200)")
    if not on.missing():
        with on:
            yield on.popen, f"{on.addresses[0]}:29500"
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[subprocess.Popen] = []

    def popen(host: int, program: Sequence[str], **options) -> subprocess.Popen:
        whole("host", host, least=0, most=on.hosts - 1)
        environ = {"GLOO_SOCKET_IFNAME": devices.loopback()} | dict(options.pop("env", None) or os.environ)
        started.append(subprocess.Popen(program, env=environ, start_new_session=True, **options))
        return started[-1]

    try:
        yield popen, f"127.0.0.1:{port}"
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _over_a_link(fn: Callable, host_of: Sequence[int], bytes_per_s: float, *args, **kwargs) -> tuple:
    """On a rank: what `fn` returns, and what crosses the link in a step, from each host."""
    host = host_of[dist.get_rank()]
    neighbours = [rank for rank, its in enumerate(host_of) if its == host]
    os.environ |= {
        "LOCAL_RANK": str(neighbours.index(dist.get_rank())),
        "LOCAL_WORLD_SIZE": str(len(neighbours)),
        "GROUP_RANK": str(host),
        "GROUP_WORLD_SIZE": str(max(host_of) + 1),
    }
    crossed: list[float] = []  # from each host; empty before the first step has ended
    asked: list[float] = []  # of this rank, in the first step
    plain = measure.step

    class Step(plain):
        def __enter__(self) -> None:
            super().__enter__()
            if not crossed:
                self._stop = calls.attach(lambda call: asked.append(_crossing(call, host_of)))

        def __exit__(self, kind, error, trace) -> None:
            if crossed and kind is None:
                with measure.span("modelled link", communication=True):
                    time.sleep(crossed[host] / bytes_per_s)
            elif not crossed:
                self._stop()
            super().__exit__(kind, error, trace)
            if not crossed and kind is None:
                of_ranks = [0.0] * len(host_of)
                dist.all_gather_object(of_ranks, sum(asked))
                crossed.extend(
                    sum(sent for sent, its in zip(of_ranks, host_of) if its == each)
                    for each in range(max(host_of) + 1)
                )

    measure.step = Step
    try:
        return fn(*args, **kwargs), crossed
    finally:
        measure.step = plain


def _crossing(call: dict, host_of: Sequence[int]) -> float:
    """Bytes that one call of this rank hands over to another host. What ranks of a group pass on in turn is
    said by each of them for itself.
    """
    ranks = [int(rank) for rank in call["group"].split(",")]
    rank, row = dist.get_rank(), COLLECTIVES[call["op"]]
    if row.kind in ("receive", "meeting"):
        return 0.0
    if row.kind == "send":
        return call["payload_bytes"] * (host_of[ranks[call["_to"]]] != host_of[rank])
    neighbour = ranks[(ranks.index(rank) + 1) % len(ranks)]
    if host_of[neighbour] == host_of[rank]:
        return 0.0
    return theory.gloo_bytes(call["op"], call["payload_bytes"], len(ranks))
