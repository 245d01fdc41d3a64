"""Trace one step: every collective that is asked for, and a timeline of what the rank did.

Collectives are seen where all of them pass, whoever calls (DDP's reducer in C++, fully_shard, DTensor, a hand-written send): torch's
dispatcher calls one operator per collective, `c10d::allreduce_` and so on. For the length of the traced step each gets a kernel
that notes the call and passes it on, and is removed again. Times come from torch.profiler, which knows when gloo really ran.
"""
import time

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
_AUTOGRAD = "autograd::engine"
_GAP_S = 150e-6                 # computing that pauses for less than this is drawn as one piece


def named_span(name: str, kind: str) -> record_function:
    """A piece of the timeline with a name of its own; its kind is "span" or "communication"."""
    return record_function(f"{_SPAN}{kind}: {name}")


class Trace:
    """The instruments of one step: `prepare` (slow), `start`, the step, `stop`, and later `rows`."""

    def __init__(self, cuda: bool):
        self._cuda = cuda
        self._calls: list[dict] = []
        self._profile = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda, record_shapes=True, acc_events=True)

    def prepare(self) -> None:
        self._library = _listen(self._calls)
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
        self._profile.__exit__(None, None, None)
        self._library._destroy()
        torch.autograd.backward = self._backward

    def rows(self) -> dict:
        """comm and timeline rows with `start_s` on this host's monotonic clock, and `traced_at`, when the step began."""
        events = self._profile.events() or []
        mark = next((event for event in events if event.name == _MARK), None)
        if mark is None:                          # there can be one profiler at a time, and the learner has started another
            comm = [{name: value for name, value in call.items() if name[0] != "_"} for call in self._calls]
            reason = "another profiler ran in the traced step"
            return {"comm": comm, "timeline": [], "traced_at": self._begin, "absent": {"timeline": reason, "collective times": reason}}
        shift = self._begin - mark.time_range.start / 1e6
        work = [] if self._cuda else _gloo_work(events, shift)
        for call in self._calls:
            name, count = call.pop("_work"), call.pop("_numel")
            match = next((w for w in work if w[:2] == (name, count)), None) or next((w for w in work if w[0] == name), None)
            if match:
                work.remove(match)
                _, _, call["start_s"], call["seconds"] = match
        timeline = _spans(events, mark, shift) + _computing(events, mark, shift)
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


def _gloo_work(events, shift: float) -> list[tuple[str, int | None, float, float]]:
    """What gloo ran, in order of time: name, elements of its first tensor, start_s, seconds."""
    found = []
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.name.startswith("gloo:"):
            count = torch.Size(event.input_shapes[0]).numel() if event.input_shapes else None
            found.append((event.name.removeprefix("gloo:"), count, event.time_range.start / 1e6 + shift, event.time_range.elapsed_us() / 1e6))
    return found


def _ancestors(event):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


def _spans(events, mark, shift: float) -> list[dict]:
    named = [(event, *event.name.removeprefix(_SPAN).split(": ", 1)) for event in events if event.name.startswith(_SPAN)]
    return [{"kind": kind, "name": name, "start_s": event.time_range.start / 1e6 + shift, "seconds": event.time_range.elapsed_us() / 1e6}
            for event, kind, name in named]


def _computing(events, mark, shift: float) -> list[dict]:
    """Pieces in which the rank computed, by kind; neighbours of one kind are joined. Work inside a span belongs to the span."""
    pieces = []
    for event in events:
        if event.name.startswith(_SPAN):          # parts what comes before it from what comes after
            begin = event.time_range.start / 1e6 + shift
            pieces.append([begin, begin + event.time_range.elapsed_us() / 1e6, "span"])
        if not event.name.startswith("aten::"):
            continue
        above = list(_ancestors(event))
        by_autograd = any(name.startswith(_AUTOGRAD) for name in above)       # which works on a GPU from a thread of its own
        if any(name.startswith(("aten::", "c10d::", _SPAN)) for name in above) or not (by_autograd or event.thread == mark.thread):
            continue
        kind = ("optimizer" if any(name.startswith("Optimizer.") for name in above)
                else "backward" if by_autograd or _BACKWARD in above else "forward")
        begin = event.time_range.start / 1e6 + shift
        pieces.append([begin, begin + event.time_range.elapsed_us() / 1e6, kind])
    joined: list[list] = []
    for begin, end, kind in sorted(pieces):
        if joined and joined[-1][2] == kind and begin - joined[-1][1] < _GAP_S:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end, kind])
    return [{"kind": kind, "name": kind, "start_s": begin, "seconds": end - begin} for begin, end, kind in joined if kind != "span"]
