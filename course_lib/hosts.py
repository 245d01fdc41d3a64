"""Hosts to run on: several on this machine, joined by a real link and by nothing else, or nodes of a cluster.

run(train, ranks=4, on=hosts.Linked(2, mbit=200))

run(train, ranks=4, on=hosts.Slurm(nodes=2))

with hosts.Linked(2, mbit=200) as two:          # the same for programs of your own
    two.popen(0, ["torchrun", "--nnodes=2", ...])
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from course_lib.arguments import instance, number, whole
from course_lib.ranks import holder, network

if TYPE_CHECKING:  # who only starts programs in hosts need not wait for torch
    from course_lib.ranks.devices import Placement

__all__ = ["Linked", "Slurm", "cut_link"]

MOST_HOSTS = 16
STARTS_S = 300.0  # how long the ranks of a job on Slurm may take to start, in the time that it asks for
ANSWER_S = 20.0  # how long Slurm may take to say that it is there
END_S = 10.0  # how long it may take to end what runs in linked hosts


@dataclass(frozen=True)
class Linked:
    """Several hosts on this machine, joined by a real link of a limited rate.

    Each host is a network namespace of Linux: its ranks share an address and talk to each other without a
    limit; to another host there is one way, a virtual cable whose bytes the system counts and whose rate it
    limits, in each direction for itself. Processor and memory are those of the one machine. The hosts have no
    name and no file: the system removes them with their last process.

    Args:
        hosts: how many, 2 to 16. Two are joined by a cable, more by a switch, with a cable to each.
        mbit: rate of each cable, in 10^6 bits per second, each way. Headers of frames count, too (below 1%).
        delay_ms: how long each packet is under way besides, in milliseconds. Where the system cannot delay
            packets, they are not, and `job.absent["link delay"]` says why.

    Errors: ValueError for numbers that cannot be. Where this machine cannot make such hosts, `run` raises a
    RuntimeError; `missing()` tells before.
    """

    here: ClassVar[bool] = True  # this machine's cores and memory are what its ranks use
    hosts: int
    mbit: float = 1000.0
    delay_ms: float = 0.0
    _held: list = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        whole("hosts", self.hosts, least=2, most=MOST_HOSTS)
        number("mbit", self.mbit, above=True)
        if not 0.01 <= self.mbit <= 100_000:
            raise ValueError(f"mbit={self.mbit!r}: it must be from 0.01 to 100000, in 10^6 bits per second.")
        number("delay_ms", self.delay_ms)

    def missing(self) -> str:
        """What this machine lacks to make such hosts, and what to do, in one sentence; "" if it can.

        They are tried once in a notebook, which takes a moment. Where they cannot be had, links that sleep
        (`course_lib.stand_ins.links`) show the same times, modelled.
        """
        return _tried(self.hosts > 2, self.delay_ms > 0)["failed"]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The address of each host on the link."""
        return tuple(map(network.address, range(self.hosts)))

    def popen(self, host: int, program: Sequence[str], **options) -> subprocess.Popen:
        """Start a program in a host, as `subprocess.Popen` does; within `with hosts.Linked(...) as two:`.

        The environment tells gloo and NCCL which interface leads to the other hosts. When the block is left,
        or the notebook ends, all that still runs in the hosts is killed.

        Args:
            host: its number, from 0.
            program: name and arguments.
            options: those of `subprocess.Popen`.

        Errors: RuntimeError outside of the block; ValueError for a host that is not there.
        """
        if not self._held:
            raise RuntimeError("popen starts programs within `with hosts.Linked(...) as two:` only.")
        whole("host", host, least=0, most=self.hosts - 1)
        process, told = self._held[0]
        names = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), network.INTERFACE)
        environ = options.pop("env", None)
        return subprocess.Popen(
            holder.command("enter", str(process.pid), ",".join(map(str, told["places"][host])), *program),
            env=names | dict(os.environ if environ is None else environ),
            **options,
        )

    def __enter__(self) -> "Linked":
        if self._held:
            raise RuntimeError("These hosts are open already: make others with another hosts.Linked(...).")
        process = subprocess.Popen(
            holder.command("hold", json.dumps(self.plan())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        told = _answer(process.stdout.readline() if process.stdout else "")
        if told["failed"]:
            process.communicate()
            raise RuntimeError(told["failed"])
        self._held.append((process, told))
        return self

    def __exit__(self, *error) -> None:
        process, told = self._held.pop()
        try:
            process.communicate(timeout=END_S)  # it closes this end, and the holder ends what is within
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        network.end_all_within(set(told["inodes"]))  # where the holder was killed

    def plan(self) -> dict:
        """What `network.build` takes."""
        return {"hosts": self.hosts, "mbit": self.mbit, "delay_ms": self.delay_ms}

    def placement(self, ranks: int, backend: str) -> "Placement":
        """Backend and devices of so many ranks."""
        from course_lib.ranks import devices

        return devices.place(ranks, "gloo")

    def request(self, ranks: int, backend: str, timeout: float, label: str) -> dict:
        """What a job's request says of these hosts."""
        return {"interface": network.INTERFACE, "plan": self.plan(), "hosts": in_turn(ranks, self.hosts)}

    def absent(self) -> dict[str, str]:
        """What a job on these hosts lacks, each with the reason."""
        reason = _tried(self.hosts > 2, self.delay_ms > 0)["absent"]
        return {"link delay": reason} if reason else {}

    def in_words(self) -> str:
        """As figures state it: "2 linked hosts, 200 Mbit/s"."""
        delay = f", {self.delay_ms:g} ms" if self.delay_ms and not self.absent() else ""
        return f"{self.hosts} linked hosts, {self.mbit:g} Mbit/s{delay}"

    def checked(self, ranks: int, backend: str) -> None:
        """Make sure that so many ranks can run on these hosts.

        Errors: ValueError or RuntimeError, in one sentence.
        """
        if ranks % self.hosts:
            raise ValueError(
                f"ranks={ranks}: each of {self.hosts} linked hosts gets as many; take {self.hosts}, or"
                f" {2 * self.hosts}."
            )
        if backend == "nccl":
            raise ValueError(
                "backend='nccl': NCCL moves bytes from GPU to GPU of one machine, past every link; on linked"
                " hosts take gloo."
            )
        if reason := self.missing():
            raise RuntimeError(reason)


@dataclass(frozen=True)
class Slurm:
    """Nodes of a Slurm cluster: `run` hands a job to its queue, waits, and brings the same Job back.

    The notebook runs where sbatch does, on a login node say; it shares a folder with the nodes, and the same
    Python stands at the same path there. Each node gets as many ranks, in order. submitit hands the job over
    (`pip install submitit`, or this project's extra `cluster`); what comes back as it goes on, and what
    explains failures, is ours (course_lib/ranks/slurm).

    An interrupt cancels the job, and so does the end of the notebook, however it comes. Nodes get of the
    notebook's environment what programs need (PATH, LANG, OMP_..., NCCL_...), and no tokens. gloo and torch's
    store ask nobody who connects for a password, as under torchrun: the nodes' network must be trusted. In a
    timeline, ranks of several nodes are compared by the nodes' time of day, which agrees to a millisecond or
    so where the cluster keeps it (NTP).

    Args:
        nodes: how many.
        partition: of the cluster; its default one if None.
        account: that pays; the user's default one if None.
        minutes: Slurm's time limit; None for the job's timeout, and five minutes to start. A short limit
            starts sooner.
        gpus: for each node. None: none, or with backend="nccl" one for each rank.
        folder: in which each job gets a folder of its own (mode 0700) while it runs, on a file system that
            the nodes share; ~/.course_lib if None.
        environment: names of variables of the notebook that nodes get besides: ("HF_HOME",).
        more: other options of sbatch, by their names: {"mem": "8G", "qos": "short", "constraint": "a100"}.

    Errors: TypeError or ValueError for what cannot be. Where submitit or sbatch is missing, or Slurm refuses
    the job, `run` raises a RuntimeError; `missing()` tells of the former before.
    """

    here: ClassVar[bool] = False
    nodes: int
    partition: str | None = None
    account: str | None = None
    minutes: int | None = None
    gpus: int | None = None
    folder: str | os.PathLike | None = None
    environment: Sequence[str] = ()
    more: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        whole("nodes", self.nodes)
        for name in ("partition", "account"):
            if getattr(self, name) is not None:
                instance(name, getattr(self, name), str, "the name of one")
        if self.minutes is not None:
            whole("minutes", self.minutes)
        if self.gpus is not None:
            whole("gpus", self.gpus, least=0)
        if self.folder is not None and not isinstance(self.folder, (str, os.PathLike)):
            raise TypeError(f"folder={self.folder!r}: it must be a path.")
        if not isinstance(self.environment, (tuple, list, set)) or not all(
            isinstance(name, str) for name in self.environment
        ):
            raise TypeError(f"environment={self.environment!r}: it must be names, as in ('HF_HOME',).")
        instance("more", self.more, dict, "as in {'mem': '8G'}")

    def missing(self) -> str:
        """What this machine lacks to hand a job to Slurm, and what to do, in one sentence; "" if nothing."""
        if importlib.util.find_spec("submitit") is None:
            return "Jobs on Slurm need submitit, which is not installed: pip install submitit."
        for tool in ("sbatch", "squeue", "scancel"):
            if not shutil.which(tool):
                return (
                    f"Jobs on Slurm are handed over by its command {tool}, and there is none here: start"
                    " the notebook on a login node of the cluster."
                )
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(["squeue", "-h", "--me"], capture_output=True, text=True, timeout=ANSWER_S)
            if not asked.returncode:
                return ""
        return (
            "Slurm's commands are here, and no Slurm answers them: start the notebook on a login node of the"
            " cluster, or ask who looks after it (squeue says more)."
        )

    def placement(self, ranks: int, backend: str) -> "Placement":
        """Backend and devices of so many ranks: of nodes that nobody can ask before they run."""
        from course_lib.ranks.devices import Placement

        on_one_node, gpus = ranks // self.nodes, self._gpus(ranks, backend)
        if not gpus:
            return Placement("gloo", ("cpu",) * ranks, "")
        chosen = "nccl" if backend != "gloo" and gpus >= on_one_node else "gloo"
        return Placement(chosen, tuple(f"cuda:{r % on_one_node % gpus}" for r in range(ranks)), "")

    def request(self, ranks: int, backend: str, timeout: float, label: str) -> dict:
        """What a job's request says of these nodes."""
        return {
            "interface": "",
            "hosts": in_turn(ranks, self.nodes),
            "slurm": {
                "nodes": self.nodes,
                "name": "-".join(re.findall(r"\w+", label))[:40] or "run",
                "minutes": self.minutes or math.ceil((timeout + STARTS_S) / 60),
                "partition": self.partition,
                "account": self.account,
                "gpus": self._gpus(ranks, backend),
                "folder": str(Path(self.folder or "~/.course_lib").expanduser().absolute()),
                "environment": list(self.environment),
                "more": {str(name): value for name, value in self.more.items()},
            },
        }

    def _gpus(self, ranks: int, backend: str) -> int:
        return self.gpus if self.gpus is not None else ranks // self.nodes if backend == "nccl" else 0

    def absent(self) -> dict[str, str]:
        """What a job on these nodes lacks, each with the reason: nothing."""
        return {}

    def in_words(self) -> str:
        """As figures state it: "2 nodes of Slurm"."""
        return f"{self.nodes} node{'s' * (self.nodes != 1)} of Slurm"

    def checked(self, ranks: int, backend: str) -> None:
        """Make sure that so many ranks can run on these nodes, as far as is known here.

        Errors: ValueError or RuntimeError, in one sentence.
        """
        if ranks % self.nodes:
            raise ValueError(
                f"ranks={ranks}: each of {self.nodes} nodes gets as many; take {self.nodes}, or"
                f" {2 * self.nodes}."
            )
        if backend == "nccl" and self._gpus(ranks, backend) < ranks // self.nodes:
            raise ValueError(
                f"backend='nccl': NCCL needs one GPU for each of {ranks // self.nodes} ranks of a node, and"
                f" hosts.Slurm(gpus={self.gpus}) asks for fewer; leave gpus out, or take backend='gloo'."
            )
        if reason := self.missing():
            raise RuntimeError(reason)


def cut_link() -> None:
    """Take the link of this rank's host down, as if its cable were pulled. Nothing comes through until the
    job ends.

    A rank of a job on linked hosts calls this.

    Errors: RuntimeError where there is no link.
    """
    from course_lib.measure import link  # here: the notebook's own process has no link, and may have no torch

    if not link.is_there():
        raise RuntimeError(
            "cut_link is for a rank on linked hosts: for the function that run(fn, on=hosts.Linked(2)) calls."
        )
    link.take_down()


def in_turn(ranks: int, hosts: int) -> list[int]:
    """The number of each rank's host: as many on each, in order."""
    return [rank * hosts // ranks for rank in range(ranks)]


@functools.cache
def _tried(switch: bool, delay: bool) -> dict:
    """What came of making hosts, and taking them away again."""
    plan = json.dumps({"hosts": 3 if switch else 2, "mbit": 100, "delay_ms": int(delay)})
    done = subprocess.run(holder.command("try", plan), capture_output=True, text=True)
    return _answer(done.stdout)


def _answer(line: str) -> dict:
    return json.loads(
        line or '{"failed": "Linked hosts cannot be made here: the try has failed.", "absent": ""}'
    )
