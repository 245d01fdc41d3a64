"""Read what torch.profiler has recorded of a step: which of gloo's work belongs to which call, and what the
rank computed when.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from course_lib.torch_internals import AUTOGRAD, COLLECTIVE, COMPUTES, OPTIMIZER, Recorded

__all__ = ["Event", "read", "give_times", "spans", "computing", "BACKWARD", "SPAN"]

# names in the record; a span's goes on with its kind and its name
BACKWARD, SPAN = "course_lib: backward", "course_lib span of "
_GAP_S = 150e-6  # computing that pauses for less than this is drawn as one piece
_CLOCKS_AGREE_S = 1e-3  # ours and the profiler's, at worst


@dataclass(eq=False, slots=True)
class Event:
    """What was recorded: a name, when on this host's monotonic clock, elements of its first tensor, and which
    events of its thread it lay in.
    """

    name: str
    start_s: float
    end_s: float
    thread: int
    numel: int | None
    above: tuple[str, ...] = ()


def read(recorded: Iterable[Recorded], mark: str, mark_s: float) -> list[Event]:
    """What a profiler has recorded, in order of time; the event `mark` began at `mark_s`."""
    in_order = sorted(recorded, key=lambda row: (row.start_ns, -row.duration_ns))
    marked_ns = next((row.start_ns for row in in_order if row.name == mark), 0)
    found = []
    open_on = {}  # thread -> events that have begun and not ended, outermost first
    for row in in_order:
        start_s = mark_s + (row.start_ns - marked_ns) / 1e9
        event = Event(row.name, start_s, start_s + row.duration_ns / 1e9, row.thread, row.numel)
        found.append(event)
        if not row.nested:
            continue
        around = open_on.setdefault(row.thread, [])
        while around and around[-1].end_s < event.end_s:
            around.pop()
        if around:
            event.above = (*around[-1].above, around[-1].name)
        around.append(event)
    return found


def give_times(calls: list[dict], work: list[Event], backwards: list[Event]) -> None:
    """Find for each call what gloo ran for it: the first of that kind and size that began after the call.
    None found: its time stays unknown.
    """
    left = sorted(work, key=lambda event: event.start_s)
    for call in calls:
        runs = [
            event
            for event in left
            if event.name == call["_work"]
            and event.numel in call["_numels"]
            and event.start_s > call["start_s"] - _CLOCKS_AGREE_S
        ][: call["_runs"]]
        if len(runs) < call["_runs"]:
            continue
        for event in runs:
            left.remove(event)
        end_s = max(event.end_s for event in runs)
        if call["_for_ddp"]:
            # DDP waits on a future. gloo's thread wakes it before it notes the end, on a busy machine long
            # before; backward returns in between.
            end_s = min([end_s, *(b.end_s for b in backwards if b.start_s <= call["start_s"] <= b.end_s)])
        call["start_s"] = min(event.start_s for event in runs)
        call["seconds"] = max(end_s - call["start_s"], 0.0)


def spans(events: list[Event]) -> list[dict]:
    """What `measure.span` has named, as rows of a timeline."""
    named = [
        (event, *event.name.removeprefix(SPAN).split(": ", 1))
        for event in events
        if event.name.startswith(SPAN)
    ]
    return [
        {"kind": kind, "name": name, "start_s": event.start_s, "seconds": event.end_s - event.start_s}
        for event, kind, name in named
    ]


def computing(events: list[Event], thread: int, calls: list[dict]) -> list[dict]:
    """Pieces in which the rank computed, by kind; neighbours of one kind are joined. Work inside a span
    belongs to the span.
    """
    pieces = []
    for event in events:
        if event.name.startswith(SPAN):  # parts what comes before it from what comes after
            pieces.append([event.start_s, event.end_s, "span"])
        if not event.name.startswith(COMPUTES):
            continue
        # autograd works on a GPU from a thread of its own
        by_autograd = any(name.startswith(AUTOGRAD) for name in event.above)
        if any(name.startswith((COMPUTES, COLLECTIVE, SPAN)) for name in event.above) or not (
            by_autograd or event.thread == thread
        ):
            continue
        if any(name.startswith(OPTIMIZER) for name in event.above):
            kind = "optimizer"
        elif by_autograd or BACKWARD in event.above:
            kind = "backward"
        else:
            kind = "forward"
        pieces.append([event.start_s, event.end_s, kind])
    _after_backward(
        pieces, [event.start_s for event in events if event.name.startswith(OPTIMIZER + "step")], calls
    )
    joined: list[list] = []
    for begin, end, kind in sorted(pieces):
        if joined and joined[-1][2] == kind and begin - joined[-1][1] < _GAP_S:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end, kind])
    return [
        {"kind": kind, "name": kind, "start_s": begin, "seconds": end - begin}
        for begin, end, kind in joined
        if kind != "span"
    ]


def _after_backward(pieces: list[list], optimizer_s: list[float], calls: list[dict]) -> None:
    """What is computed after the step's last backward is no forward: it is work on gradients, and from the
    optimizer's step on the update. Where the learner updates by hand, from the end of the last collective on.
    """
    last_s = max((end for _, end, kind in pieces if kind == "backward"), default=None)
    if last_s is None:
        return
    update_s = min((start for start in optimizer_s if start >= last_s), default=None)
    if update_s is None:
        update_s = max((call["start_s"] + (call["seconds"] or 0.0) for call in calls), default=last_s)
    for piece in pieces:
        if piece[2] == "forward" and piece[0] >= last_s:
            piece[2] = "optimizer" if piece[0] >= update_s else "backward"
