"""A process beside the kernel, one for each job on Slurm: it hands the job over, carries messages between the
kernel and the nodes, and sees to it that nothing is left.

It holds the other ends of the kernel's sockets, as a supervisor does on one machine. When they close, however
the kernel has ended, it cancels the job and removes the folder. If it is killed together with the kernel, the
nodes miss its sign of life (`group.SILENT_S`), end their ranks and remove the folder.
"""

import contextlib
import json
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from course_lib.ranks.folder import KEPT_S
from course_lib.ranks.slurm import ask, mail
from course_lib.ranks.slurm.submit import hand_over

__all__ = ["main", "run_agent"]

LOOK_EVERY_S, BEAT_EVERY_S = 0.05, 1.0
ASK_EVERY_S, ASK_SELDOM_S = 1.0, 10.0  # how often Slurm is asked, at first and later
LATE_S = 3.0  # a node has said nothing for so long: Slurm is asked what it knows
# a node that has said nothing for so long has failed, whatever Slurm says: where ranks have failed as well,
# and where none has (a network file system may stand still for a while)
LOST_S, LOST_ALONE_S = 10.0, 60.0
END_S = 15.0  # how long the end of a job is waited for


def main() -> None:
    """Serve one job; the words of the command line are descriptors: the kernel's job line, the content, and
    each rank's line.
    """
    job, content, *channels = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the Interrupt button is the kernel's business
    _Courier(job, content, channels).work()


class _Node:
    def __init__(self, directory: str, number: int):
        self.name, self.hardware, self.heard_at = f"number {number}", "", time.monotonic()
        self.inbox = mail.Inbox(mail.path_of(directory, number))
        self.forked = self.gone = self.lost = False


class _Courier:
    def __init__(self, job: int, content: int, channels: list[int]):
        self._job, self._content = socket.socket(fileno=job), content
        self._lines = {rank: socket.socket(fileno=end) for rank, end in enumerate(channels)}
        self._buffer, self._listening, self._ended = b"", True, threading.Event()
        self._told: ask.Told | None = None
        self._number = ""
        self._cancel: Callable[[], None] = lambda: None
        self._asked_at, self._begin, self._why_at = 0.0, time.monotonic(), 0.0
        self._disturbed = self._killed = False
        self._over: set[int] = set()  # ranks that have ended

    def work(self) -> None:
        line = self._read_job()
        if not line:
            return
        self._request: dict = json.loads(line[0])
        self._directory = self._request["directory"]
        try:
            self._lay_out()
            threading.Thread(target=self._beat, daemon=True).start()
            self._number, self._cancel = hand_over(self._request, run_agent)
            self._tell(number=self._number)
            while self._listening:
                self._look()
        except Exception as error:
            self._tell(refused=" ".join(str(error).split()))
        finally:
            self._end()
            self._ended.set()
            shutil.rmtree(self._directory, ignore_errors=True)
            self._job.close()

    def _lay_out(self) -> None:
        """The folder, with all its files."""
        folder = Path(self._directory)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.parent.glob("job-*"):  # of a job that never began, after its courier was killed
            with contextlib.suppress(OSError):
                if time.time() - (other / "alive").stat().st_mtime > KEPT_S:
                    shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(mode=0o700)
        nodes = range(self._request["slurm"]["nodes"])
        ranks = [f"rank{rank}.{kind}" for rank in self._lines for kind in ("out", "stack")]
        for name in (*mail.FILES, *(f"node{node}" for node in nodes), *ranks):
            (folder / name).touch(mode=0o600)
        for name in ("request", "content"):
            (folder / name).touch(mode=0o600)
        (folder / "request").write_text(json.dumps(self._request))
        with open(self._content, "rb") as sent, open(folder / "content", "wb") as file:
            sent.seek(0)
            shutil.copyfileobj(sent, file)
        self._orders = mail.Outbox(mail.path_of(self._directory, "orders"))
        self._nodes = [_Node(self._directory, node) for node in nodes]

    def _beat(self) -> None:
        """A thread: show the nodes that this process lives."""
        number = 0
        while not self._ended.wait(BEAT_EVERY_S):
            number += 1
            with contextlib.suppress(OSError):
                mail.beat(self._directory, number)

    def _look(self) -> None:
        """One round: what the kernel says, what the nodes say, what Slurm says."""
        ready, _, _ = select.select([self._job, *self._lines.values()], [], [], LOOK_EVERY_S)
        for rank in [rank for rank, line in self._lines.items() if line in ready]:
            self._carry_out(rank)
        if self._job in ready:
            lines = self._read_job()
            self._listening = bool(lines)
            for order in lines or []:
                self._obey(order)
        for node in self._nodes:
            for rank, content in node.inbox.read():
                if rank == mail.REPORT:
                    self._take(node, json.loads(content))
                elif rank in self._lines:
                    with contextlib.suppress(OSError):  # the kernel does not listen to it any more
                        self._lines[rank].sendall(content)
        self._ask_slurm()
        self._say_why()

    def _carry_out(self, rank: int) -> None:
        """What the kernel says to a rank; nothing, if it has closed the rank's line."""
        try:
            content = self._lines[rank].recv(4096)
        except OSError:
            content = b""
        if not content:
            self._lines.pop(rank).close()
        self._orders.send(rank, content)

    def _obey(self, order: str) -> None:
        if order == "why":
            self._why_at = time.monotonic()
        else:
            self._order(order)

    def _order(self, order: str) -> None:
        self._orders.report(order=order)
        if order == "kill":
            self._killed = True
            if not all(node.forked for node in self._nodes):
                self._cancel()

    def _take(self, node: _Node, told: dict) -> None:
        """What an agent tells of itself and its ranks."""
        node.heard_at = time.monotonic()
        if "here" in told:
            node.name, node.hardware = told["here"]["name"], told["here"]["hardware"]
        elif "forked" in told:
            node.forked = True
            if all(node.forked for node in self._nodes):
                self._tell(running=True, nodes=[[node.name, node.hardware] for node in self._nodes])
        elif "rank" in told:
            self._over.add(told["rank"])
            self._tell(**told)
        elif "term" in told:
            self._disturb()
        elif "gone" in told:
            node.gone = True

    @property
    def _silent(self) -> list[_Node]:
        """Nodes that have told nothing for a while, although their ranks run."""
        now = time.monotonic()
        return [n for n in self._nodes if n.forked and not n.gone and now - n.heard_at > LATE_S]

    def _ask_slurm(self) -> None:
        """Now and then; once all nodes are there, only if something seems wrong."""
        now, running = time.monotonic(), all(node.forked for node in self._nodes)
        often = ASK_EVERY_S if now - self._begin < 60 or running else ASK_SELDOM_S
        if (self._told and self._told.over) or now - self._asked_at < often:
            return
        quiet = not self._silent and not any(node.gone for node in self._nodes)
        if running and quiet and not self._disturbed:
            return
        told = ask.told_of(self._number)
        self._asked_at = time.monotonic()
        if told is None:
            return
        if told != self._told and not running:
            self._tell(state=told.state, reason=told.reason, nodes_in_words=told.nodes)
        self._told = told
        if told.state == "PENDING" and ask.will_never_start(told.reason):
            self._tell(refused=f"it would never start: {ask.reason_in_words(told.reason)}")
        patience_s = LOST_S if self._why_at else LOST_ALONE_S
        for node in self._silent:
            late = now - node.heard_at > patience_s
            node.lost = node.lost or late or ask.node_state(node.name) == "down"
        if told.over or any(node.lost for node in self._nodes):
            self._disturb()

    def _disturb(self) -> None:
        """Slurm ends the job, or a node is lost: let the kernel know. It asks ranks where they are first."""
        if not self._disturbed:
            self._disturbed, self._asked_at = True, 0.0
            self._tell(disturbed=True)

    def _say_why(self) -> None:
        """The kernel wants to know why ranks have failed: from outside, or by themselves."""
        if not self._why_at:
            return
        now = time.monotonic()
        waited = now - self._why_at
        lost = [node.name for node in self._nodes if node.lost]
        if self._disturbed:
            if not self._killed:
                self._order("kill")
            if not (self._told and self._told.over) and waited < END_S and not lost:
                return
            log = self._log()
            told = self._told or ask.Told()
            minutes = self._request["slurm"]["minutes"]
            # nodes that live have ended their ranks by now, and said so
            names = lost or [node.name for node in self._nodes if node.forked and not node.gone]
            if told.state == "NODE_FAIL" and not names:  # what has failed is Slurm's own program there
                names = [node.name for node in self._nodes if ask.node_state(node.name) == "down"]
            unseen = "" if any(node.hardware for node in self._nodes) else self._directory
            self._tell(why=ask.ended_in_words(told, self._number, minutes, log, names, unseen))
            for rank in set(range(self._request["ranks"])) - self._over:  # nobody is left who could tell
                self._tell(rank=rank, status=-signal.SIGKILL, peak_bytes=0)
        elif self._silent or not all(node.heard_at > self._why_at or node.gone for node in self._nodes):
            return
        else:
            self._tell(why="")
        self._why_at = 0.0

    def _log(self) -> str:
        """What Slurm has written about the job."""
        logs = sorted(Path(self._directory).glob(f"{self._number}_*_log.*"))
        texts = []
        for log in logs:
            with contextlib.suppress(OSError):
                texts.append(log.read_text(errors="replace")[-20_000:])
        return "\n".join(texts)

    def _end(self) -> None:
        """See the job to its end; cancel it if it does not come to it by itself."""
        if not self._number:
            return
        with contextlib.suppress(OSError):
            if not all(node.gone for node in self._nodes):
                self._order("kill")
            if not self._listening and not all(node.forked for node in self._nodes):
                self._cancel()
        begin, cancelled = time.monotonic(), False
        while (waited := time.monotonic() - begin) < END_S:
            told = ask.told_of(self._number)
            if told is not None and told.over:
                return
            lost = any(node.lost for node in self._nodes)
            if (waited > 2 or lost) and not cancelled:
                self._cancel()
                cancelled = True
            if lost:  # Slurm ends the job once it has given up the node, which may take minutes
                return
            time.sleep(0.1)

    def _tell(self, **record) -> None:
        try:
            self._job.sendall(json.dumps(record).encode() + b"\n")
        except OSError:  # nobody listens any more; the job still has to be ended
            self._listening = False

    def _read_job(self) -> list[str]:
        """The lines that the kernel has sent; none if it has closed its end. Waits for the first."""
        while b"\n" not in self._buffer:
            try:
                piece = self._job.recv(1 << 16)
            except OSError:
                piece = b""
            if not piece:
                return []
            self._buffer += piece
        *lines, self._buffer = self._buffer.split(b"\n")
        return [line.decode() for line in lines]


def run_agent(directory: str) -> None:
    """What runs on each node. submitit sends its name."""
    from course_lib.ranks.slurm import agent  # here: it needs torch, and a courier does not

    agent.main(directory)


if __name__ == "__main__":
    from course_lib.ranks.slurm import courier  # under its own name, by which the nodes find it

    courier.main()
