"""The calculator: python -m course_lib.plan model.yaml machine.yaml [--ranks 1024] [--best 5]

Prints the best plans with their reasons. Without --ranks: the trainings of course_lib.demo on 1, 2 and 4 ranks
for a machine that was measured, and else 8 ranks.
"""

import argparse
import sys

from course_lib.plan.files import read
from course_lib.plan.ranking import Ranked, here, layouts, ranked

__all__ = ["main", "table"]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.plan", description="Rank the ways to train a model on a machine."
    )
    parser.add_argument("model", help="a file: .yaml, .toml or .json")
    parser.add_argument("machine", help="a file, as course_lib.plan.calibrate measures it")
    parser.add_argument("--ranks", type=int, default=0, help="number of ranks of a cluster")
    parser.add_argument("--best", type=int, default=5, help="how many plans to show (default: 5)")
    options = parser.parse_args(arguments)
    try:
        model, machine = read(options.model, "model"), read(options.machine, "machine")
        plans = here() if machine.software_s and not options.ranks else layouts(options.ranks or 8, model)
        found = ranked(model, machine, plans)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{model.name}: {model.numel:,} parameters, batch {model.batch}; {machine.name}")
    print(table(found[: options.best]) if found else "No plan can deal out this batch and these layers.")
    return 0


def table(found: list[Ranked]) -> str:
    """One line for each plan: its mesh, seconds of a step, the most memory, bytes sent, the reason."""
    lines = [f"{'plan':28} {'dp':>4} {'tp':>3} {'pp':>3} {'m':>4} {'step':>9} {'memory':>9} {'sent':>9}"]
    for its in found:
        plan, cost = its.plan, its.cost
        sizes = f"{plan.dp:4} {plan.tp:3} {plan.pp:3} {plan.microbatches:4}"
        numbers = _unit(cost.step_s, "s"), _unit(cost.peak_bytes, "B"), _unit(sum(cost.sent.values()), "B")
        name = plan.way + ", recompute" * plan.recompute
        lines.append(f"{name:28} {sizes} {' '.join(f'{one:>9}' for one in numbers)}  {its.reason}")
    return "\n".join(lines)


def _unit(value: float, unit: str) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.2g} {unit}"


if __name__ == "__main__":
    sys.exit(main())
