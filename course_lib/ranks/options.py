"""How a job runs, in one piece: checked once, then handed on."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from course_lib.arguments import instance, number, one_of, whole
from course_lib.hosts import Linked
from course_lib.ranks import budget, devices, worker
from course_lib.ranks.errors import RankWarning
from course_lib.ranks.server import MAX_RANKS

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What `run` takes beside a function and the function's own arguments.

    Attributes:
        ranks: number of processes.
        backend: "auto", "gloo" or "nccl".
        timeout: seconds after which the job is stopped.
        threads: compute threads per rank.
        label: name of the job in figures and errors.
        on: the hosts that they run on; this machine as it is if None.
    """

    ranks: int
    backend: str
    timeout: float
    threads: int
    label: str
    on: Linked | None = None

    @classmethod
    def checked(
        cls,
        fn: Callable,
        ranks: int = 2,
        backend: str = "auto",
        timeout: float = 60.0,
        threads: int = 1,
        label: str | None = None,
        on: Linked | None = None,
    ) -> "Options":
        """Make the options of a job of `fn`, once it is sure that it can run here; without a label it gets
        the function's name. A RankWarning points to the line that called `run` where the job will be slow.

        Errors: TypeError, ValueError or RuntimeError for what cannot work, each in one sentence.
        """
        if worker.in_rank():
            raise RuntimeError(
                "run was called by a rank; ranks cannot start ranks. Call run from the notebook."
            )
        if not callable(fn):
            raise TypeError(
                f"run needs a function to run on every rank, and got {type(fn).__name__}:"
                " run(train, ranks=2), not run(train(), ranks=2)."
            )
        if isinstance(ranks, (tuple, list, range)):
            raise ValueError(f"ranks={ranks!r}: run takes one number of ranks; use sweep for several.")
        whole("ranks", ranks)
        if ranks > MAX_RANKS:
            raise ValueError(f"ranks={ranks}: this library starts at most {MAX_RANKS} ranks on one machine.")
        whole("threads", threads)
        one_of("backend", backend, devices.BACKENDS)
        number("timeout", timeout, above=True)
        if label is not None and not isinstance(label, str):
            raise TypeError(f"label={label!r}: it must be text.")
        if on is not None:
            instance("on", on, Linked, "as in on=hosts.Linked(2, mbit=200)").checked(ranks, backend)
        warning = budget.look(ranks, threads, budget.Machine.here())
        if warning:
            warnings.warn(warning, RankWarning, stacklevel=3)
        if not label:
            label = getattr(fn, "__name__", type(fn).__name__)
        return cls(ranks, backend, timeout, threads, label, on)
