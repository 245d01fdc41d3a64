"""Where this rank is: asked for by the kernel when a job stalls or fails, answered by a thread of the
rank.
"""

import ctypes
import dis
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from itertools import islice

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d

from course_lib.measure import wire
from course_lib.ranks import places

__all__ = ["whereabouts", "collectives", "tell_before_abort"]

RECORDED = 64  # how many collectives the Flight Recorder keeps
FRAMES = 200  # of the innermost frames, how many are told

_CALLS = {
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "gather",
    "scatter",
    "reduce_scatter",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "send",
    "recv",
    "send_object_list",
    "recv_object_list",
    "monitored_barrier",
    "new_group",
    "batch_isend_irecv",
}
_ARGUMENTS = (
    "tensor",
    "input",
    "input_tensor",
    "input_list",
    "input_tensor_list",
    "tensor_list",
    "scatter_list",
    "output",
)
_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
_NOT_FOR_EVER = {"monitored_barrier"}  # gives up by itself
# where torch itself waits for a collective, in C++
_WAIT_INSIDE = ("torch/distributed/", "torch/autograd/graph.py", "torch/_ops.py")
_handlers = []  # what ctypes has handed to the C library must stay alive


def whereabouts() -> dict:
    """Where the main thread is: its frames (outermost first), the torch.distributed call it is in, and the
    recent collectives.

    groups: name -> ranks, as in `collectives`, of the groups of which this rank is a member, and of the one
        that it is making.
    free: it is in code that waits for nobody, even if a collective is under way.
    blocked: it can only go on when another rank does something. written_bytes, cpu_s: of this process so far;
        a transfer that moves shows in them.
    """
    threads = sys._current_frames()
    frame = threads.get(threading.main_thread().ident)
    # traceback's own extracts read the sources, which costs memory
    inwards = reversed(list(islice(traceback.walk_stack(frame), FRAMES))) if frame else []
    frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in inwards]
    call = _call(frame)
    return {
        "frames": frames,
        "call": call,
        "collectives": collectives(),
        "groups": _groups() | _group_in_the_making(frame),
        "free": (
            call is None
            and bool(frames)
            and not any(part in frames[-1][0] for part in _WAIT_INSIDE)
            and _on_cpus()
        ),
        "blocked": (
            call is not None
            and call["op"] not in _NOT_FOR_EVER
            and len(threads) == 2
            and _on_cpus()
            and _groups_wait_long()
        ),
        "written_bytes": wire.all_written_bytes(),
        "cpu_s": time.process_time(),
    }


def _on_cpus() -> bool:
    """A GPU works on its own: there a call that waits, and a call that doesn't, say little."""
    return not torch.cuda.is_initialized()


def _groups_wait_long() -> bool:
    """Whether no process group was given a shorter timeout than the job's: where one was, the wait ends by
    itself.
    """
    try:
        timeouts = [
            group._get_backend(torch.device("cpu")).options._timeout
            for group in dist.distributed_c10d._world.pg_map
            if group.size() > 1
        ]
    except (AttributeError, RuntimeError):
        return False
    return bool(timeouts) and min(timeouts) >= timeouts[0]


def collectives() -> list[dict]:
    """The last collectives of this rank, from torch's Flight Recorder: op, sizes, dtypes, group (its ranks),
    name (of the group: two groups may have
    the same ranks), seq (the collective's number in the group), done, and site, the frame of the learner's
    code that called it (or None).

    gloo's own name stands for the operation: its reduce_scatter shows as the all_reduce that it is. Empty
    where there is no recorder.
    """
    try:
        entries = pickle.loads(_distributed_c10d._dump_fr_trace(True, True, False)).get("entries", [])
    except (AttributeError, RuntimeError, TypeError):  # an older torch
        return []
    return [
        {
            "op": entry["profiling_name"].split(":")[-1],
            "sizes": [list(size) for size in entry["input_sizes"]],
            "dtypes": [_DTYPES.get(dtype, dtype) for dtype in entry["input_dtypes"]],
            "group": _group_ranks(entry["process_group"][0]),
            "name": entry["process_group"][0],
            "seq": entry["collective_seq_id"],
            "done": bool(entry["retired"]),
            "site": _site(entry.get("frames", [])),
        }
        for entry in entries
        if not entry["is_p2p"]
    ]


def _site(frames: list[dict]) -> tuple[str, int, str] | None:
    """The learner's frame from which a collective was called (frames innermost first). None where torch calls
    it for a rank that has run out
    of inputs (`join`): there another line than its peers' is as it should be."""
    if any(frame["filename"].endswith("algorithms/join.py") for frame in frames):
        return None
    return places.learners_frame(
        [(frame["filename"], frame["line"], frame["name"]) for frame in reversed(frames)]
    )


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
    """The torch.distributed call in which a frame waits: op and its tensors as text; None if it is in
    none.
    """
    innermost = frame
    while frame is not None:
        name = frame.f_code.co_name
        if name in _CALLS and frame.f_code.co_filename.endswith("distributed_c10d.py"):
            values = frame.f_locals
            shown = next(
                (_tensor_in_words(values[a]) for a in _ARGUMENTS if a in values and _is_tensors(values[a])),
                "",
            )
            peer = next(
                (
                    values[a]
                    for a in ("dst", "src")
                    if name in ("send", "recv") and isinstance(values.get(a), int)
                ),
                None,
            )
            return {"op": name, "tensor": shown, "peer": peer}
        frame = frame.f_back
    return (
        {"op": "wait", "tensor": "", "peer": None} if innermost is not None and _in_wait(innermost) else None
    )


def _group_in_the_making(frame) -> dict[str, str]:
    """The group for which this rank waits in new_group."""
    while frame is not None:
        values = frame.f_locals if frame.f_code.co_name == "_new_group_with_tag" else {}
        if values.get("group_name") and values.get("ranks"):
            return {values["group_name"]: ",".join(map(str, values["ranks"]))}
        frame = frame.f_back
    return {}


def _groups() -> dict[str, str]:
    try:
        return {name: _group_ranks(name) for name in list(dist.distributed_c10d._world.pg_names.values())}
    except (AttributeError, RuntimeError):
        return {}


def _in_wait(frame) -> bool:
    """Whether a frame is right now in `something.wait()`, and that is no Python function: the wait for a work
    that is under way.
    """
    before = [
        i for i in dis.get_instructions(frame.f_code) if i.offset <= frame.f_lasti and i.opname != "PRECALL"
    ][-2:]
    # Python 3.11, and later
    return (
        [i.opname for i in before] in (["LOAD_METHOD", "CALL"], ["LOAD_ATTR", "CALL"])
        and before[0].argval == "wait"
        and before[1].arg == 0
    )


def _is_tensors(value) -> bool:
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], torch.Tensor)
    )


def _tensor_in_words(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"{len(value)} x {_tensor_in_words(value[0])}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _group_ranks(name: str) -> str:
    try:
        return ",".join(
            map(str, dist.get_process_group_ranks(_distributed_c10d._resolve_process_group(name)))
        )
    except (AttributeError, RuntimeError, ValueError, KeyError, TypeError):
        return f"group {name}"
