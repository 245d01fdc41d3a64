"""On each node of a Slurm job: fork this node's ranks, pass on what they and the kernel say to each other,
and leave nothing behind. submitit starts one of them a node, as the only task there.

It is what the fork server and a supervisor are on the notebook's own machine, in one process: torch is
imported once, and the ranks are its children. It ends them when the kernel says so, when Slurm does (SIGTERM,
before a time limit or an scancel is carried out), and when nobody shows any more that the kernel lives.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import time

from course_lib.ranks import children, devices, server
from course_lib.ranks.slurm import mail

__all__ = ["main"]

LOOK_EVERY_S, BEAT_EVERY_S = 0.1, 1.0
TERM_S = 2.5  # after Slurm's SIGTERM: how long the kernel may ask ranks where they are


def main(directory: str) -> None:
    """Run this node's ranks of the job in a shared folder, until all have ended."""
    _Agent(directory).work()


class _Agent:
    def __init__(self, directory: str):
        self._directory, self._node = directory, int(os.environ["SLURM_NODEID"])
        with open(mail.path_of(directory, "request")) as file:
            self._request: dict = json.load(file)
        hosts = self._request["hosts"]
        self._mine = [rank for rank in range(len(hosts)) if hosts[rank] == self._node]
        self._out = mail.Outbox(mail.path_of(directory, self._node))
        self._orders = mail.Inbox(mail.path_of(directory, "orders"))
        self._ranks: dict[int, int] = {}  # process id -> rank
        self._channels: dict[int, socket.socket] = {}  # rank -> its line
        self._stop_at = float("inf")
        self._sign, self._sign_at, self._beat_at, self._sizes = b"", time.monotonic(), 0.0, {}

    def work(self) -> None:
        self._wake_r, self._wake_w = os.pipe()
        for end in (self._wake_r, self._wake_w):
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # else submitit's
        for number in (signal.SIGUSR2, signal.SIGCONT):  # submitit would requeue the job
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._told_to_end)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        children.adopt_orphans()
        try:
            name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
            self._out.report(here={"name": name, "hardware": self._hardware()})
            server.preload(len(self._mine))
            self._fork()
            self._out.report(forked=self._mine)
            while self._ranks:
                self._look()
        except FileNotFoundError:  # the folder is gone: nobody waits for these ranks
            pass
        finally:
            children.send_signal(self._ranks, signal.SIGKILL)
            children.end_all()
            with contextlib.suppress(OSError):
                self._out.report(gone=True)

    def _hardware(self) -> str:
        if not self._request["devices"][0].startswith("cuda"):
            return devices.cpu_name()
        return f"{len(self._mine)} {devices.gpu_name(os.environ.get('CUDA_VISIBLE_DEVICES') or '0')}"

    def _told_to_end(self, *_) -> None:
        self._stop_at = min(self._stop_at, time.monotonic() + TERM_S)
        with contextlib.suppress(OSError):
            self._out.report(term=True)

    def _fork(self) -> None:
        content = os.open(mail.path_of(self._directory, "content"), os.O_RDONLY)
        pairs = {rank: socket.socketpair() for rank in self._mine}
        for rank, (here, there) in pairs.items():
            pid = os.fork()
            if pid == 0:
                others = [end for other in pairs for end in pairs[other] if end is not there]
                children.run_to_exit(self._become, rank, there, content, others)
            children.own_group(pid)
            self._ranks[pid] = rank
            here.setblocking(False)
            self._channels[rank] = here
        for _, there in pairs.values():
            there.close()
        os.close(content)

    def _become(self, rank: int, channel: socket.socket, content: int, others: list[socket.socket]) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        # Slurm's SIGTERM goes to every process: a rank still tells where it is, and is ended by its agent
        signal.signal(signal.SIGTERM, lambda *_: None)
        ends: list[int | socket.socket] = [*others, self._wake_r, self._wake_w]
        for end in ends:
            os.close(end if isinstance(end, int) else end.detach())
        children.become_rank(self._request, rank, channel.detach(), content, [])

    def _look(self) -> None:
        """One round: what ranks say, who has ended, what the kernel says, whether it lives."""
        asked: list[int | socket.socket] = [self._wake_r, *self._channels.values()]
        ready, _, _ = select.select(asked, [], [], LOOK_EVERY_S)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
        for rank in [rank for rank, channel in self._channels.items() if channel in ready]:
            self._pass_on(rank)
        while self._ranks and (ended := os.wait4(-1, os.WNOHANG))[0]:
            pid, status, usage = ended
            if pid in self._ranks:  # else a process that a rank had left behind
                children.kill_group(pid)
                rank = self._ranks.pop(pid)
                self._pass_on(rank)
                self._sync(rank)
                code = os.waitstatus_to_exitcode(status)
                self._out.report(rank=rank, status=code, peak_bytes=usage.ru_maxrss * 1024)
        for kind, content in self._orders.read():
            self._obey(kind, content)
        now = time.monotonic()
        if now - self._beat_at > BEAT_EVERY_S:
            self._beat_at = now
            self._out.report(beat=True)
            for rank in self._ranks.values():
                self._sync(rank)
            self._look_for_the_kernel(now)
        if now > self._stop_at:
            children.send_signal(self._ranks, signal.SIGKILL)

    def _pass_on(self, rank: int) -> None:
        """What a rank has said, to the kernel."""
        channel = self._channels.get(rank)
        try:
            while channel and (piece := channel.recv(1 << 22)):
                self._out.send(rank, piece)
            if channel:
                self._channels.pop(rank).close()
        except BlockingIOError:
            pass
        except ConnectionError:
            self._channels.pop(rank).close()

    def _obey(self, rank: int, content: bytes) -> None:
        if rank == mail.REPORT:
            number = {"kill": signal.SIGKILL, "dump": signal.SIGUSR1}[json.loads(content)["order"]]
            children.send_signal(self._ranks, number)
        elif channel := self._channels.get(rank):
            with contextlib.suppress(OSError):  # it has just ended
                channel.send(content) if content else channel.shutdown(socket.SHUT_WR)

    def _sync(self, rank: int) -> None:
        """Let the kernel's machine see what a rank has printed: a network file system may keep it back."""
        path = os.path.join(self._directory, f"rank{rank}.out")
        with contextlib.suppress(OSError):
            if (size := os.stat(path).st_size) != self._sizes.get(rank):
                self._sizes[rank] = size
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _look_for_the_kernel(self, now: float) -> None:
        sign = mail.alive(self._directory)
        if sign != self._sign:
            self._sign, self._sign_at = sign, now
        elif (
            now - self._sign_at > self._request["slurm"]["silent_s"]
        ):  # kernel and courier were killed, or their machine is gone
            children.send_signal(self._ranks, signal.SIGKILL)
            shutil.rmtree(self._directory, ignore_errors=True)
