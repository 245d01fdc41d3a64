"""Trace one step: every collective that is asked for, and a timeline of what the rank did.

Collectives are noted as they are called (`calls`); their times come from torch.profiler, which knows when
gloo really ran.
"""

import contextlib
import time
import warnings
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

from course_lib import torch_internals
from course_lib.measure import calls
from course_lib.measure.events import BACKWARD, SPAN, computing, give_times, read, spans
from course_lib.measure.instruments import Instrument, StepAside, why

__all__ = ["Trace", "named_span"]

_MARK = "course_lib: the clock at mark"
_ANOTHER = "another profiler ran in the traced step"


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
            read(torch_internals.recorded_events(self._profile), self._mark, self._mark_s)
            if self._profile is not None
            else []
        )
        mark = next((event for event in events if event.name == self._mark), None)
        comm = [] if "collectives" in self.absent else self._calls
        if mark is None:  # there can be one profiler at a time
            reason = self.absent.setdefault("timeline", _ANOTHER)
            self.absent.setdefault("collective times", reason)
            return {
                "comm": [calls.without_notes(call) for call in comm],
                "timeline": [],
                "traced_at": self._begin,
            }
        if not self._cuda:
            give_times(
                comm,
                [event for event in events if event.name.startswith(torch_internals.GLOO)],
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
            "comm": [calls.without_notes(call) for call in comm],
            "timeline": sorted(timeline, key=lambda row: row["start_s"]),
            "traced_at": self._begin,
        }

    def _start_profiler(self) -> Callable[[], None]:
        if torch_internals.is_profiling():  # the learner's own; a second one would empty it
            raise StepAside(_ANOTHER)
        started = profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda,
            record_shapes=True,
            # collectives in threads of the learner's, too
            experimental_config=torch_internals.of_all_threads(),
        )

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # a profiler that the learner has started has ended it
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

        def failed(op: str, error: Exception) -> None:
            self.absent["collectives"] = f"a call of {op} could not be looked into ({why(error)})"

        return calls.attach(self._calls.append, failed)


def _mark_backward() -> Callable[[], None]:
    """Give backward a frame of its own in the profiler's record."""
    return torch_internals.wrap_backward(record_function(BACKWARD))


def _clock_mark() -> tuple[str, float]:
    """Set a mark in the profiler's record: its name, and when it was set. Of several, the quickest: on a busy
    machine, another process may run between the mark and the reading of the clock.
    """
    tries = []
    for number in range(5):
        name, before = f"{_MARK} {number} {time.perf_counter()}", time.perf_counter()
        with record_function(name):
            tries.append((time.perf_counter() - before, name, before))
    return min(tries)[1:]
