"""One job from the call to its Job: send the function, follow the ranks to the end, gather or explain."""

import contextlib
import errno
import inspect
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from course_lib.ranks import budget, devices, diagnose, folder, imports, places, sending, settings, threads
from course_lib.ranks.diagnose import ranks_in_words
from course_lib.ranks.errors import (
    RankError,
    RankInterrupt,
    RankWarning,
    ended_in_words,
    error_in_words,
    explain,
    frames_of_dump,
    remember,
)
from course_lib.ranks.launch import NO_PROCESS, Group, server_is_ready
from course_lib.ranks.network import INTERFACE
from course_lib.ranks.options import Options
from course_lib.record import Job
from course_lib.record.tables import COLUMNS

__all__ = ["carry_out"]

GRACE_S = 0.3  # after a first failure: the true cause may be the second to be heard
ASK_AFTER_S, ASK_AT_MOST_EVERY_S = 0.4, 5.0  # how often ranks without progress are asked where they are
PATIENCE = 4  # times its timeout: how long a check's job may wait for free cores
OUTPUT_LIMIT_BYTES = 100_000  # of each rank's output, what a Job keeps; longer output is saved whole
OUTPUT_LIVE_BYTES = 16_000  # of each rank's output, what is read again and again while the job runs
OUTPUT_MOST_BYTES = 200_000_000  # a rank that prints more is stopped, before it fills the disk


def carry_out(
    fn: Callable, args: tuple, kwargs: dict, options: Options, show: Callable, of_learner: bool = True
) -> Job:
    """Start the ranks, follow them to the end, and gather what they have sent.

    Args:
        options: as `Options.checked` has made them.
        show: called with what the job is doing, in words, how much of its time is over (0 to 1, or None), and
            a function that reads what each rank has printed so far.
        of_learner: the function is the learner's own, and no check's: only then is long output saved whole,
            and a warning given of settings that the ranks lack. A check's job has longer where the machine
            is busy: seconds in which its ranks have waited for a core do not count.
    """
    ranks, timeout, label = options.ranks, options.timeout, options.label
    on = options.on
    placement = devices.place(ranks, options.backend if on is None else "gloo")
    call = _pack(fn, args, kwargs, label)
    # the learner may call this while an error of their own is being handled
    outside = sys.exc_info()[1]
    content = {"call": call, "cwd": _working_directory(label), "imports": imports.of_the_notebook()}
    group = None
    try:
        try:
            _wait_for_server(label, show)
            begin = time.monotonic()
            with _no_second_interrupt(outside):
                group = Group(
                    {
                        "ranks": ranks,
                        "backend": placement.backend,
                        "devices": placement.devices,
                        "threads": options.threads,
                        "timeout": timeout if of_learner else (1 + PATIENCE) * timeout,
                        "interface": devices.loopback() if on is None else INTERFACE,
                        "linked": None if on is None else {"per_host": ranks // on.hosts, "plan": on.plan()},
                    },
                    content,
                )
        except OSError as error:
            raise budget.refusal(error, ranks, label) from None
        try:
            deadline = time.monotonic() + timeout

            def left() -> float:
                seconds = deadline - time.monotonic()
                more = not of_learner and seconds <= 0
                return seconds + _starved(group.states, timeout) if more else seconds

            def printed():
                return [
                    _read_output(group.output_of(rank), False, OUTPUT_LIVE_BYTES) for rank in range(ranks)
                ]

            def show_progress():
                show(*_progress(group.states, timeout - deadline + time.monotonic(), timeout), printed)

            stopped = _follow(group, left, show_progress)
            if group.failed:
                raise budget.refusal(group.failed, ranks, label)
            seconds = time.monotonic() - begin
            unfinished, flood = ([], "") if stopped is not None else _let_finish(group, left, show_progress)
            output = [_read_output(group.output_of(rank), of_learner) for rank in range(ranks)]
            if stopped is None:
                _warn_of_silent_mistakes(group.states, unfinished, flood, timeout)
                for told in settings.lost(group.states[0].records["settings"]) if of_learner else ():
                    warnings.warn(told, RankWarning, stacklevel=3)
            else:
                failure = explain(group.states, output, label, timeout, **stopped)
                raise remember(_name_a_limit(failure, group.states, output))
        except KeyboardInterrupt:
            with _no_second_interrupt(outside):
                group.ask_and_wait()
                output = [_read_output(group.output_of(rank), of_learner) for rank in range(ranks)]
            raise remember(explain(group.states, output, label, timeout, interrupted=True)) from None
    finally:
        if group:
            with _no_second_interrupt(outside):
                group.close()
    results = [_unpack(state.result, state.rank) for state in group.states]
    return Job(
        label,
        ranks,
        placement.backend,
        "cuda" if placement.devices[0] != "cpu" else "cpu",
        placement.hardware if on is None else f"{on.in_words()}; {placement.hardware}",
        seconds,
        results,
        output,
        *_gather(group.states, {} if on is None else on.absent()),
    )


def _working_directory(label: str) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{label} cannot start, because the notebook's working directory has been deleted. Change to one"
            " that exists (%cd)."
        ) from None


def _name_a_limit(error, states, output: list[str]):
    """The error of a job, or what should be said instead (or too) where the system has refused a process or a
    thread.
    """
    starting = [text for state, text in zip(states, output) if state.phase == "starting"] + [
        state.error["text"] for state in states if state.error and not state.start_bytes
    ]
    if any(map(NO_PROCESS.search, starting)):
        return budget.refusal(OSError(errno.EAGAIN, ""), len(states), error.label)
    if isinstance(error, RankError) and any(
        state.error and NO_PROCESS.search(state.error["message"]) for state in states
    ):
        return RankError(f"{error.headline} {budget.limit_in_words()}", error.reports, error.label)
    return error


def _wait_for_server(label: str, show) -> None:
    """The first job of a kernel waits for seconds until torch is imported: say so, and let an interrupt be
    short.
    """
    try:
        while not server_is_ready(0.1):
            show("starting the fork server, once per kernel", None, tuple)
    except KeyboardInterrupt:
        raise RankInterrupt(
            f"{label} was interrupted while the fork server was starting. It goes on starting: the next run"
            " finds it ready.",
            [],
            label,
        ) from None


def _pack(fn, args, kwargs, label: str) -> bytes:
    """A pickle of the call, once it is sure that the function takes these arguments."""
    with contextlib.suppress(ValueError):  # of some functions in C, Python does not know the arguments
        signature = inspect.signature(fn, follow_wrapped=False)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            taken = [option.name for option in fields(Options) if option.name in signature.parameters]
            raise TypeError(
                f"{label} cannot be called with these arguments: {error}."
                + f" (run takes {', '.join(taken)} for itself: give the function's own another name.)"
                * bool(taken)
            ) from None
    return sending.pack_call(fn, args, kwargs, label)


def _unpack(result: bytes, rank: int):
    try:
        return pickle.loads(result)
    except Exception as error:  # such as a DistributedDataParallel: there is no process group here
        raise TypeError(
            f"What rank {rank} returned cannot be opened in the notebook ({type(error).__name__}: {error}). "
            "Return numbers, text, lists, dicts or plain tensors."
        ) from None


@contextlib.contextmanager
def _no_second_interrupt(outside: BaseException | None):
    """Clean up undisturbed: an interrupt within is taken as one of the job that is being stopped anyhow, or
    comes when this is over.

    outside: the error that was being handled before the job began.
    """
    heard, stopping, before = [], sys.exc_info()[1] is not outside, signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return
    signal.signal(signal.SIGINT, lambda *told: heard.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard and not stopping:
        raise KeyboardInterrupt


def _let_finish(group: Group, left: Callable[[], float], show) -> tuple[list, str]:
    """All ranks have returned: let them finish their threads and end, as Python does.

    Returns those that have not ended at the deadline, or when one has printed too much, and what there is to
    say of the latter.
    """
    flood = ""
    group.let_go()
    while group.alive and (seconds := left()) > 0 and not flood:
        group.listen(min(0.1, seconds))
        show()
        flood = _flood(group)
    if unfinished := group.alive:
        group.dump(unfinished)
        group.kill()
    return unfinished, flood


def _flood(group: Group) -> str:
    """Which ranks that still run have printed more than the disk should hold, in a sentence; "" if none."""
    flooding = [state.rank for state in group.alive if _size(group.output_of(state.rank)) > OUTPUT_MOST_BYTES]
    if not flooding:
        return ""
    return (
        f"{ranks_in_words(flooding).capitalize()} {'has' if len(flooding) == 1 else 'have'} printed more than"
        f" {OUTPUT_MOST_BYTES / 1e6:g} MB: print less, or not in every step."
    )


def _warn_of_silent_mistakes(states, unfinished, flood: str, timeout: float) -> None:
    """Some mistakes raise no error anywhere: say so when the ranks' last collectives don't match, or a thread
    has died or was not done.
    """
    if unfinished:
        frames = [
            places.learners_frame(frames_of_dump(state.stack, all_threads=True)) for state in unfinished
        ]
        where = "; ".join(dict.fromkeys(places.place_in_words(frame) for frame in frames if frame))
        warnings.warn(
            f"{diagnose.ranks_in_words(state.rank for state in unfinished).capitalize()} had returned, and"
            " still worked "
            + ("when the job was stopped" if flood else f"after timeout={timeout:g} s")
            + f" ({where})" * bool(where)
            + "."
            + f" {flood}" * bool(flood)
            + " What was not done is lost.",
            RankWarning,
            stacklevel=4,
        )
    for state in states:
        if state.status:
            warnings.warn(
                f"Rank {state.rank} {ended_in_words(state)}: it still worked after its function had returned."
                " What was not done is lost.",
                RankWarning,
                stacklevel=4,
            )
    silent = diagnose.disagreement(states)
    suspicious = (
        f"{silent} No library noticed: don't trust the values."
        if silent
        else diagnose.never_joined(states) or diagnose.suspicious_sites(states)
    )
    for state in states:
        if state.thread_error and not suspicious:
            frame = places.learners_frame(state.thread_error["frames"])
            suspicious = (
                f"A thread of rank {state.rank} raised {error_in_words(state.thread_error)}"
                + (f" ({places.place_in_words(frame)})" if frame else "")
                + ", and ended; the rank went on without it."
            )
    if suspicious:
        warnings.warn(suspicious, RankWarning, stacklevel=4)


def _starved(states, timeout: float) -> float:
    """For how many seconds ranks have waited for a core, one after the other at worst; 0 for a job that has
    computed for all its time: it is slow by itself.
    """
    found = [threads.computed_and_waited(state.pid) for state in states if state.pid and state.status is None]
    if sum(computed for computed, _ in found) >= timeout:
        return 0.0
    return min(sum(waited for _, waited in found), PATIENCE * timeout)


def _follow(group: Group, left: Callable[[], float], show) -> dict | None:
    """Listen until every rank has finished (None), or the job has to be stopped (why, as `explain` takes it),
    because no time is `left`, say.

    Ranks that show no progress are asked where they are, now and then; a job that can never go on is not left
    to its deadline.
    """
    asked_at, pause, suspicion, seen = time.monotonic(), ASK_AFTER_S, None, None
    while True:
        group.listen(min(0.1, left()))
        show()
        if group.failed:
            return {}
        if all(state.phase == "finished" for state in group.states):
            return None
        if flood := _flood(group):
            group.ask_and_wait()
            return {"stuck": flood}
        if any(
            state.phase == "failed" or (state.status is not None and state.phase != "finished")
            for state in group.states
        ):
            end = time.monotonic() + GRACE_S
            while group.unfinished and time.monotonic() < end:
                group.listen(0.05)
            group.ask_and_wait()
            return {}
        now = time.monotonic()
        if left() <= 0:
            group.ask_and_wait()
            return {"timed_out": True}
        leaving = any(state.phase == "finished" for state in group.states)
        blocked = all(state.phase == "finished" or state.where.get("blocked") for state in group.states)
        if now - asked_at >= (ASK_AFTER_S if leaving or suspicion or blocked else pause):
            finding = diagnose.deadlock(group.states) or diagnose.standstill(group.states)
            if finding and finding == suspicion:  # twice the same: no message was merely on its way
                return {"stuck": finding}
            suspicion = finding
            progress = [state.step for state in group.states]
            if leaving or finding or progress == seen:
                group.ask()
            asked_at, seen, pause = now, progress, min(pause * 1.5, ASK_AT_MOST_EVERY_S)


def _progress(states, seconds: float, timeout: float) -> tuple[str, float]:
    steps = [state.step for state in states if state.step is not None]
    if steps:
        doing = f"step {min(steps)}"
    elif all(state.phase != "starting" for state in states):
        doing = "running"
    else:
        doing = "starting"
    finished = sum(state.phase == "finished" for state in states)
    done = f", {finished} of {len(states)} ranks finished" if finished else ""
    return f"{doing}{done}, {seconds:.0f} s (timeout {timeout:g} s)", min(seconds / timeout, 1.0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_output(path: Path, save: bool, limit_bytes: int = OUTPUT_LIMIT_BYTES) -> str:
    """What a rank has printed; of very long output the beginning and the end, and where the rest is: nowhere,
    if it is too much to be kept, or if nobody asks to `save` it.
    """
    size = _size(path)
    if not size:
        return ""
    with open(path, "rb") as file:
        if size <= limit_bytes:
            return file.read().decode(errors="replace")
        half = limit_bytes // 2
        head = file.read(half)
        file.seek(-half, os.SEEK_END)
        tail = file.read()
    whole = ""
    # else the next job would find no room
    if save and size <= OUTPUT_MOST_BYTES and shutil.disk_usage(path.parent).free > size:
        with contextlib.suppress(OSError):  # the disk is full after all: the job is not lost for that
            handle, saved = tempfile.mkstemp(prefix=f"course_lib-output-{path.stem}-", suffix=".txt")
            os.close(handle)
            shutil.move(path, saved)
            whole = (
                f"; the whole output, {size / 1e6:.1f} MB, is in {saved} for {folder.KEPT_S / 3600:g} hours"
            )
    return (
        f"{head.decode(errors='replace')}\n... {size - 2 * half:,} bytes left out{whole}"
        f" ...\n{tail.decode(errors='replace')}"
    )


def _gather(states, absent: dict[str, str]) -> tuple[dict, dict]:
    """One ledger from the ranks' records: absent layers (those that are given, and more), and rows with their
    rank, times counted from the first rank's traced step.
    """
    begins = [state.records["traced_at"] for state in states if state.records.get("traced_at") is not None]
    zero = min(begins, default=0.0)
    records: dict[str, list] = {name: [] for name in COLUMNS}
    for state in states:
        absent |= state.records["absent"]
        for name, rows in records.items():
            for row in state.records[name]:
                row = {"rank": state.rank, **row} if "rank" in COLUMNS[name] else dict(row)
                if "start_s" in row:
                    row["start_s"] -= zero
                rows.append(row)
    for name in ("seconds", "threads"):  # of the function, one for each rank
        records[name] = [state.records[name] for state in states]
    return absent, records
