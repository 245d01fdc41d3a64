"""What comes back from a sweep: one job for each number of ranks and repeat, and how much faster more ranks
were.
"""

from dataclasses import dataclass

import pandas as pd

from course_lib.record.job import Job
from course_lib.record.readings import samples_per_second, step_seconds

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep, in the order in which they ran."""

    label: str
    jobs: tuple[Job, ...]
    repeats: int

    @property
    def table(self) -> pd.DataFrame:
        """One row per job: ranks, repeat, step_s, samples_per_s, speedup, efficiency.

        step_s: median over timed steps of the slowest rank's seconds (without `measure.step`: seconds of the
            slowest rank's function).
        samples_per_s: `course_lib.samples_per_second`; missing if `measure.step` was not told `samples`.
        speedup: against the same repeat on the fewest ranks, scaled so that that many ranks count as linear;
            by samples per second where samples were told (right for strong and for weak scaling), else by
            time.
        efficiency: speedup / ranks.
        """
        rows = []
        width = len(self.jobs) // self.repeats
        for position, job in enumerate(self.jobs):
            step_s, samples_per_s = _rates(job)
            rows.append(
                {
                    "ranks": job.ranks,
                    "repeat": position // width,
                    "step_s": step_s,
                    "samples_per_s": samples_per_s,
                }
            )
        table = pd.DataFrame(rows)
        base = table.sort_values("ranks").drop_duplicates("repeat").set_index("repeat")
        rate = table["samples_per_s"].fillna(1 / table["step_s"])
        base_rate = base["samples_per_s"].fillna(1 / base["step_s"])
        table["speedup"] = rate / table["repeat"].map(base_rate) * table["repeat"].map(base["ranks"])
        table["efficiency"] = table["speedup"] / table["ranks"]
        return table

    def speedup(self, ranks: int) -> float:
        """Return the speed-up of that many ranks: the median over the repeats (see `table`).

        Errors: ValueError if the sweep has no job on so many ranks.
        """
        table = self.table
        if ranks not in set(table["ranks"]):
            there = ", ".join(map(str, sorted(set(table["ranks"]))))
            raise ValueError(f"ranks={ranks!r}: this sweep has jobs on {there} ranks.")
        return float(table.loc[table["ranks"] == ranks, "speedup"].median())

    def __repr__(self) -> str:
        middle = self.table.groupby("ranks")[["step_s", "samples_per_s", "speedup", "efficiency"]].median()
        return (
            f"Sweep {self.label}: {self.repeats} repeats,"
            f" medians\n{middle.to_string(float_format=lambda x: f'{x:.3g}')}"
        )


def _rates(job: Job) -> tuple[float, float]:
    """Seconds of a step, and samples per second (nan if not told)."""
    if not (job.steps["phase"] == "timed").any():
        return max(job.records["seconds"]), float("nan")
    return float(step_seconds(job).median()), samples_per_second(job)
