"""Run a function as real ranks: once (`run`), or over several numbers of ranks (`sweep`)."""

import warnings
from collections.abc import Callable

from course_lib.arguments import number, one_of, whole
from course_lib.ranks import budget, devices, worker
from course_lib.ranks.errors import RankWarning, told_in_one_line
from course_lib.ranks.one_job import carry_out
from course_lib.ranks.progress import Progress
from course_lib.ranks.server import MAX_RANKS
from course_lib.record import Job, Sweep

__all__ = ["run", "sweep", "RankWarning"]


def run(
    fn: Callable,
    *args,
    ranks: int = 2,
    backend: str = "auto",
    timeout: float = 60.0,
    threads: int = 1,
    label: str | None = None,
    **kwargs,
) -> Job:
    """Run `fn(*args, **kwargs)` once on every rank, as real processes, and return one Job.

    The default process group is initialised before `fn` starts, and the rank's device is set, so `fn` is
    plain PyTorch; it may be defined in a notebook cell and use other names of the notebook.

    Args:
        fn: the function that every rank runs.
        ranks: number of processes.
        backend: "auto" takes NCCL where there is one GPU per rank, otherwise gloo (ranks share the GPUs, or
            run on the CPU).
        timeout: seconds after which the job is stopped and explained.
        threads: compute threads per rank.
        label: name of the job in figures and errors; the function's name if None.

    Returns:
        A Job: results and output per rank, and the ledger that `measure.step` has filled.

    Errors:
        RankError if a rank raises, dies, is not done in time, or if the ranks wait for each other.
        RankInterrupt, a KeyboardInterrupt, if it is interrupted. TypeError or ValueError for arguments that
        cannot work. OSError if there is no room for temporary files.
    """
    with told_in_one_line():
        label = _check(fn, ranks, backend, timeout, threads, label)
    with told_in_one_line(), Progress(f"{label} on {ranks} rank{'' if ranks == 1 else 's'}") as progress:
        return carry_out(fn, args, kwargs, ranks, backend, timeout, threads, label, progress.update)


def run_quietly(fn: Callable, *args, ranks: int = 2, timeout: float = 60.0, **kwargs) -> Job:
    """`run` without its line of text, for checks."""
    label = _check(fn, ranks, "auto", timeout, 1, None)
    return carry_out(
        fn, args, kwargs, ranks, "auto", timeout, 1, label, lambda text, fraction: None, of_learner=False
    )


def sweep(fn: Callable, *args, ranks: tuple[int, ...] = (1, 2, 4), repeats: int = 5, **kwargs) -> Sweep:
    """Run `fn` on several numbers of ranks, `repeats` times each, interleaved (1, 2, 4, 1, 2, 4, ...), and
    keep every job.

    On a shared machine the load changes from minute to minute; interleaved, it hits all numbers of ranks
    alike.

    Args:
        ranks: the numbers of ranks to compare.
        repeats: how often each is run.
        kwargs: `run`'s own options (backend, timeout, threads, label) and the function's keyword arguments.
    """
    with told_in_one_line():
        if not isinstance(ranks, (tuple, list, range)):
            raise TypeError(
                f"ranks={ranks!r}: sweep takes several numbers of ranks, for example ranks=(1, 2, 4)."
            )
        if not ranks:
            raise ValueError("sweep needs at least one number of ranks, for example ranks=(1, 2, 4).")
        whole("repeats", repeats)
        options = {"backend": "auto", "timeout": 60.0, "threads": 1, "label": None}
        options |= {name: kwargs.pop(name) for name in list(options) if name in kwargs}
        for count in ranks:
            label = _check(
                fn, count, options["backend"], options["timeout"], options["threads"], options["label"]
            )
    jobs, total = [], repeats * len(ranks)
    with (
        told_in_one_line(),
        Progress(f"{label} on {', '.join(map(str, ranks))} ranks, {repeats} times each") as progress,
    ):
        for _ in range(repeats):
            for count in ranks:
                done = len(jobs)

                def show(text, fraction, done=done, count=count):
                    progress.update(
                        text if fraction is None else f"job {done + 1} of {total} (ranks={count})",
                        done / total,
                    )

                jobs.append(
                    carry_out(
                        fn,
                        args,
                        kwargs,
                        count,
                        options["backend"],
                        options["timeout"],
                        options["threads"],
                        label,
                        show,
                    )
                )
    return Sweep(label, tuple(jobs), repeats)


def _check(fn, ranks, backend, timeout, threads, label) -> str:
    """Refuse what cannot work, each in one sentence; returns the job's label."""
    if worker.in_rank():
        raise RuntimeError("run was called by a rank; ranks cannot start ranks. Call run from the notebook.")
    if not callable(fn):
        raise TypeError(
            f"run needs a function to run on every rank, and got {type(fn).__name__}: run(train, ranks=2),"
            " not run(train(), ranks=2)."
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
    warning = budget.look(ranks, threads, budget.Machine.here())
    if warning:
        warnings.warn(warning, RankWarning, stacklevel=3)
    return label or getattr(fn, "__name__", type(fn).__name__)
