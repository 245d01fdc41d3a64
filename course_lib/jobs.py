"""Run a function as real ranks: once (`run`), or over several numbers of ranks (`sweep`)."""

from collections.abc import Callable
from dataclasses import fields

from course_lib.arguments import whole
from course_lib.hosts import Linked
from course_lib.ranks.errors import RankWarning, told_in_one_line
from course_lib.ranks.one_job import carry_out
from course_lib.ranks.options import Options
from course_lib.ranks.outside import explain_outside
from course_lib.ranks.progress import Progress
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
    on: Linked | None = None,
    **kwargs,
) -> Job:
    """Run `fn(*args, **kwargs)` once on every rank, as real processes, and return one Job.

    The default process group is initialised before `fn` starts, and the rank's device is set, so `fn` is
    plain PyTorch; it may be defined in a notebook cell and use other names of the notebook. The first lines
    that each rank prints are shown, in JupyterLab and in a terminal; all of them are in `job.output`.

    Args:
        fn: the function that every rank runs.
        ranks: number of processes.
        backend: "auto" takes NCCL where there is one GPU per rank, otherwise gloo (ranks share the GPUs, or
            run on the CPU).
        timeout: seconds after which the job is stopped and explained.
        threads: compute threads per rank.
        label: name of the job in figures and errors; the function's name if None.
        on: hosts.Linked(2, mbit=200), say: several hosts on this machine that a real, limited link joins.
            Each gets as many ranks, and their backend is gloo. None: this machine as it is.

    Returns:
        A Job: results and output per rank, and the ledger that `measure.step` has filled.

    Errors:
        RankError if a rank raises, dies, is not done in time, or if the ranks wait for each other.
        RankInterrupt, a KeyboardInterrupt, if it is interrupted. TypeError or ValueError for arguments that
        cannot work; RuntimeError for hosts that this machine cannot make. OSError if there is no room for
        temporary files.
    """
    with told_in_one_line():
        options = Options.checked(fn, ranks, backend, timeout, threads, label, on)
    explain_outside()
    with told_in_one_line(), Progress(_title(options)) as progress:
        job = carry_out(fn, args, kwargs, options, progress.update)
        progress.over(job.output, "job.output[{rank}]")
    return job


def run_quietly(
    fn: Callable, *args, ranks: int = 2, timeout: float = 60.0, label: str | None = None, **kwargs
) -> Job:
    """`run` without its line of text, for checks. Only where it waits for the fork server, which takes
    seconds once per kernel, a sign is shown until the job is over.
    """
    options = Options.checked(fn, ranks, timeout=timeout, label=label)
    with Progress(_title(options), stays=False) as progress:

        def show(text, fraction, outputs):
            if fraction is None or progress.drawn:
                progress.update(text, fraction)

        return carry_out(fn, args, kwargs, options, show, of_learner=False)


def _title(options: Options) -> str:
    return f"{options.label} on {options.ranks} rank{'' if options.ranks == 1 else 's'}"


def sweep(fn: Callable, *args, ranks: tuple[int, ...] = (1, 2, 4), repeats: int = 5, **kwargs) -> Sweep:
    """Run `fn` on several numbers of ranks, `repeats` times each, interleaved (1, 2, 4, 1, 2, 4, ...), and
    keep every job.

    On a shared machine the load changes from minute to minute; interleaved, it hits all numbers of ranks
    alike.

    Args:
        ranks: the numbers of ranks to compare.
        repeats: how often each is run.
        kwargs: `run`'s own options (backend, timeout, threads, label, on) and the function's keyword
            arguments.
    """
    with told_in_one_line():
        if not isinstance(ranks, (tuple, list, range)):
            raise TypeError(
                f"ranks={ranks!r}: sweep takes several numbers of ranks, for example ranks=(1, 2, 4)."
            )
        if not ranks:
            raise ValueError("sweep needs at least one number of ranks, for example ranks=(1, 2, 4).")
        whole("repeats", repeats)
        taken = {field.name: kwargs.pop(field.name) for field in fields(Options) if field.name in kwargs}
        plan = []
        for count in ranks:  # no comprehension: a warning counts the frames up to the learner's line
            plan.append(Options.checked(fn, count, **taken))
    label, total = plan[0].label, repeats * len(plan)
    jobs: list[Job] = []
    with (
        told_in_one_line(),
        Progress(f"{label} on {', '.join(map(str, ranks))} ranks, {repeats} times each") as progress,
    ):
        for options in plan * repeats:
            done = len(jobs)

            def show(text, fraction, outputs, done=done, count=options.ranks):
                progress.update(
                    text if fraction is None else f"job {done + 1} of {total} (ranks={count})", done / total
                )

            jobs.append(carry_out(fn, args, kwargs, options, show))
        progress.over(jobs[-1].output, "sweep.jobs[-1].output[{rank}]", f"the last of {total} jobs printed:")
    return Sweep(label, tuple(jobs), repeats)
