"""The fork server: one quiet process with torch imported, from which every rank is forked.

A fresh Python needs seconds to import torch; a fork of a process that has done so needs milliseconds, and all
forks share its memory. Three kinds of process, each with one duty:

    kernel --asks--> server --forks--> supervisor (one per job) --forks--> rank 0, rank 1, ...

The server must stay fork-safe: it runs no thread, opens no process group, and never touches CUDA. A
supervisor is the parent of its ranks, so it learns at once how each one ended, and a process id that it
signals cannot have been given to a stranger. What a rank has started and left behind becomes the supervisor's
child (PR_SET_CHILD_SUBREAPER, Linux), and is ended after the ranks. The supervisor also makes the job's
directory and removes it when all are gone and the kernel has read what it wanted. Until then the kernel may
ask for the ranks of another attempt: the supervisor forks them when those of the last one are gone.

If the kernel goes away, in whatever way, its sockets close: the supervisor kills its ranks and cleans up, and
the server ends. If a supervisor is killed, the operating system kills its ranks (PR_SET_PDEATHSIG, Linux),
and the kernel removes the directory.
"""

import contextlib
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import weakref

from course_lib.ranks import folder, network, pages
from course_lib.ranks.children import (
    adopt_orphans,
    become_rank,
    die_with_parent,
    end_all,
    kill_group,
    live_without_parent,
    own_group,
    run_to_exit,
    send_signal,
)

__all__ = ["main", "preload", "MAX_RANKS"]

PRELOAD = (
    "cloudpickle",
    "numpy",
    "psutil",
    "torch",
    "torch.distributed",
    "torch.profiler",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.optim",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
    "torch.distributed.checkpoint",
    "course_lib.measure",
    "course_lib.ranks.where",
    "course_lib.ranks.worker",
    "course_lib.datasets",
    "course_lib.models",
    "course_lib.mini",
    "course_lib.check.on_rank",
)
MAX_RANKS = 128  # file descriptors that fit into one message


def main() -> None:
    """Serve requests from the kernel until it closes its end. One request: one message that carries the
    sockets of one job.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    pages.enlarge()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the Interrupt button is the kernel's business
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the system
    control.sendall(b"R")
    while True:  # one supervisor is always forked ahead, and waits for the next job
        taken_r, taken_w = os.pipe()
        child = _fork(control)
        if child is None:
            return
        if child == 0:
            os.close(taken_r)
            run_to_exit(_wait_for_job, control, taken_w)
        os.close(taken_w)
        taken = os.read(taken_r, 1)
        os.close(taken_r)
        if not taken:  # the kernel has closed its end
            return


def preload(ranks: int = MAX_RANKS) -> None:
    """Import what `ranks` ranks need, once, before they are forked; the environment stays as it is. For a
    rank that is alone, what only some functions need would be no gain.
    """
    environ = dict(os.environ)
    for name in PRELOAD if ranks > 1 else ("course_lib.ranks.worker",):
        importlib.import_module(name)
    if ranks > 1:
        torch_internals = importlib.import_module("course_lib.torch_internals")
        torch_internals.preload()
        torch_internals.greet_other_ranks_only()
    os.environ.clear()
    # a library may have added to it, and the kernel tells ranks only what differs from what it gave
    os.environ.update(environ)
    with contextlib.suppress(OSError):
        folder.sweep(tempfile.gettempdir())
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        # what the libraries here would clear away at their end is no work for each rank
        finalizer.atexit = False
    gc.collect()
    # what is here now is never collected: ranks don't dirty shared pages
    gc.freeze()


def _fork(control: socket.socket) -> int | None:
    """os.fork. Where the system refuses, wait until a supervisor is needed, and tell the kernel if there is
    still none. None: the kernel has closed its end.
    """
    while True:
        for _ in range(2):
            try:
                return os.fork()
            except OSError:
                select.select([control], [], [])
        request, descriptors, _, _ = socket.recv_fds(control, 1, MAX_RANKS + 2)
        for descriptor in descriptors:
            os.close(descriptor)
        if not request:
            return None
        control.sendall(b"F")


def _wait_for_job(control: socket.socket, taken: int) -> None:
    """Take the next request, tell server and kernel that it is taken, and supervise the job."""
    die_with_parent()
    request, descriptors, _, _ = socket.recv_fds(control, 1, MAX_RANKS + 2)
    if not request:
        return
    # the server ends with the kernel, and there is still a job to clean up
    live_without_parent()
    control.sendall(b"A")
    control.close()
    os.write(taken, b"T")
    os.close(taken)
    if descriptors:
        _supervise(socket.socket(fileno=descriptors[0]), descriptors[1:])


def _supervise(job: socket.socket, descriptors: list[int]) -> None:
    """Run one job, report how each rank ends, and leave nothing behind: no rank, nothing that a rank has
    started, no directory.
    """
    line = _read_line(job)
    if not line:  # the kernel went away before it could say what it wants
        return
    request: dict = json.loads(line)
    directory = request["directory"]
    ranks: dict[int, int] = {}  # process id -> rank
    lock = -1
    wake_r, wake_w = os.pipe()
    for end in (wake_r, wake_w):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w)
    adopt_orphans()
    try:
        if len(descriptors) != 1 + request["ranks"]:  # what this process may not open is cut off
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        lock = folder.make(directory)
        places = network.build(**request["plan"])[0] if request["plan"] else []
        content, *channels = descriptors
        while request:
            _fork_ranks(request, ranks, content, channels, (wake_r, wake_w, job.fileno()), places)
            _send_line(job, {"pids": {rank: pid for pid, rank in ranks.items()}})
            kernel_listens = _watch(job, ranks, wake_r)
            end_all()
            request, channels = _next_attempt(job, directory) if kernel_listens else ({}, [])
    except Exception as error:
        _send_line(job, {"failed": str(error), "errno": getattr(error, "errno", None)})
    finally:
        send_signal(ranks, signal.SIGKILL)
        end_all()
        folder.remove(directory)
        if lock >= 0:
            os.close(lock)
        # the kernel hears that all is done, and does not wait until this process has ended
        job.close()


def _next_attempt(job: socket.socket, directory: str) -> tuple[dict, list[int]]:
    """Wait until the kernel has read what the ranks printed. Returns what it asks for then, the ranks of
    another attempt, and their channels; nothing if it closes its end.
    """
    while line := _read_line(job):
        if line.startswith("{"):  # else an order for ranks that have ended by themselves
            _, channels, _, _ = socket.recv_fds(job, 1, MAX_RANKS)
            request = json.loads(line)
            if len(channels) != request["ranks"]:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            folder.empty(directory)
            return request, channels
    return {}, []


def _fork_ranks(
    request: dict,
    ranks: dict[int, int],
    content: int,
    channels: list[int],
    not_theirs: tuple[int, ...],
    places: list[list[int]],
) -> None:
    """Fork every rank into `ranks`; they own their channels then. places: of each host, its namespaces."""
    for rank, channel in enumerate(channels):
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for other in (*not_theirs, *(c for c in channels if c != channel)):
                os.close(other)
            run_to_exit(become_rank, request, rank, channel, content, places)
        own_group(pid)
        ranks[pid] = rank
    for channel in channels:
        os.close(channel)


def _watch(job: socket.socket, ranks: dict[int, int], wake_r: int) -> bool:
    """Follow the kernel's orders and report ends until no rank is left. Returns whether the kernel still
    holds its end.
    """
    listening = True
    while ranks:
        asked: list[int | socket.socket] = [wake_r, job] if listening else [wake_r]
        ready, _, _ = select.select(asked, [], [])
        if job in ready:
            order = _read_line(job)
            if order == "":  # the kernel has closed the job, or is gone
                listening = False
            send_signal(ranks, signal.SIGUSR1 if order == "dump" else signal.SIGKILL)
        if wake_r in ready:
            os.read(wake_r, 4096)
        while ranks and (ended := os.wait4(-1, os.WNOHANG))[0]:
            pid, status, usage = ended
            if pid in ranks:  # else a process that a rank had left behind
                kill_group(pid)
                _send_line(
                    job,
                    {
                        "rank": ranks.pop(pid),
                        "status": os.waitstatus_to_exitcode(status),
                        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
                    },
                )
    return listening


def _read_line(sock: socket.socket) -> str:
    """One line of text; empty when the other end is closed."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            piece = sock.recv(1)
        except ConnectionError:
            piece = b""
        if not piece:
            return ""
        line += piece
    return line.decode().strip()


def _send_line(sock: socket.socket, record: dict) -> None:
    try:
        sock.sendall(json.dumps(record).encode() + b"\n")
    except OSError:  # nobody listens any more; the ranks still have to be reaped
        pass


if __name__ == "__main__":
    main()
    # there is nothing to tidy up, and Python takes a second to tear torch down
    os._exit(0)
