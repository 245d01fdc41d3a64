"""Run a function as real ranks: once (`run`), or over several numbers of ranks (`sweep`)."""

from collections.abc import Callable, Sequence
from dataclasses import fields

from course_lib.arguments import whole
from course_lib.frontend import is_seen
from course_lib.hosts import Linked, Slurm
from course_lib.ranks.errors import RankWarning, told_in_one_line
from course_lib.ranks.one_job import carry_out
from course_lib.ranks.options import Options
from course_lib.ranks.outside import explain_outside
from course_lib.ranks.progress import Progress
from course_lib.record import Job, Sweep
from course_lib.record.attempts import lost_in_words
from course_lib.roles import roles_of

__all__ = ["run", "sweep", "RankWarning"]


def run(
    fn: Callable | Sequence[Callable],
    *args,
    ranks: int | None = None,
    backend: str = "auto",
    timeout: float | None = None,
    threads: int = 1,
    label: str | None = None,
    restarts: int = 0,
    min_ranks: int | None = None,
    on: Linked | Slurm | None = None,
    **kwargs,
) -> Job:
    """Run `fn(*args, **kwargs)` once on every rank, as real processes, and return one Job.

    The default process group is initialised before `fn` starts, and the rank's device is set, so `fn` is
    plain PyTorch; it may be defined in a notebook cell and use other names of the notebook. While it runs,
    JupyterLab shows how far each rank is (`measure.step` tells), and a button that cancels the job; a
    terminal shows it in one line. The first lines that each rank prints are shown in both; all of them are in
    `job.output`.

    Args:
        fn: the function that every rank runs; or a list of functions, one for each rank, which all get the
            same arguments: run([serve, work, work]). Then errors and figures name ranks with their function.
        ranks: number of processes. None: 2, or as many as there are functions.
        backend: "auto" takes NCCL where there is one GPU per rank, otherwise gloo (ranks share the GPUs, or
            run on the CPU).
        timeout: seconds after which the job is stopped and explained. None for 60; where the machine is busy,
            those in which its ranks wait for a free core do not count then (at most 240).
        threads: compute threads per rank.
        label: name of the job in figures and errors; the function's name if None ("serve and work").
        restarts: how often at most, after a failure, all ranks end and start again; the environment variable
            TORCHELASTIC_RESTART_COUNT tells them how often they have, as under torchrun --max-restarts. What
            they did not save is done again. `timeout` is for all attempts together: a job whose time is over
            does not start again, nor does one that is interrupted.
        min_ranks: with it, a rank that was killed from outside (SIGKILL, SIGTERM) does not come back, and the
            others start again without it while there are so many; a rank that fails by itself comes back. As
            torchrun --nnodes=MIN:MAX does with a machine that is lost. None: all come back.
        on: hosts.Linked(2, mbit=200), say: several hosts on this machine that a real, limited link joins.
            Each gets as many ranks, and their backend is gloo. hosts.Slurm(nodes=2): nodes of a cluster; then
            `timeout` counts from the ranks' start, and a queue takes the time that it takes. None: this
            machine as it is.

    Returns:
        A Job: results and output per rank, and the ledger that `measure.step` has filled.

    Errors:
        RankError if a rank raises, dies, is not done in time, or if the ranks wait for each other (in the
        last attempt of a job with restarts). RankInterrupt, a KeyboardInterrupt, if it is interrupted or
        cancelled. TypeError or ValueError for arguments that cannot work; RuntimeError for hosts that this
        machine cannot make. OSError if there is no room for temporary files.
    """
    with told_in_one_line():
        options = Options.checked(fn, ranks, backend, timeout, threads, label, restarts, min_ranks, on)
    explain_outside()
    with told_in_one_line(), Progress(_title(options), roles=roles_of(fn)) as progress:
        job = carry_out(fn, args, kwargs, options, progress.update, progress.again)
        progress.over(job.output, "job.output[{rank}]", cost=lost_in_words(job.attempts))
    return job


def run_quietly(
    fn: Callable, *args, ranks: int = 2, timeout: float = 60.0, label: str | None = None, **kwargs
) -> Job:
    """`run` without its line of text, for checks. Where it takes seconds, a person sees how far it is until
    it is over; everybody does where it waits for the fork server, once per kernel.
    """
    options = Options.checked(fn, ranks, timeout=timeout, label=label)
    with Progress(_title(options), stays=False) as progress:

        def show(text, outputs=None, lines=None):
            if lines is None or progress.drawn or is_seen():
                progress.update(text, ranks=lines or tuple, at_once=lines is None)

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
        if isinstance(fn, (tuple, list)):
            raise TypeError(
                "sweep compares numbers of ranks, and a list of functions, one for each rank, has only one:"
                " give sweep one function, or run each list by itself."
            )
        if not isinstance(ranks, (tuple, list, range)):
            raise TypeError(
                f"ranks={ranks!r}: sweep takes several numbers of ranks, for example ranks=(1, 2, 4)."
            )
        if not ranks:
            raise ValueError("sweep needs at least one number of ranks, for example ranks=(1, 2, 4).")
        whole("repeats", repeats)
        taken = {field.name: kwargs.pop(field.name) for field in fields(Options) if field.name in kwargs}
        if {"restarts", "min_ranks"} & set(taken):
            raise ValueError(
                "sweep compares times, and those of a job that has started again say nothing: restarts and"
                " min_ranks are for run."
            )
        plan = []
        for count in ranks:  # no comprehension: a warning counts the frames up to the learner's line
            plan.append(Options.checked(fn, whole("ranks", count), **taken))
    label, total = plan[0].label, repeats * len(plan)
    jobs: list[Job] = []
    with (
        told_in_one_line(),
        Progress(f"{label} on {', '.join(map(str, ranks))} ranks, {repeats} times each") as progress,
    ):
        for options in plan * repeats:
            done = len(jobs)

            def show(text, outputs=None, lines=None, done=done, count=options.ranks):
                at = text if lines is None else f"job {done + 1} of {total} (ranks={count})"
                progress.update(at, ranks=lines or tuple, fraction=done / total)

            jobs.append(carry_out(fn, args, kwargs, options, show))
        progress.over(jobs[-1].output, "sweep.jobs[-1].output[{rank}]", f"the last of {total} jobs printed:")
    return Sweep(label, tuple(jobs), repeats)
