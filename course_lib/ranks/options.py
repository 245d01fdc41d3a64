"""How a job runs, in one piece: checked once, then handed on."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_lib.arguments import instance, number, one_of, whole
from course_lib.hosts import Linked, Slurm
from course_lib.ranks import budget, devices, worker
from course_lib.ranks.errors import RankWarning
from course_lib.ranks.server import MAX_RANKS
from course_lib.roles import functions_of, label_of

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What `run` takes beside a function and the function's own arguments.

    Attributes:
        ranks: number of processes.
        backend: "auto", "gloo" or "nccl".
        timeout: seconds after which the job is stopped; None for 60, without the time that its ranks wait for
            a free core.
        threads: compute threads per rank.
        label: name of the job in figures and errors.
        restarts: how often at most all ranks start again after a failure.
        min_ranks: on how few ranks they may; None: on all.
        on: the hosts that they run on; this machine as it is if None.
    """

    ranks: int
    backend: str
    timeout: float | None
    threads: int
    label: str
    restarts: int = 0
    min_ranks: int | None = None
    on: Linked | Slurm | None = None

    @classmethod
    def checked(
        cls,
        fn: Callable | Sequence[Callable],
        ranks: int | None = None,
        backend: str = "auto",
        timeout: float | None = None,
        threads: int = 1,
        label: str | None = None,
        restarts: int = 0,
        min_ranks: int | None = None,
        on: Linked | Slurm | None = None,
    ) -> "Options":
        """Make the options of a job of `fn`, once it is sure that it can run here; without a label it gets
        the function's name. A RankWarning points to the line that called `run` where the job will be slow.

        Args:
            ranks: 2 if None, or as many as there are functions.

        Errors: TypeError, ValueError or RuntimeError for what cannot work, each in one sentence.
        """
        if worker.in_rank():
            raise RuntimeError(
                "run was called by a rank; ranks cannot start ranks. Call run from the notebook."
            )
        several, functions = isinstance(fn, (list, tuple)), functions_of(fn)
        for rank, each in enumerate(functions):
            if not callable(each):
                raise TypeError(
                    f"run needs a function for each rank, and got {type(each).__name__} for rank {rank}:"
                    " run([serve, work, work]), not run([serve(), work(), work()])."
                    if several
                    else f"run needs a function to run on every rank, and got {type(each).__name__}:"
                    " run(train, ranks=2), not run(train(), ranks=2)."
                )
        if isinstance(ranks, (tuple, list, range)):
            raise ValueError(f"ranks={ranks!r}: run takes one number of ranks; use sweep for several.")
        if ranks is None:
            ranks = len(functions) if several else 2
        if not functions:
            raise ValueError("run got an empty list: it needs a function for each rank: run([serve, work]).")
        if several and ranks != len(functions):
            raise ValueError(
                f"ranks={ranks!r}: the list has {len(functions)} functions, one for each rank. Leave"
                " ranks out."
            )
        whole("ranks", ranks)
        if ranks > MAX_RANKS:
            raise ValueError(f"ranks={ranks}: this library starts at most {MAX_RANKS} ranks on one machine.")
        whole("threads", threads)
        one_of("backend", backend, devices.BACKENDS)
        if timeout is not None:
            number("timeout", timeout, above=True)
        if label is not None and not isinstance(label, str):
            raise TypeError(f"label={label!r}: it must be text.")
        whole("restarts", restarts, least=0)
        if min_ranks is not None:
            whole("min_ranks", min_ranks, most=ranks)
            if not restarts:
                raise ValueError(
                    f"min_ranks={min_ranks}: it is on how few ranks a job may start again. Give restarts=1 or"
                    " more, too."
                )
            if several:
                raise ValueError(
                    f"min_ranks={min_ranks}: each rank has a function of its own, so none can be left out."
                    " Leave min_ranks out."
                )
        if on is not None:
            if not isinstance(on, Slurm):
                instance("on", on, Linked, "as in on=hosts.Linked(2, mbit=200)")
            on.checked(ranks, backend)
            if restarts and not on.here:
                raise ValueError(
                    f"restarts={restarts}: a job on Slurm does not start again by itself, as its nodes may"
                    " be lost with it; leave restarts out, save checkpoints, and run it again."
                )
        here = on is None or on.here
        warning = budget.look(ranks, threads, budget.Machine.here()) if here else None
        if warning:
            warnings.warn(warning, RankWarning, stacklevel=3)
        return cls(ranks, backend, timeout, threads, label or label_of(fn), restarts, min_ranks, on)
