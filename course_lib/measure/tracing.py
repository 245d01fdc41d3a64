"""Trace one step: every collective that is asked for, and a timeline of what the rank did.

Collectives are seen where all of them pass, whoever calls (DDP's reducer in C++, fully_shard, DTensor, a
hand-written send): torch's dispatcher calls one operator per collective, `c10d::allreduce_` and so on. For
the length of the traced step each gets a kernel that notes the call and passes it on, and is removed again.
Times come from torch.profiler, which knows when gloo really ran.
"""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from course_lib import theory
from course_lib.measure.events import BACKWARD, GLOO, SPAN, computing, give_times, read, spans
from course_lib.measure.instruments import Instrument, StepAside, why

__all__ = ["Trace", "named_span"]

# Operator of torch's dispatcher: what torch.distributed calls it, which argument is the full tensor S (a
# tensor, or lists of tensors),
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
_WITHOUT_INPUT = ("barrier", "scatter")  # of which gloo has no first tensor, on some ranks
_MARK = "course_lib: the clock at mark"
_ANOTHER = "another profiler ran in the traced step"
_ENGINE = torch.autograd.graph._engine_run_backward.__code__


def named_span(name: str, kind: str) -> record_function:
    """A piece of the timeline with a name of its own; its kind is "span" or "communication"."""
    return record_function(f"{SPAN}{kind}: {name}")


class Trace:
    """The instruments of one step, and later its `rows`.

    Attributes:
        slow, quick: what is to be attached for the step, by the layer that it measures; each returns what
            takes it away again. `slow` come first.
        absent: gets the layers that cannot be measured, each with the reason.
    """

    def __init__(self, cuda: bool, absent: dict[str, str]):
        self._cuda = cuda
        self._calls: list[dict] = []
        self._profile: profile | None = None
        self._begin = self._mark_s = time.perf_counter()
        self.slow: dict[str, Instrument] = {"collectives": self._listen, "timeline": self._start_profiler}
        self.quick: dict[str, Instrument] = {"backward's frame": _mark_backward}
        self.absent = absent

    def begin(self) -> None:
        """From now on it counts."""
        self._calls.clear()
        self._begin = self._mark_s = time.perf_counter()
        if self._profile is not None:
            self._mark, self._mark_s = _clock_mark()

    def rows(self) -> dict:
        """comm and timeline rows with `start_s` on this host's monotonic clock, and `traced_at`, when the
        step began.
        """
        events = (
            read(self._profile.profiler.kineto_results, self._mark, self._mark_s)
            if self._profile is not None
            else []
        )
        mark = next((event for event in events if event.name == self._mark), None)
        comm = [] if "collectives" in self.absent else self._calls
        if mark is None:  # there can be one profiler at a time
            reason = self.absent.setdefault("timeline", _ANOTHER)
            self.absent.setdefault("collective times", reason)
            return {"comm": [_told(call) for call in comm], "timeline": [], "traced_at": self._begin}
        if not self._cuda:
            give_times(
                comm,
                [event for event in events if event.name.startswith(GLOO)],
                [event for event in events if event.name == BACKWARD],
            )
        timeline = spans(events) + computing(events, mark.thread, comm)
        timeline += [
            {
                "kind": "communication",
                "name": call["op"],
                "start_s": call["start_s"],
                "seconds": call["seconds"],
            }
            for call in comm
            if call["seconds"] is not None
        ]
        return {
            "comm": [_told(call) for call in comm],
            "timeline": sorted(timeline, key=lambda row: row["start_s"]),
            "traced_at": self._begin,
        }

    def _start_profiler(self) -> Callable[[], None]:
        # the learner's own, around the step: a second one would empty it
        if torch.autograd.profiler._is_profiler_enabled:
            raise StepAside(_ANOTHER)
        # collectives in threads of the learner's, too
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        started = profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda,
            record_shapes=True,
            experimental_config=everywhere,
        )

        def stop() -> None:
            # ended already, by a profiler that the learner has started
            with contextlib.suppress(RuntimeError):
                started.__exit__(None, None, None)

        # some versions of torch warn that a second cycle would clear the first: there is one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            started.__enter__()
        _clock_mark()  # the first one is slow
        self._profile = started
        return stop

    def _listen(self) -> Callable[[], None]:
        """Note every collective, until what is returned is called."""
        library = torch.library.Library("c10d", "IMPL")
        try:
            for operator_name, (op, which, work) in _COLLECTIVES.items():
                packet = getattr(torch.ops.c10d, operator_name, None)
                if packet is not None:  # else not in this version of torch
                    library.impl(
                        operator_name,
                        self._kernel(packet.default, op, which, work),
                        "BackendSelect",
                        with_keyset=True,
                    )
        except BaseException:
            library._destroy()
            raise
        return library._destroy

    def _kernel(self, operator, op: str, which: int | None, work: str) -> Callable:
        # The dispatcher's last stop before the backend's own kernel: reached by every call, also from inside
        # a DTensor operation.
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)

        def kernel(keyset, *args):
            try:
                self._calls.append(_note(op, which, work, args))
            except Exception as error:  # the collective itself goes on
                self.absent["collectives"] = f"a call of {op} could not be looked into ({why(error)})"
            return operator.redispatch(keyset & below, *args)

        return kernel


def _mark_backward() -> Callable[[], None]:
    """Give backward a frame of its own in the profiler's record. Tensor.backward looks it up where we put
    it.
    """
    own = torch.autograd.backward
    torch.autograd.backward = marked = record_function(BACKWARD)(own)

    def detach() -> None:
        if torch.autograd.backward is marked:  # else the learner has put another one there
            torch.autograd.backward = own

    return detach


def _clock_mark() -> tuple[str, float]:
    """Set a mark in the profiler's record: its name, and when it was set. Of several, the quickest: on a busy
    machine, another process may run
    between the mark and the reading of the clock."""
    tries = []
    for number in range(5):
        name, before = f"{_MARK} {number} {time.perf_counter()}", time.perf_counter()
        with record_function(name):
            tries.append((time.perf_counter() - before, name, before))
    return min(tries)[1:]


def _note(op: str, which: int | None, work: str, args: tuple) -> dict:
    """One call: `which` argument is the full tensor S, or for gather and scatter one rank's part of it."""
    tensors = [] if which is None else list(_flatten(args[which]))
    group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
    size = group.size()
    sparse = any(tensor.layout is torch.sparse_coo for tensor in tensors)
    parts = [
        part
        for tensor in tensors
        for part in (
            (tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else (tensor,)
        )
    ]
    payload = sum(part.nbytes for part in parts) * (size if op in ("gather", "scatter") else 1)
    lists = (
        op == "reduce_scatter"
        and isinstance(args[which], (list, tuple))
        and isinstance(args[which][0], (list, tuple))
    )
    return {
        "op": op,
        "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        "payload_bytes": payload,
        # of a sparse sum nobody knows the size beforehand
        "algorithm_bytes": None if sparse else theory.collective_bytes(op, payload, size),
        "group_size": size,
        "group": ",".join(map(str, dist.get_process_group_ranks(group))),
        "start_s": time.perf_counter(),
        "seconds": None,
        # gloo reduces the parts of a list one by one
        "_work": GLOO + work,
        "_runs": size if lists else 1,
        "_numels": (
            {tensor.numel() for arg in args for tensor in _flatten(arg)}
            | ({None} if op in _WITHOUT_INPUT else set())
        ),
        "_for_ddp": _for_ddp(),
    }


def _for_ddp() -> bool:
    """Whether torch's DDP asks for this collective in a backward: from C++, or by a communication hook."""
    frame, above = sys._getframe(2), None
    while frame is not None and frame.f_code is not _ENGINE:
        frame, above = frame.f_back, frame
    if frame is None:
        return False
    code = above.f_code
    return (
        code.co_name == "kernel"
        or "bucket" in code.co_varnames[: code.co_argcount]
        and isinstance(above.f_locals["bucket"], dist.GradBucket)
    )


def _told(call: dict) -> dict:
    """What is reported of a call."""
    return {name: value for name, value in call.items() if name[0] != "_"}


def _flatten(value):
    """The tensors in an operator's argument: a tensor, a list, or a list of lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flatten(inner)
