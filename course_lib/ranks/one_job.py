"""One job from the call to its Job: send the function, follow the ranks to the end, gather or explain."""

import contextlib
import errno
import inspect
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields

from course_lib.ranks import (
    budget,
    devices,
    follow,
    fork_server,
    imports,
    lines,
    output,
    sending,
    settings,
    silent,
)
from course_lib.ranks.attempts import Attempts
from course_lib.ranks.errors import RankError, RankInterrupt, RankWarning, explain, remember
from course_lib.ranks.gathering import gather
from course_lib.ranks.launch import Group
from course_lib.ranks.options import Options
from course_lib.ranks.panel import Cancelled
from course_lib.record import Job
from course_lib.roles import functions_of, roles_of

__all__ = ["carry_out"]

TIMEOUT_S = 60.0


def carry_out(
    fn: Callable | Sequence[Callable],
    args: tuple,
    kwargs: dict,
    options: Options,
    show: Callable,
    again: Callable = lambda told, outputs: None,
    of_learner: bool = True,
) -> Job:
    """Start the ranks, follow them to the end, and gather what they have sent.

    Args:
        fn: what all ranks run, or a list with a function for each.
        options: as `Options.checked` has made them.
        show: called again and again with what the job is doing, in words; and once its ranks run with two
            functions, for what each has printed so far, and for how far each is. It may raise
            KeyboardInterrupt, to end the job.
        again: called before the ranks start again, with why, in words, and what each had printed.
        of_learner: the function is the learner's own, and no check's: only then is long output saved whole,
            and a warning given of settings that the ranks lack.

    Where nobody has said a timeout, or in a check, seconds in which ranks wait for a free core do not count.
    """
    job = _OneJob(fn, args, kwargs, options, of_learner)
    try:
        job.start(show)
        while (failure := job.attempt(show)) is not None:
            job.start_again(failure, again)
        for told in job.end(show):
            warnings.warn(told, RankWarning, stacklevel=3)
    except KeyboardInterrupt as error:
        if not job.started or isinstance(error, RankInterrupt):
            raise
        raise job.interrupted(isinstance(error, Cancelled)) from None
    finally:
        job.close()
    return job.gathered()


class _OneJob:
    """A job under way: its ranks, its attempts, and the time that is left for it."""

    def __init__(self, fn, args, kwargs, options: Options, of_learner: bool):
        on = options.on
        self._options, self._of_learner = options, of_learner
        self.label, self._roles = options.label, roles_of(fn)
        self._timeout = TIMEOUT_S if options.timeout is None else options.timeout
        self._patience = follow.PATIENCE if options.timeout is None or not of_learner else 0
        if on is not None and not on.here:
            self._patience = 0  # who waits for a core there is not known here
        self._placement = (
            devices.place(options.ranks, options.backend)
            if on is None
            else on.placement(options.ranks, options.backend)
        )
        call = _pack(fn, args, kwargs, self.label)
        self._content = {
            "call": call,
            "cwd": _working_directory(self.label),
            "imports": imports.of_the_notebook(),
        }
        self._request: dict = {
            "ranks": options.ranks,
            "backend": self._placement.backend,
            "devices": self._placement.devices,
            "threads": options.threads,
            "timeout": (1 + self._patience) * self._timeout,
            "attempt": 0,
            "restarts": options.restarts,
            "interface": devices.loopback(),
            "plan": None,
            "hosts": [],
        }
        if on is not None:
            self._request |= on.request(options.ranks, options.backend, self._timeout, self.label)
        self._hosts_at_first = len(set(self._request["hosts"]))
        # the learner may call this while an error of their own is being handled
        self._outside = sys.exc_info()[1]
        self.started = False

    def start(self, show) -> None:
        """Start the ranks of the first attempt. Errors: OSError if this machine has no room for them."""
        try:
            if not self._request.get("slurm"):
                _wait_for_server(self.label, show)
            self._begin, self._attempts = time.monotonic(), Attempts(self._options)
            with _no_second_interrupt(self._outside):
                self.group = self._new_group()
                self.started = True
        except OSError as error:
            raise budget.refusal(error, self._options.ranks, self.label) from None
        self._deadline = time.monotonic() + self._timeout

    def _new_group(self) -> Group:
        if not self._request.get("slurm"):
            return Group(self._request, self._content, self._roles)
        from course_lib.ranks.slurm.group import SlurmGroup  # here: only for who has a cluster

        return SlurmGroup(self._request, self._content, self._roles)

    def attempt(self, show) -> dict | None:
        """Follow the ranks until all have returned (None), or the attempt has failed: why, as `explain` takes
        it.
        """
        return follow.to_their_end(self.group, self._left, lambda: self._show(show))

    def start_again(self, stopped: dict, again) -> None:
        """After a failure, start the ranks of the next attempt. Errors: what to say if there is none."""
        group = self.group
        if group.failed and self._request.get("slurm"):
            raise RuntimeError(f"Slurm did not take {self.label}: {str(group.failed).rstrip('.')}.")
        if group.failed:
            raise budget.refusal(group.failed, self._options.ranks, self.label)
        printed = self._kept()
        failure = explain(group.states, printed, self.label, self._timeout, **stopped)
        failure = _name_a_limit(failure, group.states, printed)
        if not isinstance(failure, RankError):
            raise failure
        over = "timed_out" in stopped
        if over and self._starved():
            raise RuntimeError(
                f"{self.label} was stopped: its ranks have waited for a free core for more than"
                f" {self._patience * self._timeout:g} s, so this machine is too busy for it"
            )
        back = self._attempts.who_comes_back(failure, group.states, printed, over, group.supervised)
        if not back:
            raise remember(self._attempts.tell(failure))
        again(str(self._attempts.past[-1]), printed)
        if len(back) < len(group.states):
            self._placement = devices.place(len(back), self._placement.backend)
            hosts = self._request["hosts"]
            self._request |= {
                "ranks": len(back),
                "devices": self._placement.devices,
                "hosts": [hosts[rank] for rank in back] if hosts else [],
            }
        self._request["attempt"] += 1
        try:
            with _no_second_interrupt(self._outside):
                group.start_again(self._request)
        except OSError as error:
            raise budget.refusal(error, len(back), self.label) from None

    def end(self, show) -> list[str]:
        """All ranks have returned: let them end. Returns warnings."""
        states = self.group.states
        self._seconds = time.monotonic() - self._begin
        unfinished, flood = follow.let_finish(self.group, self._left, lambda: self._show(show))
        self._output = self._kept()
        if self._options.restarts:
            self._attempts.keep(states, self._output)
        told = silent.mistakes(states, unfinished, flood, self._timeout)
        return told + (settings.lost(states[0].records["settings"]) if self._of_learner else [])

    def interrupted(self, cancelled: bool) -> BaseException:
        """What is to be said when the learner has stopped the job; `cancelled`: with the button."""
        with _no_second_interrupt(self._outside):
            self.group.ask_and_wait()
            printed = self._kept()
        stop = explain(self.group.states, printed, self.label, self._timeout, interrupted=True)
        if cancelled and isinstance(stop, RankInterrupt):
            stop = stop.cancelled()
        if waits := self.group.waits:
            stop = stop.after(f"It did not run yet: it {waits}.", ())
        return remember(self._attempts.tell(stop))

    def close(self) -> None:
        """Leave no process behind."""
        if self.started:
            with _no_second_interrupt(self._outside):
                self.group.close()

    def gathered(self) -> Job:
        """The Job of ranks that have ended well."""
        states, on, placement = self.group.states, self._options.on, self._placement
        left = len(set(self._request["hosts"]))
        return Job(
            self.label,
            len(states),
            placement.backend,
            "cuda" if placement.devices[0] != "cpu" else "cpu",
            placement.hardware
            if on is None
            else f"{left} of " * (left < self._hosts_at_first)
            + f"{on.in_words()}; {self.group.hardware or placement.hardware}",
            self._seconds,
            [_unpack(state.result, state.rank) for state in states],
            self._output,
            *gather(states, {} if on is None else on.absent(), on is None or on.here),
            self._roles,
            self._attempts.past if self._options.restarts else [],
        )

    def _starved(self) -> bool:
        """Whether a check's ranks have used up all patience: then its time says nothing of an answer."""
        if self._of_learner or not self._patience:
            return False
        return follow.starved(self.group.states, self._timeout) >= self._patience * self._timeout

    def _left(self) -> float:
        if self.group.waits:
            self._begin = time.monotonic()
            self._deadline = self._begin + self._timeout
        seconds = self._deadline - time.monotonic()
        if seconds > 0 or not self._patience:
            return seconds
        return seconds + follow.starved(self.group.states, self._timeout)

    def _show(self, show) -> None:
        if waits := self.group.waits:
            show(waits)
            return
        used = self._timeout - self._deadline + time.monotonic()
        show(
            f"{self._attempts.doing()}{used:.0f} s (timeout {self._timeout:g} s)",
            lambda: self._printed(False, output.LIVE_BYTES),
            lambda: lines.of_ranks(self.group.states),
        )

    def _kept(self) -> list[str]:
        return self._printed(self._of_learner, output.KEPT_BYTES)

    def _printed(self, save: bool, limit_bytes: int) -> list[str]:
        paths = [self.group.output_of(state.rank) for state in self.group.states]
        return [output.read(path, save, limit_bytes) for path in paths]


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
    if any(map(fork_server.NO_PROCESS.search, starting)):
        return budget.refusal(OSError(errno.EAGAIN, ""), len(states), error.label)
    if isinstance(error, RankError) and any(
        state.error and fork_server.NO_PROCESS.search(state.error["message"]) for state in states
    ):
        return error.after(budget.limit_in_words(), error.attempts)
    return error


def _wait_for_server(label: str, show) -> None:
    """The first job of a kernel waits for seconds until torch is imported: say so, and let an interrupt be
    short.
    """
    try:
        while not fork_server.server_is_ready(0.1):
            show("preparing to start ranks, once per kernel")
    except KeyboardInterrupt as error:
        was = "cancelled" if isinstance(error, Cancelled) else "interrupted"
        raise RankInterrupt(
            f"{label} was {was} while the fork server was starting. It goes on starting: the next run"
            " finds it ready.",
            [],
            label,
        ) from None


def _pack(fn, args, kwargs, label: str) -> bytes:
    """A pickle of the call, once it is sure that the function takes these arguments."""
    for each, role in zip(functions_of(fn), roles_of(fn) or [label]):
        with contextlib.suppress(ValueError):  # of some functions in C, Python does not know the arguments
            signature = inspect.signature(each, follow_wrapped=False)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                taken = [option.name for option in fields(Options) if option.name in signature.parameters]
                raise TypeError(
                    f"{role} cannot be called with these arguments: {error}."
                    + f" (run takes {', '.join(taken)} for itself: give the function's own another name.)"
                    * bool(taken)
                ) from None
    return sending.pack_call(fn, args, kwargs, label)


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


def _unpack(result: bytes, rank: int):
    try:
        return pickle.loads(result)
    except Exception as error:  # such as a DistributedDataParallel: there is no process group here
        raise TypeError(
            f"What rank {rank} returned cannot be opened in the notebook ({type(error).__name__}: {error}). "
            "Return numbers, text, lists, dicts or plain tensors."
        ) from None
