"""What one rank does, from the fork to its exit."""

import atexit
import builtins
import contextlib
import faulthandler
import gc
import io
import mmap
import os
import pickle
import random
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

import numpy
import psutil
import torch
import torch.distributed as dist

from course_lib import measure, torch_internals
from course_lib.measure import link
from course_lib.measure.ledger import MEASURES
from course_lib.ranks import imports, sending, settings, threads, where

__all__ = ["work", "in_rank"]

MEETING_S = 2.0  # how long a rank waits at a meeting point within a job
# the same among roles for those that have measured no step so far: a server, say, may measure none
ROLES_S = 0.5
_DEFAULTS = {
    "KINETO_LOG_LEVEL": "99",  # or the profiler's banners stand in the output
    # the Flight Recorder: the last collectives of this rank, for the explanation of a hang
    torch_internals.RECORDER_LENGTH: str(where.RECORDED),
}
_NOTEBOOKS = ("display", "get_ipython")  # what IPython adds to Python's own names
_running = False  # True in a rank: a rank cannot start ranks


def in_rank() -> bool:
    """Whether this process is a rank that `run` has started."""
    return _running


def work(request: dict, rank: int, channel: socket.socket, content: int) -> None:
    """Run the learner's function as one rank and tell the kernel how it went.

    Args:
        request: what the kernel asked for: directory, ranks, backend, devices, threads, timeout, attempt (0
            for the first), restarts (how many there may be); interface, by which ranks are reached ("":
            they find it themselves); hosts, of several the number of each rank's; plan, of linked ones;
            slurm, of nodes of a cluster.
        rank: this process's rank, 0 to ranks - 1.
        channel: stream to the kernel; carries messages (`send`), and from the kernel "?" (where are you?) and
            "." (all ranks have returned).
        content: descriptor of a file without a name: the pickled call, and what differs in the notebook's
            environment from this process's.
    """
    global _running
    _running = True
    with _for_this_user_only():
        stacks = open(os.path.join(request["directory"], f"rank{rank}.stack"), "w")
    # for a rank whose threads cannot answer
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    # what was printed before a crash is not lost
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _seed(request["devices"][rank])
    kernel, own_pid, returned = _Kernel(channel), os.getpid(), False
    where.tell_before_abort(lambda: kernel.send("aborted", where.whereabouts()))
    builtins.input = sys.breakpointhook = _no_keyboard
    _tell_of_threads(kernel)
    try:
        # not `read`: all ranks share one position in this file
        with mmap.mmap(content, 0, access=mmap.ACCESS_READ) as sent:
            job = pickle.loads(sent)
        os.chdir(job["cwd"])
        imports.as_in_the_notebook(job["imports"])
        for name in job["environ_without"]:
            os.environ.pop(name, None)
        os.environ.update(job["environ"])
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        # for the children that it spawns
        os.environ[sending.CALL_FILE] = f"/proc/{own_pid}/fd/{content}"
        if request["plan"]:  # before it joins the others: what keeps it from that may be the link
            link.found(request["hosts"][rank])
        with _for_this_user_only():
            store = _join(request, rank)
        function, args, kwargs = sending.open_call(job["call"])
        roles = isinstance(function, (list, tuple))
        if roles:  # one for each rank
            function = function[rank]
        meet = _meeting_point(store, request["ranks"], roles)
        # all have joined: a rank that fails at once does not break another's connecting
        meet("started", request["timeout"])
        kernel.send("started", psutil.Process().memory_info().rss)
        ledger = measure.start_ledger(
            lambda *step: kernel.send("step", *step),
            meet,
            each_step=request["restarts"] > 0,  # what a failure has cost is told to the step
        )
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - begin
        if os.getpid() == own_pid:
            kernel.send("returned")
            records = measure.stop_ledger(ledger)
            kernel.send(
                "result",
                sending.pack_result(result, rank),
                {
                    **records,
                    "seconds": seconds,
                    "threads": torch.get_num_threads(),
                    "settings": settings.here(),
                    "clock_s": time.time() - time.perf_counter(),  # how to compare times of several machines
                },
                where.collectives(),
            )
            returned = True
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the kernel must hear of everything
        if os.getpid() != own_pid:
            raise
        kernel.send("error", _describe(error) | {"link": link.look()}, where.collectives())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if os.getpid() != own_pid:
        return  # the learner's function has forked: the copy is no rank, and must not speak for one
    kernel.over.wait()  # until all are done: a peer may still read what this rank has sent
    if returned:
        _end_as_python_does()
    if request["backend"] == "nccl" and dist.is_initialized():
        dist.destroy_process_group()


def _seed(device: str) -> None:
    """Give this rank random numbers of its own: a fork would repeat its siblings', and a GPU begins with the
    same seed in every process.
    """
    random.seed()
    numpy.random.seed()
    seed = torch.default_generator.seed()
    if device.startswith("cuda"):
        torch.cuda.manual_seed_all(seed)  # opens nothing: the seed waits until the rank opens the GPU


@contextlib.contextmanager
def _for_this_user_only():
    """Files that are made within have mode 0600. (Those of the learner's function have the modes that they
    have elsewhere.)
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _end_as_python_does() -> None:
    """Wait for threads and executors that are still at work, then call what is registered to run at exit, and
    write what open files hold back. (A fork ends without that.)
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for value in gc.get_objects():  # few: what the fork server had is frozen
            if issubclass(type(value), (io.TextIOBase, io.BufferedIOBase)):
                with contextlib.suppress(OSError, ValueError):  # it is closed, or its disk is full
                    value.flush()
        sys.stdout.flush()
        sys.stderr.flush()


def _no_keyboard(*args, **kwargs):
    raise RuntimeError(
        "A rank has no keyboard: input() and breakpoint() work only in the notebook itself. Pass values to"
        " run, and print."
    )


def _tell_of_threads(kernel: "_Kernel") -> None:
    """An exception in a thread that the learner has started ends that thread and nothing else: let the kernel
    know.
    """
    default = threading.excepthook

    def hook(args):
        default(args)
        if args.exc_value is not None:
            kernel.send("thread", _describe(args.exc_value))

    threading.excepthook = hook


class _Kernel:
    """The line to the kernel. Messages go out from any thread; a thread of its own answers when the kernel
    asks where this rank is.
    """

    def __init__(self, channel: socket.socket):
        self._channel, self._lock, self.over = channel, threading.Lock(), threading.Event()
        threading.Thread(target=self._answer, name="course_lib", daemon=True).start()

    def send(self, kind: str, *content) -> None:
        """Send one message: 8 bytes of length, then a pickle of (kind, *content)."""
        message = pickle.dumps((kind, *content), protocol=5)
        with self._lock:
            try:
                self._channel.sendall(struct.pack(">Q", len(message)) + message)
            except OSError:  # the kernel is gone; the supervisor is about to end this rank
                pass

    def _answer(self) -> None:
        with threads.called(threads.ANSWERING):
            while True:
                try:
                    asked = self._channel.recv(1)
                except OSError:
                    asked = b""
                if asked == b"?":
                    self.send("where", where.whereabouts())
                else:  # all ranks have returned, or the kernel is gone
                    self.over.set()
                if not asked:
                    return


def _join(request: dict, rank: int) -> dist.Store:
    """Set threads and device, then initialise the default process group."""
    ranks, device = request["ranks"], request["devices"][rank]
    hosts = request["hosts"] or [0] * ranks
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(hosts[:rank].count(hosts[rank])),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(hosts.count(hosts[rank])),
        GROUP_RANK=str(sorted(set(hosts)).index(hosts[rank])),
        GROUP_WORLD_SIZE=str(len(set(hosts))),
        TORCHELASTIC_RESTART_COUNT=str(request["attempt"]),
        TORCHELASTIC_MAX_RESTARTS=str(request["restarts"]),
    )
    if request["interface"]:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = request["interface"]
    torch.set_num_threads(request["threads"])
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.set_default_device(device)
    store: dist.Store
    if request.get("slurm"):
        from course_lib.ranks.slurm import meeting

        store = meeting.store(request, rank)
    else:
        store = dist.FileStore(os.path.join(request["directory"], "rendezvous"), ranks)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if request["backend"] == "nccl" else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        # later than the kernel's deadline, which can explain
        timeout=timedelta(seconds=request["timeout"] + 60),
    )
    return dist.PrefixStore("course_lib", store)


def _meeting_point(store: dist.Store, ranks: int, roles: bool) -> Callable[..., None]:
    """A function that lets ranks wait for each other without a collective, and for a bounded time: it cannot
    hang a job.

    roles: whether ranks have functions of their own, of which some may measure nothing.
    """

    def meet(name: str, at_most_s: float = MEETING_S) -> None:
        store.add(name, 1)
        begin, pause = time.monotonic(), 0.0005
        while (came := store.add(name, 0)) < ranks and (waited := time.monotonic() - begin) < at_most_s:
            if roles and waited > ROLES_S and came >= store.add(MEASURES, 0) > 0:
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.01)  # a late rank needs the cores more than those who wait for it

    return meet


def _describe(error: BaseException) -> dict:
    """What the kernel needs to tell of an error: type, text, and where, without the frames of this file."""
    frames = [
        (f.filename, f.lineno, f.name)
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__
    ]
    try:
        message = str(error)
    except Exception:  # the learner's own __str__ fails
        message = "(its message cannot be shown)"
    if isinstance(error, NameError) and error.name in _NOTEBOOKS:
        message += (
            f". {error.name} belongs to the notebook; a rank has none: print, or return what is to be shown."
        )
    return {
        "type": type(error).__name__,
        "message": message,
        "frames": frames,
        "text": "".join(traceback.format_exception(error)),
    }
