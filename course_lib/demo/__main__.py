"""The main experiment without a browser: `make demo`, or `python -m course_lib.demo --ranks 2`.

Trains on the digits with every strategy, as real processes; prints one table and saves three pictures and all
the jobs.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pandas as pd
from matplotlib import pyplot as plt

from course_lib import plots, theory
from course_lib.datasets import digits
from course_lib.demo.strategies import (
    BASES,
    BATCH_SIZE,
    STRATEGIES,
    Strategy,
    all_reduce_seconds,
    train_digits,
)
from course_lib.jobs import run_quietly
from course_lib.ranks import devices
from course_lib.ranks.server import MAX_RANKS
from course_lib.record import Job, Sweep, calls, held, sent, step_seconds

__all__ = ["main"]

EPOCHS_FOR_SPEED = 5
LINK_BYTES = 2**24
# width, height; left, right (the legend), bottom, top, in inches
PANEL_IN, MARGINS_IN = (5.6, 3.2), (0.7, 2.0, 0.7, 0.7)
STATES = ("params", "grads", "optimizer_states")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"One MLP (for a cut sequence a transformer, for experts a mixture), {options.epochs} epochs of the"
        f" digits, {BATCH_SIZE} samples per batch over all ranks, the same seed for all.",
        flush=True,
    )
    runs, link = _train(options)
    shown = [ran for ran in runs if ran.ranks == options.ranks or ran.strategy in BASES]
    print(f"\n{_table(shown, link)}\n\n{_notes(shown, link, options)}\n\nSaved:", flush=True)
    for path in _save_pictures(runs, shown, options.out):
        print(f"  {path}")
    print(f"  {_save_jobs(runs, options.out / 'jobs')}  (each job, for course_lib.Job.load)")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"it must be a whole number of at least 1, not {text}")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="python -m course_lib.demo", description="Train the digits with every strategy and compare them."
    )
    parser.add_argument("--ranks", type=count, default=4, help="processes (default: 4)")
    parser.add_argument("--epochs", type=count, default=16, help="times through the digits (default: 16)")
    parser.add_argument(
        "--repeats",
        type=count,
        default=3,
        help=(
            "jobs per strategy and number of ranks; after the first, of at most "
            f"{EPOCHS_FOR_SPEED} epochs (default: 3)"
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        help="folder for pictures and jobs (default: demo_output)",
    )
    options = parser.parse_args(arguments)
    if options.ranks > MAX_RANKS:
        parser.error(f"argument --ranks: at most {MAX_RANKS} ranks run on one machine, not {options.ranks}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"argument --out: {options.out} is not a folder")
    return options


@dataclass(frozen=True)
class Ran:
    """One strategy on one number of ranks, with a job per repeat. All times are medians over the repeats."""

    strategy: Strategy
    ranks: int
    jobs: list[Job]

    @property
    def name(self) -> str:
        return f"{self.strategy.name} on {self.ranks} rank{'s' * (self.ranks > 1)}"

    @property
    def step_s(self) -> float:
        return median(step_seconds(job).median() for job in self.jobs)

    @property
    def calls(self) -> int:
        """Collectives, sends and receives of rank 0 in one step."""
        return int(calls(self.jobs[-1]).loc[0].sum())

    @property
    def sent_bytes(self) -> float:
        """By one rank in one step, the mean over ranks: as the operating system counted, or where it cannot,
        by the textbook.
        """
        return float(sent(self.jobs[-1]).mean())

    def held_bytes(self, *categories: str) -> int:
        """By the fullest rank."""
        return int(held(self.jobs[-1]).reindex(columns=categories, fill_value=0).sum(axis=1).max())

    @property
    def theory(self) -> tuple[list[float], list[dict[str, float]]]:
        """Bytes sent per step, and bytes held, rank by rank."""
        return self.strategy.sent(self.ranks, self.jobs[-1].backend == "gloo"), self.strategy.held(self.ranks)


def _train(options: argparse.Namespace) -> tuple[list[Ran], float]:
    """Run everything `repeats` times, one after the other, so that a busy minute of the machine slows all
    alike.

    Returns the runs and the bandwidth of the link, bytes per second (0 for one rank).
    """
    counts = sorted({max(1, options.ranks // 2), options.ranks} - {1}) or [1]
    runs = []
    for base in BASES:
        runs.append(Ran(base, 1, []))
        compared = [strategy for strategy in STRATEGIES if strategy.network is base.network]
        runs += [
            Ran(strategy, ranks, []) for strategy in compared for ranks in counts if strategy.fits(ranks)
        ]
    links, done = [], 0
    for repeat in range(options.repeats):
        # the first gives the accuracy, the others only speeds
        epochs = min(options.epochs, EPOCHS_FOR_SPEED) if repeat else options.epochs
        slowest_s = map(max, zip(*run_quietly(all_reduce_seconds, LINK_BYTES, ranks=options.ranks).results))
        links.append(theory.bandwidth("all_reduce", LINK_BYTES, median(slowest_s), options.ranks)[1])
        for ran in runs:
            job = run_quietly(train_digits, ran.strategy, epochs, BATCH_SIZE, ranks=ran.ranks, timeout=600.0)
            ran.jobs.append(replace(job, label=ran.strategy.name))
            done += 1
            print(f"[{done}/{options.repeats * len(runs)}] {ran.name}: {job.seconds:.1f} s", flush=True)
    return runs, median(links)


def _table(shown: list[Ran], link: float) -> str:
    """One line per strategy, columns aligned."""
    rows = {
        "": ("", "test", "samples", "batches", "calls", "sent per", "of the", "states", "activations"),
        "strategy": ("ranks", "accuracy", "/s", "/s", "/s", "step, rank", "link", "per rank", "per rank"),
    }
    for ran in shown:
        steps_per_s = 1 / ran.step_s
        rows[ran.strategy.name] = (
            str(ran.ranks),
            f"{ran.jobs[0].results[0]['accuracy']:.1%}",
            f"{steps_per_s * BATCH_SIZE:,.0f}",
            f"{steps_per_s:.1f}",
            f"{steps_per_s * ran.calls:.0f}",
            _megabytes(ran.sent_bytes) if ran.ranks > 1 else "-",
            f"{ran.sent_bytes * steps_per_s / link:.1%}" if ran.ranks > 1 else "-",
            _megabytes(ran.held_bytes(*STATES)),
            _megabytes(ran.held_bytes("activations")),
        )
    table = pd.DataFrame.from_dict(rows, orient="index")
    lines = table.to_string(header=False, formatters=[" {}".format] * table.shape[1]).splitlines()
    return "\n".join([*lines[:2], "-" * len(lines[0]), *lines[2:]])


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _notes(shown: list[Ran], link: float, options: argparse.Namespace) -> str:
    """What the columns mean, and what cannot be read from them."""
    job = shown[-1].jobs[-1]
    losses = [
        [ran.jobs[0].results[0]["loss"] for ran in shown if ran.strategy.network is base.network]
        for base in BASES
    ]
    by_whom = (
        "by the textbook algorithm (NCCL passes the system's counters)"
        if "wire bytes" in job.absent
        else "counted by the operating system"
    )
    notes = [
        f"Measured with {job.where}.",
        (
            f"Speeds: medians of {options.repeats} interleaved repeat{'s' * (options.repeats > 1)}; a step"
            " lasts until its slowest rank is done."
        ),
        (
            "Test loss after training: "
            + "; ".join(
                f"{network}{min(its):.4f} to {max(its):.4f}"
                for network, its in zip(("", "row by row ", "mixture "), losses)
            )
            + ". All of a network do the same mathematics, so only rounding differs."
        ),
        f"      One test image is {1 / len(digits('test')[1]):.1%} of the accuracy.",
    ]
    if options.ranks > 1:
        notes += [
            (
                "Calls: collectives, sends and receives of rank 0, as many per step as in the traced one. In"
                " that step alone torch's DDP, also under"
            ),
            "      ZeroRedundancyOptimizer, broadcasts twice to agree on its buckets.",
            f"Sent: bytes of one step, {by_whom}, mean over ranks.",
            (
                f"Link: {link / 1e9:.2f} GB/s, what each rank sends per second in an all_reduce of"
                f" {LINK_BYTES / 1e6:.1f} MB (its bus bandwidth);"
            ),
            "      'of the link' is bytes sent over the time of the whole step, as a share of that.",
        ]
    notes += [
        "States: params, grads and optimizer_states of the rank that holds most; activations: the most that"
        " it keeps for backward."
    ]
    if left_out := [
        f"{strategy.name} (needs {strategy.needs})"
        for strategy in STRATEGIES
        if not strategy.fits(options.ranks)
    ]:
        notes += [f"Left out with {options.ranks} rank{'s' * (options.ranks > 1)}: {', '.join(left_out)}."]
    cores = devices.usable_cores()
    if job.device == "cpu" and options.ranks > cores:
        notes += [
            f"{options.ranks} ranks share {cores} core{'s' * (cores > 1)} here, and cannot compute faster"
            f" than {cores}: expect no speed-up beyond that."
        ]
    elif job.device == "cuda" and "shared" in job.hardware:
        notes += ["The ranks share a GPU: expect no speed-up."]
    return "\n".join(notes)


def _save_pictures(runs: list[Ran], shown: list[Ran], out: Path) -> Iterator[Path]:
    """Draw one panel per strategy in each of three pictures."""
    plt.switch_backend("Agg")  # files only, also where there is a screen

    def picture(name: str, draw, these: list) -> Path:
        columns = 2 if len(these) < 5 else 3
        rows = -(-len(these) // columns)
        # fixed: to work them out takes longer than to draw
        (width, height), (left, right, bottom, top) = PANEL_IN, MARGINS_IN
        across, down = width + left + right, height + bottom + top
        figure, axes = plt.subplots(rows, columns, figsize=(across * columns, down * rows), squeeze=False)
        figure.subplots_adjust(
            left / across / columns,
            bottom / down / rows,
            1 - right / across / columns,
            1 - top / down / rows,
            (left + right) / width,
            (bottom + top) / height,
        )
        for ax, this in zip(axes.flat, these):
            draw(this, ax)
        for ax in axes.flat[len(these) :]:
            ax.remove()
        for ax in axes.flat[: len(these)]:  # panels that are compared have one scale
            ax.set_ylim(0, max(other.get_ylim()[1] for other in axes.flat[: len(these)]))
        figure.savefig(out / f"{name}.png", dpi=110)
        plt.close(figure)
        return out / f"{name}.png"

    ones = {ran.strategy.network: ran for ran in runs if ran.strategy in BASES}
    others = [ran for ran in runs if ran.strategy not in BASES]
    sweeps = []
    for strategy in dict.fromkeys(ran.strategy for ran in others):
        base = [] if others[0].ranks == 1 else [ones[strategy.network]]
        compared = [*base, *(ran for ran in others if ran.strategy is strategy)]
        jobs = tuple(job for repeat in zip(*(ran.jobs for ran in compared)) for job in repeat)
        sweeps.append(Sweep(strategy.name, jobs, len(others[0].jobs)))
    yield picture(
        "communication",
        lambda ran, ax: plots.communication(ran.jobs[-1], ran.theory[0], ax),
        [ran for ran in shown if ran.strategy not in BASES],
    )
    yield picture("memory", lambda ran, ax: plots.memory(ran.jobs[-1], ran.theory[1], ax), shown)
    yield picture("speedup", lambda sweep, ax: plots.speedup(sweep, scaling="strong", ax=ax), sweeps)


def _save_jobs(runs: list[Ran], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for ran in runs:
        for repeat, job in enumerate(ran.jobs):
            job.save(folder / f"{ran.name.replace(' ', '_')}-{repeat}.json")
    return folder


if __name__ == "__main__":
    sys.exit(main())
