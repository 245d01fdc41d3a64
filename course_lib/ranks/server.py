"""The fork server: one quiet process with torch imported, from which every rank is forked.

A fresh Python needs seconds to import torch; a fork of a process that has done so needs milliseconds, and
all forks share its memory. Three kinds of process, each with one duty:

    kernel --asks--> server --forks--> supervisor (one per job) --forks--> rank 0, rank 1, ...

The server must stay fork-safe: it runs no thread, opens no process group, and never touches CUDA. A supervisor
is the parent of its ranks, so it learns at once how each one ended, and a process id that it signals cannot have been
given to a stranger. If the kernel goes away, in whatever way, its sockets close: the supervisor kills its ranks and the
server ends. If a supervisor is killed, the operating system kills its ranks (PR_SET_PDEATHSIG, Linux).
"""
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import weakref

PRELOAD = (
    "cloudpickle", "numpy", "psutil", "torch", "torch.distributed", "torch.profiler",
    "torch._dynamo",                      # any optimizer imports it on first use: a second per rank if it weren't here
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.optim",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks", "torch.distributed.checkpoint",
    "course_lib.measure", "course_lib.tracing", "course_lib.memory", "course_lib.ranks.where", "course_lib.ranks.worker",
    "course_lib.datasets", "course_lib.models", "course_lib.mini", "course_lib.check.on_rank",
)
MAX_RANKS = 128                           # file descriptors that fit into one message
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)                 # opened once, here: what a rank opens itself it cannot share


def main() -> None:
    """Serve requests from the kernel until it closes its end. One request: one message that carries the sockets of one job."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOAD:
        importlib.import_module(name)
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False          # what the libraries here would clear away at their end is no work for each rank
    gc.collect()
    gc.freeze()                           # what is here now is never collected: ranks don't dirty shared pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # the Interrupt button is the kernel's business
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)     # supervisors are reaped by the system
    control.sendall(b"R")
    while True:                           # one supervisor is always forked ahead, and waits for the next job
        taken_r, taken_w = os.pipe()
        if os.fork() == 0:
            os.close(taken_r)
            _run_to_exit(_wait_for_job, control, taken_w)
        os.close(taken_w)
        taken = os.read(taken_r, 1)
        os.close(taken_r)
        if not taken:                     # the kernel has closed its end
            return


def _wait_for_job(control: socket.socket, taken: int) -> None:
    """Take the next request, tell server and kernel that it is taken, and supervise the job."""
    _die_with_parent()
    request, descriptors, _, _ = socket.recv_fds(control, 1, MAX_RANKS + 1)
    if not request:
        return
    control.sendall(b"A")
    control.close()
    os.write(taken, b"T")
    os.close(taken)
    _supervise(descriptors)


def _run_to_exit(function, *args) -> None:
    """Call `function` in a forked child and never return into the parent's code."""
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:                 # the child must not fall back into the server's loop
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _supervise(descriptors: list[int]) -> None:
    """Fork the ranks of one job, report how each ends, kill what is left when told or when the kernel is gone."""
    job, channels = socket.socket(fileno=descriptors[0]), descriptors[1:]
    request = json.loads(_read_line(job))
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    os.set_blocking(wake_r, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w)

    ranks: dict[int, int] = {}            # process id -> rank
    for rank, channel in enumerate(channels):
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for other in (wake_r, wake_w, job.fileno(), *(c for c in channels if c != channel)):
                os.close(other)
            _run_to_exit(_become_rank, request, rank, channel)
        _own_group(pid)
        ranks[pid] = rank
    for channel in channels:
        os.close(channel)
    _send_line(job, {"pids": {rank: pid for pid, rank in ranks.items()}})

    listening = True
    while ranks:
        ready, _, _ = select.select([wake_r, job] if listening else [wake_r], [], [])
        if job in ready:
            order = _read_line(job)
            if order == "":               # the kernel has closed the job, or is gone
                listening = False
            _signal(ranks, signal.SIGUSR1 if order == "dump" else signal.SIGKILL)
        if wake_r in ready:
            os.read(wake_r, 4096)
        for pid in list(ranks):
            if _has_ended(pid):
                _signal([pid], signal.SIGKILL)                # whatever the rank itself had started
                _, status, usage = os.wait4(pid, 0)
                rank = ranks.pop(pid)
                _send_line(job, {"rank": rank, "status": os.waitstatus_to_exitcode(status),
                                 "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)})


def _become_rank(request: dict, rank: int, channel: int) -> None:
    _own_group(0)
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = os.open(os.path.join(request["directory"], f"rank{rank}.out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(nothing)
    from course_lib.ranks import worker
    worker.work(request, rank, socket.socket(fileno=channel))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:        # it died before we asked
            os._exit(1)


def _own_group(pid: int) -> None:
    """Give a rank a process group of its own, so that what it starts can be ended with it (both sides ask: no race)."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays unreaped, so that its process id cannot belong to anybody else yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal(pids, number: int) -> None:
    for pid in pids:
        try:
            if number == signal.SIGKILL:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:           # macOS answers so for a group that has just ended
            pass


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
    except OSError:                       # nobody listens any more; the ranks still have to be reaped
        pass


if __name__ == "__main__":
    main()
