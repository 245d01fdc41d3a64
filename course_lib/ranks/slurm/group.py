"""The kernel's side of a job on Slurm: a Group whose ranks a courier starts, and that knows how to wait."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from course_lib.ranks.launch import Group
from course_lib.ranks.slurm import ask

__all__ = ["SlurmGroup"]

ROOT = str(Path(__file__).resolve().parents[3])
ANSWER_S = 5.0  # how long a rank that is asked where it is may take: over files, on a busy machine
SILENT_S = 20.0  # how long nodes may miss a sign of life from here, before they end the ranks
WHY_S = 20.0  # how long the courier may take to learn why ranks have failed
NAMED = 4  # nodes, in words
CLOSE_S = 20.0  # how long it may take to see the job to its end


class _Courier:
    """The process that the ranks' sockets are handed to, in the place of a fork server."""

    process: subprocess.Popen | None = None

    def difference(self) -> dict:
        """What ranks get of the notebook's environment: nothing by this way, which is a file that stays for a
        while; `submit` says what nodes get.
        """
        return {"environ": {}, "environ_without": []}

    def hand_over(self, files: list) -> None:
        """Start it with its ends of the sockets, and the content."""
        numbers = [file.fileno() for file in files]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "course_lib.ranks.slurm.courier", *map(str, numbers)],
            pass_fds=numbers,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "KINETO_LOG_LEVEL": "99",
                "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class SlurmGroup(Group):
    """The ranks of a job on Slurm. See Group; its folder is one that the nodes share."""

    def __init__(self, request: dict, content: dict, roles: Sequence[str] = ()):
        self._courier, self._begin = _Courier(), time.monotonic()
        self._number = self._state = self._reason = self._nodes = ""
        self._running, self._why = False, None
        self._ranks_per_node = -(-request["ranks"] // request["slurm"]["nodes"])
        request["slurm"]["silent_s"] = SILENT_S
        directory = Path(request["slurm"]["folder"], f"job-{secrets.token_hex(8)}")
        super().__init__(request, content, roles, self._courier, directory)

    @property
    def waits(self) -> str:
        """What it waits for as long as its ranks do not run: "waits in Slurm's queue, 12 s: Priority ..."."""
        seconds = f"{time.monotonic() - self._begin:.0f} s"
        if self._running or self.failed or self.disturbed:
            return ""
        if not self._number:
            return f"is handed to Slurm, {seconds}"
        if self._state in ("", "PENDING"):
            reason = ask.reason_in_words(self._reason) if self._reason else ""
            return f"waits in Slurm's queue, {seconds}" + f": {reason}" * bool(reason)
        return f"starts on {self._nodes or 'the nodes'} as job {self._number}, {seconds}"

    def why(self) -> str:
        """Why ranks have failed, if it was from outside: a sentence, "" if it was not."""
        self._why = None
        self._order(b"why\n")
        self._listen_until(lambda: self._why is not None or not self.supervised, WHY_S)
        if self._why is None and not self.supervised:
            return "The process beside the notebook that speaks to Slurm was killed."
        return self._why or ""

    def ask_and_wait(self, wait_s: float = ANSWER_S) -> None:
        """Find out where every running rank is, if they run."""
        if not self.waits:
            super().ask_and_wait(wait_s)

    def close(self) -> None:
        """End the job, and wait until Slurm has nothing of it any more."""
        super().close()
        process = self._courier.process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_S)
        if process.returncode and self._number:  # it was killed
            subprocess.run(["scancel", self._number], capture_output=True, check=False)

    def _take_report(self, record: dict) -> None:
        if "number" in record:
            self._number = record["number"]
        elif "state" in record:
            self._state, self._reason = record["state"], record["reason"]
            self._nodes = record["nodes_in_words"]
        elif "running" in record:
            self._running = True
            self.hardware = _in_words(record["nodes"])
        elif "disturbed" in record:
            self.disturbed = True
        elif "why" in record:
            self._why = record["why"]
        elif "refused" in record:
            said = record["refused"]
            self.failed = RuntimeError(said)
        else:
            super()._take_report(record)


def _in_words(nodes: list[tuple[str, str]]) -> str:
    """Names and hardware of nodes: "n1, n2: each with 2 cores, AMD EPYC"."""
    names, kinds = [name for name, _ in nodes], list(dict.fromkeys(hardware for _, hardware in nodes))
    named = ", ".join(names if len(names) <= NAMED else [*names[:NAMED], "..."])
    return f"{named}: " + "each with " * (len(kinds) == 1 < len(names)) + " or ".join(kinds)
