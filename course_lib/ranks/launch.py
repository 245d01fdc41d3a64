"""The kernel's side of a job: ask the fork server for ranks, listen to them, end them."""

import contextlib
import json
import pickle
import re
import selectors
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from course_lib.ranks import folder
from course_lib.ranks.fork_server import ENDS, pair, the_server
from course_lib.ranks.server import MAX_RANKS
from course_lib.roles import ranks_in_words

__all__ = ["Group", "RankState", "Starter"]

END_TIMEOUT_S = 5.0  # how long killed ranks may take to be gone
ANSWER_S = 2.0  # how long a rank that is asked where it is may take, on a busy machine
STILL_CPU_S = 0.025  # what an idle rank needs at most to say where it is
# faulthandler tells of the main thread last: from the call in which it is down to its first, or to "..."
_WHOLE_DUMP = re.compile(r"in _run_module_as_main$|^  \.\.\.$", re.MULTILINE)


@dataclass
class RankState:
    """What the kernel knows of one rank while its job runs, and what is left of it afterwards."""

    rank: int
    roles: Sequence[str] = ()  # of all ranks of the job; none where all run one function
    pid: int = 0
    phase: str = "starting"  # starting, running, finished (result is here), failed (error is here)
    step: int | None = None  # the last step that measure.step has seen
    begun_at: int | None = None  # which step of the whole training its first one was, if it has told
    total: int | None = None  # how many steps the whole training has, if it has told
    loss: float | None = None  # the last one that it has told
    step_at: float = 0.0  # monotonic; when it was last heard of a step, or of its start
    result: bytes = b""  # a pickle
    records: dict = field(default_factory=dict)  # until it has ended, what a failure would lose of them
    error: dict | None = None  # worker._describe
    status: int | None = None  # how the process ended: an exit code, or minus the signal; None while it lives
    start_bytes: int = 0  # resident memory when the function began: Python, torch, a process group
    peak_bytes: int = 0  # resident high-water mark, from the operating system
    where: dict = field(default_factory=dict)  # where.whereabouts, when last asked; empty before
    where_at: float = 0.0  # monotonic; when that was told
    collectives: list[dict] = field(default_factory=list)  # where.collectives, as last told
    answers: int = 0  # how often it has told where it is
    # monotonic; since when its answers say that it is blocked and that nothing moves
    still_since: float = 0.0
    still_s: float = 0.0  # for how long, at its last answer
    thread_error: dict | None = None  # worker._describe of the first exception that ended one of its threads
    returned: bool = False  # the function has returned; its result may still be on its way
    stack: str = ""  # a dump of its threads, if it could not answer
    silent: str = ""  # why it could not answer, in words
    host: int | None = None  # number of its host, of several that are linked
    hosts: Sequence[int] = ()  # the same of all ranks; none on this machine as it is

    @property
    def name(self) -> str:
        """Within a sentence: "rank 1", "rank 1 (work)", "rank 1 (work, host 0)"."""
        return ranks_in_words([self.rank], self.known_as)

    @property
    def known_as(self) -> Sequence[str]:
        """What stands behind each rank of the job in a sentence: its role, its host, both, or nothing."""
        if not self.hosts:
            return self.roles
        places = [f"host {host}" for host in self.hosts]
        return [f"{role}, {place}" for role, place in zip(self.roles, places)] if self.roles else places


class Starter(Protocol):
    """What starts the ranks of a Group: the fork server, or a courier to a cluster."""

    def difference(self) -> dict:
        """What ranks lack of the notebook's environment: "environ" and "environ_without", for `content`."""

    def hand_over(self, files: list) -> None:
        """Give it its ends of a job's sockets, and the content. Errors: OSError if it cannot take them."""


class Group:
    """The ranks of one job, from launch to the last process's end. Closing it leaves no process behind."""

    disturbed = False  # whether something from outside is about to end it; `why` tells what
    hardware = ""  # in words, where it is known only once the ranks run

    def __init__(
        self,
        request: dict,
        content: dict,
        roles: Sequence[str] = (),
        server: Starter | None = None,
        directory: Path | None = None,
    ):
        """Start the ranks.

        Args:
            request: ranks, backend, devices, threads, timeout, attempt, restarts, interface, hosts, plan (see
                worker).
            content: what every rank reads before it begins: the call, cwd, imports. It travels in a file
                without a name, which nobody else can open and nobody has to remove; of the environment, only
                what the fork server does not have already.
            roles: of the ranks, for who tells of them.
            server: what starts them; the fork server if None.
            directory: the job's private one; one in the folder for temporary files if None.

        Errors: OSError if the system refuses a process, a descriptor, or room for temporary files.
        """
        self.states: list[RankState] = []
        self.failed: OSError | RuntimeError | None = None  # why the supervisor could not do its work
        server = server or the_server()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            file = theirs.enter_context(tempfile.TemporaryFile())
            pickle.dump(content | server.difference(), file)
            file.flush()
            pairs = [pair(ours, theirs) for _ in range(1 + request["ranks"])]
            self._selector = ours.enter_context(selectors.DefaultSelector())
            self.directory = directory or folder.new_path()
            (self._job, job_there), *channels = pairs
            server.hand_over([job_there, file, *(there for _, there in channels)])
            ours.pop_all()
        self._ask_for(request)
        self._job_buffer = bytearray()
        self._selector.register(self._job, selectors.EVENT_READ, None)
        self._listen_to([here for here, _ in channels], roles, request["hosts"])

    def start_again(self, request: dict) -> None:
        """End what is left of the ranks, and start others in their place: under the same supervisor, in the
        same directory, which is empty then.

        Args:
            request: as at first; `ranks` may be fewer.

        Errors: OSError if the system refuses a descriptor; RuntimeError if a rank does not end.
        """
        self.kill()
        self._listen_until(lambda: not self.alive, END_TIMEOUT_S)
        if self.alive:
            raise RuntimeError(f"Ranks that should start again have not ended within {END_TIMEOUT_S:g} s.")
        for channel in self._channels:
            self._forget(channel)
            ENDS.discard(channel)
            channel.close()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            pairs = [pair(ours, theirs) for _ in range(request["ranks"])]
            self._ask_for(request)
            with contextlib.suppress(OSError):  # the supervisor has ended: that is heard of soon
                socket.send_fds(self._job, [b"J"], [there.fileno() for _, there in pairs])
            ours.pop_all()
        self._listen_to([here for here, _ in pairs], self.states[0].roles, request["hosts"])

    def _ask_for(self, request: dict) -> None:
        self._order(json.dumps(request | {"directory": str(self.directory)}).encode() + b"\n")

    def _listen_to(self, channels: list[socket.socket], roles: Sequence[str], hosts: Sequence[int]) -> None:
        """Begin to listen to ranks of which nothing is known yet."""
        self._channels = channels
        if len(set(hosts)) < 2:  # there is nothing to tell apart
            hosts = ()
        self.states = [
            RankState(rank, roles, host=hosts[rank] if hosts else None, hosts=hosts)
            for rank in range(len(channels))
        ]
        self._buffers = [bytearray() for _ in channels]
        for rank, channel in enumerate(channels):
            channel.setblocking(False)
            self._selector.register(channel, selectors.EVENT_READ, rank)

    @property
    def waits(self) -> str:
        """What it does, in words, before its ranks run: that time is not the job's own."""
        return ""

    @property
    def supervised(self) -> bool:
        """Whether the supervisor is still there, as far as is known."""
        return self._job in self._registered()

    def listen(self, wait_s: float) -> None:
        """Take in what has arrived, at most `wait_s` seconds from now, and bring `states` up to date."""
        for key, _ in self._selector.select(max(wait_s, 0)):
            if key.data is None:
                for record in self._lines():
                    self._take_report(record)
            else:
                for kind, *content in self._messages(key.data):
                    self._take_message(self.states[key.data], kind, content)

    def output_of(self, rank: int) -> Path:
        """The file of what a rank has printed; it is there until `close`."""
        return self.directory / f"rank{rank}.out"

    @property
    def alive(self) -> list[RankState]:
        """Ranks whose process has not ended."""
        return [state for state in self.states if state.status is None]

    @property
    def unfinished(self) -> list[RankState]:
        """Ranks that live, and have told neither a result nor an error."""
        return [state for state in self.alive if state.phase not in ("finished", "failed")]

    def ask(self) -> None:
        """Ask every running rank where it is; the answers arrive with `listen`."""
        self._tell(self.unfinished, b"?")

    def let_go(self) -> None:
        """Tell the ranks that all have returned: each finishes its threads, and ends."""
        self._tell(self.alive, b".")

    def _tell(self, states: list[RankState], word: bytes) -> None:
        for state in states:
            try:
                self._channels[state.rank].send(word)
            except OSError:  # it has just ended
                pass

    def ask_and_wait(self, wait_s: float = ANSWER_S) -> None:
        """Find out where every running rank is. One that does not answer has its threads dumped, or is told
        to be unresponsive.
        """
        self.ask()
        before = {state.rank: state.answers for state in self.states}
        self._listen_until(
            lambda: all(state.answers > before[state.rank] for state in self.unfinished), wait_s
        )
        mute = [state for state in self.unfinished if state.answers == before[state.rank]]
        self.dump(mute)
        for state in mute:
            state.silent = _why_silent(state)

    def why(self) -> str:
        """Why ranks have failed, in a sentence, if it was from outside and is known; "" if not."""
        return ""

    def dump(self, states: list[RankState]) -> None:
        """Have the threads of these ranks dumped by the operating system's signal, into their `stack`."""
        if not states:
            return
        self._order(b"dump\n")
        paths = {state.rank: self.directory / f"rank{state.rank}.stack" for state in states}

        def look() -> bool:
            for state in states:
                state.stack = paths[state.rank].read_text() if paths[state.rank].exists() else ""
            return all(map(_WHOLE_DUMP.search, [state.stack for state in states]))

        self._listen_until(look, ANSWER_S)
        look()

    def kill(self) -> None:
        """Have every rank killed, without waiting for that."""
        self._order(b"kill\n")

    def _listen_until(self, done, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while not done() and time.monotonic() < end:
            self.listen(min(0.02, wait_s))

    def close(self) -> None:
        """End every process of this job and wait until it is gone. Safe to call twice."""
        if self._job.fileno() == -1:
            return
        if all(state.phase == "finished" for state in self.states):
            for channel in self._channels:
                channel.close()  # ranks wait for this, then leave by themselves
                self._forget(channel)
        else:
            self._order(b"kill\n")
        end = time.monotonic() + END_TIMEOUT_S
        killed = False
        while self.alive and self._job in self._registered() and time.monotonic() < end:
            self.listen(0.1)
            if not killed and time.monotonic() > end - END_TIMEOUT_S / 2:
                self._order(b"kill\n")  # a rank that cannot leave by itself
                killed = True
        with contextlib.suppress(OSError):
            # the supervisor waits for this, removes the directory, and ends
            self._job.shutdown(socket.SHUT_WR)
        self._listen_until(lambda: self._job not in self._registered(), max(end - time.monotonic(), 0.1))
        self._selector.close()
        for channel in (*self._channels, self._job):
            ENDS.discard(channel)
            channel.close()
        folder.remove(self.directory)  # where the supervisor was killed

    def _registered(self):
        return [key.fileobj for key in self._selector.get_map().values()]

    def _forget(self, sock: socket.socket) -> None:
        if sock in self._registered():
            self._selector.unregister(sock)

    def _order(self, line: bytes) -> None:
        try:
            self._job.sendall(line)
        except OSError:  # the supervisor has ended, and so have its ranks
            pass

    def _take_report(self, record: dict) -> None:
        if "failed" in record:
            self.failed = (
                RuntimeError(record["failed"])
                if record["errno"] is None
                else OSError(record["errno"], record["failed"])
            )
        elif "pids" in record:
            for rank, pid in record["pids"].items():
                self.states[int(rank)].pid = pid
        else:
            state = self.states[record["rank"]]
            if state.rank in [key.data for key in self._selector.get_map().values()]:
                for kind, *content in self._messages(state.rank):  # its last words
                    self._take_message(state, kind, content)
            state.status, state.peak_bytes = record["status"], record["peak_bytes"]

    @staticmethod
    def _take_message(state: RankState, kind: str, content: list) -> None:
        if kind == "started":
            state.phase, state.start_bytes, state.step_at = "running", content[0], time.monotonic()
        elif kind == "step":
            state.step, number, state.total, loss, told = content
            state.step_at = time.monotonic()
            if number is not None:
                state.begun_at = number - state.step
            if loss is not None:
                state.loss = loss
            if told is not None:
                state.records |= {**told, "steps": state.records.get("steps", []) + told["steps"]}
        elif kind == "result":
            state.phase, (state.result, state.records, state.collectives) = "finished", content
        elif kind == "error":
            state.phase, (state.error, state.collectives) = "failed", content
        elif kind == "returned":
            state.returned = True
        elif kind == "thread":
            state.thread_error = state.thread_error or content[0]
        elif kind == "where" and state.phase in ("finished", "failed"):
            pass  # it was asked before its end, of which it has told what is newer
        elif kind in ("where", "aborted"):
            now = time.monotonic()
            if not _nothing_moved(state.where, content[0]):
                state.still_since = now
            state.still_s = now - state.still_since
            state.where, state.where_at, state.answers = content[0], now, state.answers + 1
            state.collectives = state.where["collectives"]
            if state.where.get("step") not in (None, state.step):  # some of these were not told one by one
                state.step, state.step_at = state.where["step"], now

    def _lines(self) -> Iterator[dict]:
        self._receive(self._job, self._job_buffer)
        while b"\n" in self._job_buffer:
            line, _, rest = bytes(self._job_buffer).partition(b"\n")
            self._job_buffer[:] = rest
            yield json.loads(line)

    def _messages(self, rank: int) -> Iterator[tuple]:
        buffer = self._buffers[rank]
        self._receive(self._channels[rank], buffer)
        while len(buffer) >= 8:
            end = 8 + struct.unpack(">Q", buffer[:8])[0]
            if len(buffer) < end:
                return
            # a large result is not copied once more
            with memoryview(buffer) as view, view[8:end] as part:
                message = pickle.loads(part)
            del buffer[:end]
            yield message

    def _receive(self, sock: socket.socket, buffer: bytearray) -> None:
        """Append what has arrived; forget a socket whose other end has closed."""
        sock.setblocking(False)
        try:
            while piece := sock.recv(1 << 20):
                buffer += piece
            self._forget(sock)
            if sock is self._job:  # no supervisor, no ranks: it was killed
                for state in self.alive:
                    state.status = -signal.SIGKILL
        except BlockingIOError:
            pass
        except ConnectionError:
            self._forget(sock)
        finally:
            if sock is self._job and sock.fileno() != -1:
                sock.setblocking(True)


def _nothing_moved(before: dict, now: dict) -> bool:
    """Whether a rank was blocked at the same place all the time between two answers, and neither sent nor
    worked in the background, nor would have if a core had been free: a thread that is awake has slept since
    the answer before, and so has found nothing to do.
    """
    return (
        bool(before)
        and now["blocked"]
        and now["written_bytes"] is not None
        and now["cpu_s"] - before["cpu_s"] < STILL_CPU_S
        and all(before[name] == now[name] for name in ("frames", "call", "collectives", "written_bytes"))
        and before.get("link") == now.get("link")
        and all(
            asleep or times >= before["threads"].get(thread, (asleep, times))[1] + 2  # whole rounds
            for thread, (asleep, times) in now["threads"].items()
        )
    )


def _why_silent(state: RankState) -> str:
    try:  # of a rank on another machine no process is known
        stopped = bool(state.pid) and psutil.Process(state.pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return ""
    if stopped:
        return "does not respond: its process was stopped (SIGSTOP)"
    return "" if state.stack else "does not respond"


assert MAX_RANKS + 2 <= 253  # what one message can carry (SCM_MAX_FD)
