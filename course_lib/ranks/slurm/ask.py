"""What Slurm says of a job, and its words in ours.

`squeue` is asked and not `sacct` (as submitit does): small clusters keep no accounts, and sacct hears of an
end late. A job that has ended stays in squeue for some minutes (MinJobAge in slurm.conf).

Sources: man pages squeue(1) and sinfo(1), "JOB STATE CODES" and "JOB REASON CODES".
"""

import re
import subprocess
from dataclasses import dataclass

__all__ = ["Told", "ended_in_words", "node_state", "reason_in_words", "told_of", "will_never_start"]

ASK_S = 10.0  # how long a command may take
_RUNS = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "SIGNALING", "STAGE_OUT")
_REASONS = {
    "None": "it was just handed in",
    "Priority": "other jobs come first",
    "Resources": "until nodes are free",
    "ReqNodeNotAvail": "a node that it needs is down, or reserved",
    "Dependency": "until another job has ended",
    "BeginTime": "its time has not come yet",
    "Reservation": "until its reservation begins",
    "JobHeldUser": "it is held; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "NodeDown": "a node that it needs is down",
    "PartitionDown": "its partition takes no jobs now",
    "PartitionInactive": "its partition starts no jobs now",
}
_NEVER = {
    "PartitionConfig": "its partition has not so many nodes, or not such ones",
    "PartitionNodeLimit": "its partition does not give a job so many nodes",
    "PartitionTimeLimit": "its partition does not give a job so much time: set minutes",
    "BadConstraints": "no node is as it asks for",
    "DependencyNeverSatisfied": "the job for which it waits has failed",
    "InvalidAccount": "its account is not known: set account",
    "InvalidQOS": "its quality of service is not known",
    "AssocMaxCpuPerJobLimit": "its account does not give a job so many cores",
    "AssocMaxNodePerJobLimit": "its account does not give a job so many nodes",
    "QOSMaxCpuPerJobLimit": "its quality of service does not give a job so many cores",
    "QOSMaxNodePerJobLimit": "its quality of service does not give a job so many nodes",
    "QOSMaxWallDurationPerJobLimit": "its quality of service does not give a job so much time: set minutes",
}
_MEMORY = re.compile(
    r"(?:slurmstepd-?(?P<node>[\w.-]*): error: .*exceeded memory limit \((?P<used>\d+) > (?P<limit>\d+)\)"
    r"|slurmstepd-?(?P<other>[\w.-]*): error: .*oom.kill)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Told:
    """What squeue tells of a job: state ("" if it knows of none), reason, nodes as Slurm writes them."""

    state: str = ""
    reason: str = ""
    nodes: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended: no process of it is left."""
        return self.state not in ("COMPLETING", *_RUNS)


def told_of(job: str) -> Told | None:
    """Where a job stands; None where Slurm does not answer just now."""
    told = _said("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T|%r|%N")
    if told is None:
        return None
    return Told(*told.splitlines()[0].split("|")) if told else Told()


def node_state(name: str) -> str:
    """What Slurm says of a node, such as "down" or "idle"; "" where it says nothing."""
    return (
        (_said("sinfo", "--noheader", "--nodes", name, "--format=%T") or "")
        .split("\n")[0]
        .rstrip("*~#!%$@^-")
    )


def reason_in_words(reason: str) -> str:
    """ "Priority (other jobs come first)"."""
    words = {**_REASONS, **_NEVER}.get(reason.strip("()").split(",")[0], "")
    if reason == "None":
        return words
    return reason + f" ({words})" * bool(words)


def will_never_start(reason: str) -> bool:
    """Whether a job that waits for this reason waits for ever."""
    return reason in _NEVER


def ended_in_words(
    told: Told, job: str, minutes: int, log: str, silent: list[str], not_begun: str = ""
) -> str:
    """Why Slurm has ended a job, in a sentence and what to do.

    Args:
        told: where it stands now.
        minutes: its time limit.
        log: what Slurm and its programs have written about it.
        silent: names of nodes that have not answered for a while.
        not_begun: the job's folder, if no node has ever written there.
    """
    named = " and ".join(silent)
    if found := _MEMORY.search(log):
        where = found["node"] or found["other"] or ""
        used = (
            f": {int(found['used']) / 1e6:,.0f} MB, and it may use {int(found['limit']) / 1e6:,.0f} MB"
            if found["used"]
            else ""
        )
        return (
            f"Slurm killed job {job}" + f" on node {where}" * bool(where) + f" for its memory{used}. Ask for"
            " more: hosts.Slurm(..., more={'mem': '8G'}), of each node."
        )
    if told.state == "OUT_OF_MEMORY":
        return (
            f"Slurm killed job {job} for its memory. Ask for more: hosts.Slurm(..., more={{'mem': '8G'}}), of"
            " each node."
        )
    if told.state == "TIMEOUT" or told.reason == "TimeLimit":
        return (
            f"Slurm ended job {job}: its time limit of {minutes} minute{'s' * (minutes != 1)} was over. Ask"
            f" for more: hosts.Slurm(..., minutes={max(2 * minutes, 10)})."
        )
    if told.state == "NODE_FAIL" or silent and told.state in ("", "COMPLETING", *_RUNS):
        return (
            (f"Node {named}" if named else f"A node of {told.nodes}")
            + f" of Slurm job {job} has failed"
            + ("; Slurm has taken the job down (NODE_FAIL)." if told.state == "NODE_FAIL" else ".")
            + " Run it again: Slurm gives it nodes that work."
        )
    if told.state == "PREEMPTED":
        return f"Slurm ended job {job} to make room for one that comes first (PREEMPTED). Run it again."
    if told.state == "CANCELLED":
        return f"Slurm job {job} was cancelled from outside this notebook (scancel, or an administrator)."
    last = [line for line in log.strip().splitlines() if "error" in line.lower()][-1:]
    said = f" Its log says: {last[0].strip()}" if last else ""
    if not_begun and not log.strip():
        said = (
            f" Its nodes have written nothing into {not_begun}: give hosts.Slurm(folder=...) a path that they"
            " share with this machine."
        )
    state = f"({told.state}" + f", {told.reason}" * (told.reason not in ("", "None")) + ")"
    return f"Slurm job {job} has ended before its ranks had {state}.{said}"


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" in done.stderr:
        return ""
    return None if done.returncode else done.stdout.strip()
