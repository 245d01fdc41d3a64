"""Measure training steps: bytes, memory and time, in one ledger per rank.

A step that is instrumented is slower, and a step that is timed must carry nothing. So each step has one duty:

    step 0   warm-up: first-time costs, nothing is measured but the bytes on the wire
    step 1   traced:  collectives, activations, memory and the timeline, with instruments attached
    step 2+  timed:   two readings of the clock, nothing else inside

Outside a job (plain Python, torchrun) nothing is recorded and the step runs as if unmeasured.

ledger.py       what one rank records of its steps, in rows
instruments.py  what is attached for one step; one that cannot look steps aside, with its reason
tracing.py      the traced step: its collectives, and a timeline of what the rank did
calls.py        every collective, send and receive, whoever asks for it
events.py       what torch.profiler has recorded: gloo's work, and when the rank computed
wire.py         bytes sent over TCP, as the operating system counts them
link.py         bytes that a linked host sends to others, as the system counts them
memory.py       bytes held, by what they are for
activations.py  the tensors that autograd saves for backward
storages.py     which memory is behind a tensor, or behind anything that holds tensors
alive.py        which layers' full parameters are alive when, and what a step really allocates
moments.py      what is held after every operation of a step, by what it is for
looks.py        the lock within which frames are looked at, and memory is counted
"""

import contextlib
from collections.abc import Callable
from typing import Any

from course_lib.measure import tracing
from course_lib.measure.ledger import Ledger

__all__ = ["step", "span"]


class step:
    """Measure one training step: `with measure.step(model, optimizer, samples=len(batch)): ...`.

    Put forward, backward and `optimizer.step()` inside. Every rank must measure the same steps.

    Args:
        model: module whose parameters, gradients and buffers are counted (any wrapper, or a list of modules);
            None counts none.
        optimizer: optimizer whose state is counted, right after its `step()`; None counts at the end of the
            step.
        samples: how many samples this rank processes in this step, for samples per second.
        number: which step of the whole training this is, from 0, for a function that goes on from a
            checkpoint. Then a job that starts again (`run(..., restarts=2)`) tells how many steps were done
            again. The numbers in tables count from 0 in each attempt.
        total: how many steps the whole training has, for who watches the job: 12 of 40.

    Attributes:
        loss: set it within the step, `with measure.step(...) as step: ... step.loss = loss`, and it is seen
            beside the rank's steps while the job runs: a number, or a tensor with one. It is looked at a few
            times a second, when the step is over, and is in no table.

    Errors: TypeError or ValueError for a model, an optimizer, samples, a number, a total or a loss that are
        none (in a job; elsewhere they are not looked at).
    """

    def __init__(
        self,
        model=None,
        optimizer=None,
        samples: int | None = None,
        number: int | None = None,
        total: int | None = None,
    ):
        self._arguments = model, optimizer, samples, number, total
        self.loss: Any = None

    def __enter__(self) -> "step":
        if _ledger is not None:
            _ledger.begin(*self._arguments)
        return self

    def __exit__(self, kind, error, trace) -> None:
        loss, self.loss = self.loss, None  # or its graph would be held until the next step
        if _ledger is not None:
            _ledger.end(failed=kind is not None, loss=loss)


def span(name: str, communication: bool = False) -> contextlib.AbstractContextManager:
    """Name a piece of a step, so that the timeline shows it: compute that sleeps, one micro-batch of a
    pipeline stage.

    It counts as computing, or with `communication` as the rest of a collective, such as the wait for a
    modelled link. Costs nothing in steps that are not traced.
    """
    if _ledger is not None and _ledger.trace is not None:
        return tracing.named_span(name, "communication" if communication else "span")
    return contextlib.nullcontext()


_ledger: Ledger | None = None  # one per rank; None outside a job


def start_ledger(report: Callable[..., None], meet: Callable[..., None], each_step: bool = False) -> Ledger:
    """Begin to record in this process (called by the rank's worker)."""
    global _ledger
    _ledger = Ledger(report, meet, each_step)
    return _ledger


def last_step() -> int | None:
    """The number of the last step that this process has measured; None before, and outside a job."""
    ledger = _ledger
    return len(ledger.steps) - 1 if ledger is not None and ledger.steps else None


def stop_ledger(ledger: Ledger) -> dict:
    """End recording and return the rows."""
    global _ledger
    _ledger = None
    return ledger.records()
