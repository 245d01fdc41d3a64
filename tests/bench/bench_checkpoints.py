"""How much of a job's time is useful when its ranks are killed, beside Daly's formula.

    python tests/bench/bench_checkpoints.py [repeats]

Two ranks, steps that sleep 20 ms, saves that sleep 60 ms, lives of 30 steps on average: for several intervals
between two saves, goodput as the clock has it against `theory.goodput`. Its M is drawn, its C and R are
measured: R as the job's seconds in which no rank worked, for each failure and the start. Each repeat draws
other lives, and each interval gets the same. Quote the ratio and its spread. It ends with 1 where the median
ratio of an interval is not between 0.85 and 1.15.
"""

import random
import statistics
import sys
import tempfile
from pathlib import Path

from course_lib import run, theory

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
import checkpoint_workers as workers  # noqa: E402

STEPS, STEP_S, SAVE_S, MTBF_STEPS = 240, 0.02, 0.06, 30


def measured(every: int, lifetimes: list[int]) -> tuple[float, float, float, int]:
    """Goodput, seconds of a step, of a restart, and failures of one job."""
    with tempfile.TemporaryDirectory() as folder:
        job = run(
            workers.endures,
            folder,
            STEPS,
            every,
            lifetimes,
            STEP_S,
            SAVE_S,
            ranks=2,
            restarts=len(lifetimes) - 1,
            timeout=900,
        )
    done = sum(attempt.steps for attempt in job.attempts)
    saves = sum(
        (attempt.begun_at + attempt.steps) // every - attempt.begun_at // every
        for attempt in job.attempts
        if attempt.steps
    )
    last = job.attempts[-1]
    saves_of_last = (last.begun_at + last.steps) // every - last.begun_at // every
    step_s = (max(job.results) - saves_of_last * SAVE_S) / last.steps
    restart_s = (job.seconds - done * step_s - saves * SAVE_S) / len(job.attempts)
    return STEPS * step_s / job.seconds, step_s, restart_s, len(job.attempts) - 1


def main(repeats: int) -> None:
    print(f"{'every':>6} {'failures':>9} {'restart':>8} {'goodput':>8} {'formula':>8} {'ratio':>6}")
    ratios: dict[int, list[float]] = {}
    for repeat in range(repeats):
        draw = random.Random(repeat)
        lifetimes = [int(draw.expovariate(1 / MTBF_STEPS)) for _ in range(200)]
        for every in (3, 14, 40):
            found, step_s, restart_s, failures = measured(every, lifetimes)
            # no failure comes in a restart here, and R is paid once more, at the start
            mtbf_s = MTBF_STEPS * step_s + SAVE_S * MTBF_STEPS / every
            useful_s = every * step_s
            share = theory.goodput(useful_s, SAVE_S, mtbf_s)
            formula = 1 / (1 / share + restart_s * (failures + 1) / (STEPS * step_s))
            ratios.setdefault(every, []).append(found / formula)
            print(
                f"{every:6} {failures:9} {restart_s:6.2f} s {found:8.1%} {formula:8.1%}"
                f" {found / formula:6.2f}",
                flush=True,
            )
    middle = {every: statistics.median(its) for every, its in ratios.items()}
    for every, its in ratios.items():
        print(f"every {every}: ratio {middle[every]:.2f} ({min(its):.2f} to {max(its):.2f})")
    missed = [str(every) for every, ratio in middle.items() if not 0.85 <= ratio <= 1.15]
    sys.exit(f"Not held: every {', '.join(missed)}." if missed else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 3)
