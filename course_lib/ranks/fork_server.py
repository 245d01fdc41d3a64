"""The kernel's side of the fork server: started once, warm for the first job, asked for supervisors."""

import atexit
import contextlib
import errno
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

__all__ = ["ENDS", "NO_PROCESS", "ForkServer", "pair", "the_server", "start_server", "server_is_ready"]

START_TIMEOUT_S = 900.0  # importing torch, on a machine on which a whole class does it at once
NO_PROCESS = re.compile(
    r"can't start new thread|Resource temporarily unavailable|Cannot allocate memory|pthread_create",
    re.IGNORECASE,
)
ENDS: set[socket.socket] = set()  # this kernel's ends of all its sockets


def pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """The kernel's end of a new line, and the other; each is closed with its stack."""
    here, there = socket.socketpair()
    ENDS.add(here)
    ours.callback(ENDS.discard, here)
    return ours.enter_context(here), theirs.enter_context(there)


def _let_go() -> None:
    """In a process that the notebook has forked: close its copies of the kernel's ends, or ranks and server
    would not notice the kernel's own end.
    """
    for end in list(ENDS):
        end.close()
    ENDS.clear()


os.register_at_fork(after_in_child=_let_go)


def start_server() -> None:
    """Begin to start the fork server, without waiting for it: the first `run` then finds it warm. If it
    cannot start, that `run` says why.
    """
    with contextlib.suppress(OSError):
        the_server()


def server_is_ready(wait_s: float) -> bool:
    """Whether the fork server has torch imported, or has failed to (`Group` then tells why); waits at most
    `wait_s` for it, and starts it if need be.
    """
    return the_server().is_ready(wait_s)


class ForkServer:
    """One fork server process. It ends when this object's socket closes, so never later than the kernel."""

    def __init__(self):
        self._log = tempfile.TemporaryFile()
        here, there = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        self._environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "KINETO_LOG_LEVEL": "99",
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        }
        with there:
            # -P: no file beside the notebook stands in for one of the standard library
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "course_lib.ranks.server", str(there.fileno())],
                pass_fds=[there.fileno()],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        ENDS.add(here)
        self._control, self._lock, self._ready, self.kernel = here, threading.Lock(), False, os.getpid()
        self._begin = time.monotonic()

    @property
    def usable(self) -> bool:
        """Whether it lives, and was started by this process (and not by one that has forked it)."""
        return self.kernel == os.getpid() and self.process.poll() is None

    def is_ready(self, wait_s: float) -> bool:
        """As `server_is_ready`."""
        return (
            self._ready
            or time.monotonic() - self._begin > START_TIMEOUT_S
            or bool(select.select([self._control], [], [], wait_s)[0])
        )

    def difference(self) -> dict:
        """The notebook's environment as against the server's, which every rank inherits."""
        return {
            "environ": {
                name: value for name, value in os.environ.items() if self._environ.get(name) != value
            },
            "environ_without": [name for name in self._environ if name not in os.environ],
        }

    def hand_over(self, files: list) -> None:
        """Give the server its ends of a job's sockets, and the content; it forks a supervisor that owns them.
        Errors: OSError if it cannot.
        """
        with self._lock:
            if not self._ready:
                left_s = START_TIMEOUT_S - (time.monotonic() - self._begin)
                self._control.settimeout(max(1.0, left_s))
                self._expect(b"R")
                self._control.settimeout(START_TIMEOUT_S)
                self._ready = True
            with contextlib.suppress(ConnectionError):  # _expect tells of a server that has ended
                socket.send_fds(self._control, [b"J"], [file.fileno() for file in files])
            self._expect(b"A")

    def _expect(self, answer: bytes) -> None:
        heard, late = b"", False
        try:
            heard = self._control.recv(1)
        except TimeoutError:
            late = True
        except OSError:
            pass
        if heard == b"F":
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if heard != answer:
            self.process.kill()
            self.process.wait()
            self._log.seek(0)
            told = self._log.read().decode(errors="replace").strip().splitlines()
            if any(map(NO_PROCESS.search, told)):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            minutes = START_TIMEOUT_S / 60
            what = (
                f"gave no answer for {minutes:g} minutes, and was stopped" if late else "ended unexpectedly"
            )
            raise RuntimeError(
                f"The fork server, from which ranks are started, {what}; the next run starts a new one. Its"
                f" last words: {told[-1] if told else 'none'}"
            )

    def stop(self) -> None:
        """Close this end: the server ends, and with it what it has forked."""
        ENDS.discard(self._control)
        self._control.close()
        self._log.close()


_the_server: ForkServer | None = None
_the_server_lock = threading.Lock()


def the_server() -> ForkServer:
    """This kernel's fork server, started if there is none (or if the last one has died)."""
    global _the_server
    with _the_server_lock:
        if _the_server is None or not _the_server.usable:
            if _the_server is None:
                atexit.register(_stop_the_server)
            else:
                _the_server.stop()
            _the_server = ForkServer()
        return _the_server


def _stop_the_server() -> None:
    if _the_server:
        _the_server.stop()
