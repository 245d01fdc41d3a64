"""Where this rank is: asked by the kernel when a job stalls or fails, answered by a thread of the rank."""

import ctypes
import dis
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from itertools import islice

import torch

from course_lib import torch_internals
from course_lib.collectives import by_function
from course_lib.measure import last_step, link, looks, wire
from course_lib.ranks import places, threads

__all__ = ["whereabouts", "collectives", "tell_before_abort"]

RECORDED = 64  # how many collectives the Flight Recorder keeps
FRAMES = 200  # of the innermost frames, how many are told

# where a rank may wait besides, in torch.distributed
_MORE_CALLS = ("monitored_barrier", "new_group", "batch_isend_irecv")
_NOT_FOR_EVER = {"monitored_barrier"}  # gives up by itself
_handlers = []  # what ctypes has handed to the C library must stay alive


def whereabouts() -> dict:
    """Where the main thread is: its frames (outermost first), the torch.distributed call it is in, and the
    recent collectives.

    groups: name -> ranks, as in `collectives`, of the groups of which this rank is a member, and of the one
        that it is making.
    free: it is in code that waits for nobody, even if a collective is under way.
    blocked: it can only go on when another rank does something.
    written_bytes, cpu_s, threads: of this process so far (`threads.others`); a transfer that moves shows in
        them, and a thread that waits for a core.
    link: of this rank's host to other hosts (`link.look`); None where all run on this machine as it is.
    step: the last one that `measure.step` has seen; None if none.
    """
    with looks.lock:
        frames, call, making, count = _look()
    return {
        "frames": frames,
        "call": call,
        "collectives": collectives(),
        "groups": _groups() | making,
        "free": (
            call is None and bool(frames) and not torch_internals.waits_inside(frames[-1][0]) and _on_cpus()
        ),
        "blocked": (
            call is not None
            and call["op"] not in _NOT_FOR_EVER
            and count == 2
            and _on_cpus()
            and _groups_wait_long()
        ),
        "written_bytes": wire.all_written_bytes(),
        "link": link.look(),
        "cpu_s": time.process_time(),
        "threads": threads.others(),
        "step": last_step(),
    }


def _look() -> tuple[list[tuple[str, int, str]], dict | None, dict[str, str], int]:
    """The main thread's frames, the call it is in, the group that it is making, and how many threads there
    are; nothing of it holds a frame, and so a tensor, when this returns.
    """
    of_threads = sys._current_frames()
    count, frame = len(of_threads), of_threads.get(threading.main_thread().ident or 0)
    of_threads.clear()  # the frame of this function is among them: a circle would keep all of them alive
    # traceback's own extracts read the sources, which costs memory
    inwards = reversed(list(islice(traceback.walk_stack(frame), FRAMES))) if frame else []
    # a frame that has just begun, or ends, has no line
    frames = [(f.f_code.co_filename, line or 0, f.f_code.co_name) for f, line in inwards]
    return frames, _call(frame), _group_in_the_making(frame), count


def _on_cpus() -> bool:
    """A GPU works on its own: there a call that waits, and a call that doesn't, say little."""
    return not torch.cuda.is_initialized()


def _groups_wait_long() -> bool:
    """Whether no process group was given a shorter timeout than the job's: where one was, the wait ends by
    itself.
    """
    timeouts = torch_internals.group_timeouts()
    return bool(timeouts) and min(timeouts) >= timeouts[0]


def collectives() -> list[dict]:
    """The last collectives of this rank, from torch's Flight Recorder: op, sizes, dtypes, group (its ranks),
    name (of the group: two groups may have the same ranks), seq (the collective's number in the group), done,
    and site, the frame of the learner's code that called it (or None).

    gloo's own name stands for the operation: its reduce_scatter shows as the all_reduce that it is. Empty
    where there is no recorder.
    """
    return [
        {
            **{name: record[name] for name in ("op", "sizes", "dtypes", "seq", "done")},
            "group": _group_ranks(record["group"]),
            "name": record["group"],
            "site": _site(record["frames"]),
        }
        for record in torch_internals.flight_records()
    ]


def _site(frames: list[tuple[str, int, str]]) -> tuple[str, int, str] | None:
    """The learner's frame from which a collective was called (frames innermost first). None where torch calls
    it for a rank that has run out of inputs (`join`): there another line than its peers' is as it should be.
    """
    if any(torch_internals.is_of_join(filename) for filename, _, _ in frames):
        return None
    return places.learners_frame(frames[::-1])


def tell_before_abort(tell: Callable[[], None]) -> None:
    """Call `tell()` when a library aborts this process (gloo does, when ranks disagree about a size), before
    it dies.

    The abort happens on a thread of the library; the handler borrows it to send the last words, then lets the
    abort take its course.
    """
    libc = ctypes.CDLL(None)

    def last_words(number):
        libc.signal(signal.SIGABRT, None)  # once only
        tell()

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(last_words)
    _handlers.append(handler)
    libc.signal(signal.SIGABRT, handler)


def _call(frame) -> dict | None:
    """The torch.distributed call in which a frame waits: op and its tensors as text; None if in none."""
    innermost = frame
    while frame is not None:
        name, filename = frame.f_code.co_name, frame.f_code.co_filename
        row = by_function(name)
        if (row is not None or name in _MORE_CALLS) and torch_internals.is_of_distributed(filename):
            tensors, peer = torch_internals.tensors_and_peer(frame)
            return {
                "op": name,
                "tensor": "" if tensors is None else _tensor_in_words(tensors),
                "peer": peer if row is not None and row.kind in ("send", "receive") else None,
            }
        frame = frame.f_back
    return (
        {"op": "wait", "tensor": "", "peer": None} if innermost is not None and _in_wait(innermost) else None
    )


def _group_in_the_making(frame) -> dict[str, str]:
    """The group for which this rank waits in new_group."""
    while frame is not None:
        if (made := torch_internals.group_in_the_making(frame)) is not None:
            return {made[0]: ",".join(map(str, made[1]))}
        frame = frame.f_back
    return {}


def _groups() -> dict[str, str]:
    return {name: _group_ranks(name) for name in torch_internals.group_names()}


def _in_wait(frame) -> bool:
    """Whether a frame is right now in `something.wait()`, and that is no Python function: the wait for a work
    that is under way.
    """
    before = [
        i for i in dis.get_instructions(frame.f_code) if i.offset <= frame.f_lasti and i.opname != "PRECALL"
    ][-2:]
    return (
        # Python 3.11, and later
        [i.opname for i in before] in (["LOAD_METHOD", "CALL"], ["LOAD_ATTR", "CALL"])
        and before[0].argval == "wait"
        and before[1].arg == 0
    )


def _tensor_in_words(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value)} x {_tensor_in_words(value[0])}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _group_ranks(name: str) -> str:
    ranks = torch_internals.ranks_of_group(name)
    return f"group {name}" if ranks is None else ",".join(map(str, ranks))
