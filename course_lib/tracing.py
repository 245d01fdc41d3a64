"""Trace one step: every collective that is asked for, and a timeline of what the rank did.

Collectives are seen where all of them pass, whoever calls (DDP's reducer in C++, fully_shard, DTensor, a hand-written send): torch's
dispatcher calls one operator per collective, `c10d::allreduce_` and so on. For the length of the traced step each gets a kernel
that notes the call and passes it on, and is removed again. Times come from torch.profiler, which knows when gloo really ran.
"""
import contextlib
import time
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from course_lib import theory

__all__ = ["Trace", "named_span"]

# Operator of torch's dispatcher: what torch.distributed calls it, which argument is the full tensor S (a tensor, or lists of tensors),
# and the name of the work that gloo then runs.
_COLLECTIVES = {
    "allreduce_": ("all_reduce", 0, "all_reduce"),
    "allreduce_coalesced_": ("all_reduce", 0, "all_reduce"),
    "broadcast_": ("broadcast", 0, "broadcast"),
    "reduce_": ("reduce", 0, "reduce"),
    "allgather_": ("all_gather", 0, "all_gather"),
    "_allgather_base_": ("all_gather", 0, "all_gather"),
    "allgather_coalesced_": ("all_gather", 0, "all_gather"),
    "allgather_into_tensor_coalesced_": ("all_gather", 0, "all_gather"),
    "reduce_scatter_": ("reduce_scatter", 1, "all_reduce"),
    "_reduce_scatter_base_": ("reduce_scatter", 1, "all_reduce"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1, "all_reduce"),
    "alltoall_": ("all_to_all", 1, "all_to_all"),
    "alltoall_base_": ("all_to_all", 1, "all_to_all"),
    "gather_": ("gather", 1, "gather"),
    "scatter_": ("scatter", 0, "scatter"),
    "send": ("send", 0, "send"),
    "recv_": ("recv", 0, "recv"),
    "recv_any_source_": ("recv", 0, "recv"),
    "barrier": ("barrier", None, "barrier"),
}
_MARK, _BACKWARD, _SPAN = "course_lib: traced step", "course_lib: backward", "course_lib span of "        # of its kind, and its name
_AUTOGRAD, _GLOO = "autograd::engine", "gloo:"
_GAP_S = 150e-6                 # computing that pauses for less than this is drawn as one piece


def named_span(name: str, kind: str) -> record_function:
    """A piece of the timeline with a name of its own; its kind is "span" or "communication"."""
    return record_function(f"{_SPAN}{kind}: {name}")


class Trace:
    """The instruments of one step: `prepare` (slow), `start`, the step, `stop`, and later `rows`."""

    def __init__(self, cuda: bool):
        self._cuda = cuda
        self._calls: list[dict] = []
        self._profile = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda, record_shapes=True)

    def prepare(self) -> None:
        self._library = _listen(self._calls)
        with warnings.catch_warnings():           # some versions of torch warn that a second cycle would clear the first: there is one
            warnings.simplefilter("ignore", UserWarning)
            self._profile.__enter__()
        with record_function(_MARK + ", not yet"):     # the first one is slow, and the next one sets the clock
            pass

    def start(self) -> None:
        self._calls.clear()
        self._backward = torch.autograd.backward
        torch.autograd.backward = record_function(_BACKWARD)(self._backward)      # Tensor.backward looks it up here
        self._mark = record_function(_MARK)
        self._mark.__enter__()
        self._begin = time.perf_counter()

    def stop(self) -> None:
        self._mark.__exit__(None, None, None)
        with contextlib.suppress(RuntimeError):   # ended already, by a profiler that the learner has started
            self._profile.__exit__(None, None, None)
        self._library._destroy()
        torch.autograd.backward = self._backward

    def rows(self) -> dict:
        """comm and timeline rows with `start_s` on this host's monotonic clock, and `traced_at`, when the step began."""
        events = _events(self._profile.profiler.kineto_results, self._begin)
        mark = next((event for event in events if event.name == _MARK), None)
        if mark is None:                          # there can be one profiler at a time, and the learner has started another
            comm = [{name: value for name, value in call.items() if name[0] != "_"} for call in self._calls]
            reason = "another profiler ran in the traced step"
            return {"comm": comm, "timeline": [], "traced_at": self._begin, "absent": {"timeline": reason, "collective times": reason}}
        work = [] if self._cuda else [event for event in events if event.name.startswith(_GLOO)]
        for call in self._calls:
            name, count = call.pop("_work"), call.pop("_numel")
            ran = [event for event in work if event.name == _GLOO + name]
            match = next((event for event in ran if event.numel == count), ran[0] if ran else None)
            if match:
                work.remove(match)
                call["start_s"], call["seconds"] = match.start_s, match.end_s - match.start_s
        timeline = _spans(events) + _computing(events, mark.thread)
        timeline += [{"kind": "communication", "name": call["op"], "start_s": call["start_s"], "seconds": call["seconds"]}
                     for call in self._calls if call["seconds"] is not None]
        return {"comm": self._calls, "timeline": sorted(timeline, key=lambda row: row["start_s"]), "traced_at": self._begin}


def _listen(calls: list[dict]) -> torch.library.Library:
    """Note every collective from now on in `calls`, until the library that is returned is destroyed."""
    library = torch.library.Library("c10d", "IMPL")
    # The dispatcher's last stop before the backend's own kernel: reached by every call, also from inside a DTensor operation.
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    for operator_name, (op, which, work) in _COLLECTIVES.items():
        packet = getattr(torch.ops.c10d, operator_name, None)
        if packet is None:                        # not in this version of torch
            continue
        operator = packet.default

        def kernel(keyset, *args, operator=operator, op=op, which=which, work=work):
            calls.append(_note(op, which, work, args))
            return operator.redispatch(keyset & below, *args)

        library.impl(operator_name, kernel, "BackendSelect", with_keyset=True)
    return library


def _note(op: str, which: int | None, work: str, args: tuple) -> dict:
    """One call: `which` argument is the full tensor S, or for gather and scatter one rank's part of it."""
    tensors = [] if which is None else list(_flatten(args[which]))
    group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
    size = group.size()
    sparse = any(tensor.layout is torch.sparse_coo for tensor in tensors)
    parts = [part for tensor in tensors for part in ((tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else (tensor,))]
    payload = sum(part.nbytes for part in parts) * (size if op in ("gather", "scatter") else 1)
    return {"op": op, "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else "", "payload_bytes": payload,
            "algorithm_bytes": None if sparse else theory.collective_bytes(op, payload, size),      # of a sparse sum nobody knows the size beforehand
            "group_size": size,
            "group": ",".join(map(str, dist.get_process_group_ranks(group))), "start_s": time.perf_counter(), "seconds": None,
            "_work": work, "_numel": sum(t.numel() for t in tensors) if len(tensors) == 1 else None}


def _flatten(value):
    """The tensors in an operator's argument: a tensor, a list, or a list of lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flatten(inner)


@dataclass(eq=False, slots=True)
class _Event:
    """What the profiler has recorded: a name, when on this host's monotonic clock, elements of its first tensor, and which events of its thread it lay in."""
    name: str
    start_s: float
    end_s: float
    thread: int
    numel: int | None
    above: tuple[str, ...] = ()


def _events(results, begin_s: float) -> list[_Event]:
    """The raw record of a profiler, in order of time; the step's mark was set at `begin_s`. (Profiler.events() takes seven times as long: it adds up
    much that is not looked at here.)"""
    rows = [(e.start_ns(), -e.duration_ns(), e.name(), e) for e in results.events()] if results else []
    marked_ns = next((start_ns for start_ns, _, name, _ in rows if name == _MARK), 0)
    found, open_on = [], {}                       # thread -> events that have begun and not ended, outermost first
    for start_ns, negative_ns, name, e in sorted(rows, key=lambda row: row[:2]):
        start_s, thread = begin_s + (start_ns - marked_ns) / 1e9, e.start_thread_id()
        shapes = e.shapes() if name.startswith(_GLOO) else ()
        event = _Event(name, start_s, start_s - negative_ns / 1e9, thread, torch.Size(shapes[0]).numel() if shapes else None)
        found.append(event)
        if e.is_async() or e.device_type() != torch.autograd.DeviceType.CPU:
            continue
        around = open_on.setdefault(thread, [])
        while around and around[-1].end_s < event.end_s:
            around.pop()
        if around:
            event.above = (*around[-1].above, around[-1].name)
        around.append(event)
    return found


def _spans(events: list[_Event]) -> list[dict]:
    named = [(event, *event.name.removeprefix(_SPAN).split(": ", 1)) for event in events if event.name.startswith(_SPAN)]
    return [{"kind": kind, "name": name, "start_s": event.start_s, "seconds": event.end_s - event.start_s} for event, kind, name in named]


def _computing(events: list[_Event], thread: int) -> list[dict]:
    """Pieces in which the rank computed, by kind; neighbours of one kind are joined. Work inside a span belongs to the span."""
    pieces = []
    for event in events:
        if event.name.startswith(_SPAN):          # parts what comes before it from what comes after
            pieces.append([event.start_s, event.end_s, "span"])
        if not event.name.startswith("aten::"):
            continue
        by_autograd = any(name.startswith(_AUTOGRAD) for name in event.above)       # which works on a GPU from a thread of its own
        if any(name.startswith(("aten::", "c10d::", _SPAN)) for name in event.above) or not (by_autograd or event.thread == thread):
            continue
        kind = ("optimizer" if any(name.startswith("Optimizer.") for name in event.above)
                else "backward" if by_autograd or _BACKWARD in event.above else "forward")
        pieces.append([event.start_s, event.end_s, kind])
    joined: list[list] = []
    for begin, end, kind in sorted(pieces):
        if joined and joined[-1][2] == kind and begin - joined[-1][1] < _GAP_S:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end, kind])
    return [{"kind": kind, "name": kind, "start_s": begin, "seconds": end - begin} for begin, end, kind in joined if kind != "span"]
