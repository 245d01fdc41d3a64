"""What one rank records of its steps, in rows: warm-up, traced, timed. `measure.step` begins and ends each of
them.
"""

import time
from collections.abc import Callable
from numbers import Real

import torch
import torch.distributed as dist

from course_lib import torch_internals
from course_lib.arguments import whole
from course_lib.measure import link, memory, tracing, wire
from course_lib.measure.instruments import Attached, why

__all__ = ["Ledger", "MEASURES"]

MEASURES = "measures"  # where ranks meet that have begun a step: nobody waits there

WARM_UP, TRACED, TIMED = "warm-up", "traced", "timed"
_REPORT_EVERY_S = 0.2


class Ledger:
    """What one rank has measured."""

    def __init__(
        self,
        report: Callable[[int, int | None, int | None, float | None, dict | None], None],
        meet: Callable[..., None],
        each_step: bool = False,
    ):
        """`report(step, number, total, loss, told)`: a sign of life, between steps; now and then, or after
        `each_step`, and then with what is new in its records. `meet(name, at_most_s)`: wait a moment for the
        other ranks.
        """
        self.steps: list[dict] = []
        self.memory: list[dict] = []
        self.trace: tracing.Trace | None = None  # of the step that is traced now
        self._finished_trace: tracing.Trace | None = None
        self._traced: dict = {"comm": [], "timeline": [], "traced_at": None}
        self._attached = Attached({})
        self._report, self._meet, self._reported = report, meet, 0.0
        self._each_step = each_step
        self._cuda = torch.get_default_device().type == "cuda"
        self._nccl = dist.is_initialized() and torch_internals.uses_nccl()
        self.absent = self._what_is_absent()
        self._open = self._measures = False
        self._peak = memory.Peak(self._cuda)
        self._linked = link.is_there()
        self._counter = link.Counter() if self._linked else None

    def begin(
        self, model, optimizer, samples: int | None, number: int | None, total: int | None = None
    ) -> None:
        """A step begins; arguments and errors are those of `measure.step`."""
        if self._open:
            raise RuntimeError(
                "measure.step was entered inside another measure.step; steps cannot be nested."
            )
        if not self._measures:
            self._measures = True
            self._meet(MEASURES, 0.0)
        self._phase = WARM_UP if not self.steps else TRACED if len(self.steps) == 1 else TIMED
        self._samples = None if samples is None else int(whole("samples", samples, least=0))
        self._number = None if number is None else int(whole("number", number, least=0))
        self._total = None if total is None else int(whole("total", total))
        if self._phase != TIMED:
            modules = memory.modules_of(model)
            if optimizer is not None and not callable(getattr(optimizer, "step", None)):
                raise TypeError(
                    f"measure.step was given an optimizer of type {type(optimizer).__name__}: it must be one"
                    " optimizer, with a method step(). If there are several, leave it out."
                )
        self._open = True
        try:
            if self._phase == TRACED:
                absent: dict[str, str] = {}  # of this step: one that fails is traced again
                self._attached, self.trace = Attached(absent), tracing.Trace(self._cuda, absent)
                self._watch = memory.Watch(modules, optimizer, self._cuda, absent)
                self._attached.attach(self.trace.slow)
                self._meet("traced")  # attaching took each rank another while; timelines start together
                self._count_link("warmed up")
            elif self._counter:
                self._counter.begin()
            self._sent_before = None if "wire bytes" in self.absent else wire.look()
            if self._phase == TRACED:
                self._attached.attach(self._watch.instruments | self.trace.quick)
                self.trace.begin()
            if self._cuda:
                torch.cuda.synchronize()
        except BaseException:  # an interrupt, for one
            self._leave()  # the step is not entered, so nobody else will
            raise
        self._begin = time.perf_counter()

    def end(self, failed: bool, loss=None) -> None:
        """It is over. One that has `failed` is not recorded, and the next one takes its place."""
        if self._cuda and not failed:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._begin
        trace = self._leave()
        if failed:
            return  # the learner's own exception is on its way
        if trace is not None:
            self._finished_trace = trace
            self.memory = self._watch.rows()
        self.steps.append(
            {
                "step": len(self.steps),
                "phase": self._phase,
                "seconds": seconds if self._phase == TIMED else None,
                "samples": self._samples,
                "wire_bytes": None if self._sent_before is None else wire.sent_since(self._sent_before),
            }
        )
        if self._counter:
            self._counter.end(len(self.steps) - 1, self._phase)
        if self._phase == TRACED:
            self._meet("timed")
            self._count_link("traced and timed")
        now = time.monotonic()
        if self._each_step or now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            told = None
            if self._each_step:  # a rank that fails is not asked for its records
                told = {"steps": self.steps[-1:], **(self._read() if self._phase == TRACED else {})}
            self._report(len(self.steps) - 1, self._number, self._total, _number_of(loss), told)

    def _count_link(self, name: str) -> None:
        """On linked hosts, count what the step that all ranks have ended has sent, before a rank goes on."""
        if self._counter:
            self._counter.begin()
        if self._linked:
            self._meet(name)

    def _leave(self) -> tracing.Trace | None:
        """Take the instruments away; returns the trace if there was one."""
        self._attached.detach()
        self._open, trace, self.trace = False, self.trace, None
        return trace

    def records(self) -> dict:
        """All rows, once the function has returned; working out the trace is left to this moment, when nobody
        waits.
        """
        if self._linked:
            self._meet("ended")
        if self._counter:
            self._counter.begin()
        return {"steps": self.steps, **self._read()}

    def _read(self) -> dict:
        """All that is known so far, but for the steps."""
        trace = self._finished_trace
        if trace is not None:
            try:
                self._traced = trace.rows()
            except Exception as error:
                trace.absent |= dict.fromkeys(
                    ("collectives", "collective times", "timeline"),
                    f"the record could not be read ({why(error)})",
                )
            self.absent |= trace.absent
            self._finished_trace = None
        peak = [{"category": "peak", "bytes": self._peak.bytes()}] if self.memory else []
        links = self._counter.rows if self._counter else []
        return {"links": links, "memory": self.memory + peak, **self._traced, "absent": self.absent}

    def _what_is_absent(self) -> dict[str, str]:
        absent = {}
        if self._nccl:
            absent["wire bytes"] = "NCCL moves bytes from GPU to GPU, past the operating system's counters"
            absent["collective times"] = (
                "NCCL runs on the GPU; the time of a call says nothing of the transfer"
            )
        elif not wire.is_counted():
            absent["wire bytes"] = "this operating system does not count what one process sends"
        if not self._cuda:
            absent["other memory"] = (
                "the CPU allocator keeps no account; the peak is the resident memory's growth"
            )
        return absent


def _number_of(loss) -> float | None:
    """The loss that a step was told. Not of a DTensor: asking one may be a collective, and each rank would
    ask when it likes.
    """
    if isinstance(loss, torch.Tensor):
        if type(loss) not in (torch.Tensor, torch.nn.Parameter) or loss.numel() != 1:
            raise TypeError(
                f"step.loss was set to a {type(loss).__name__} of shape {list(loss.shape)}: it must be a"
                " number, or a plain tensor with one. Give loss.item()."
            )
        loss = loss.item()
    if loss is None:
        return None
    if isinstance(loss, bool) or not isinstance(loss, Real):
        raise TypeError(
            f"step.loss was set to a {type(loss).__name__}: it must be a number, or a tensor with one."
        )
    return float(loss)
