"""The calculator: python -m course_lib.plan model.yaml machine.yaml [--ranks 1024] [--best 5]

Prints the best plans with their reasons. Without --ranks: for a machine that was measured the trainings of
course_lib.demo on 1, 2 and 4 ranks, and else 8 ranks.
"""

import argparse
import sys

from course_lib.plan.files import read
from course_lib.plan.ranking import layouts, ranked, table

__all__ = ["main"]


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
    if options.best < 1:
        parser.error(f"--best {options.best}: it must be a whole number of at least 1.")
    try:
        model, machine = read(options.model, "model"), read(options.machine, "machine")
        plans = None if machine.software_s and not options.ranks else layouts(options.ranks or 8, model)
        found = ranked(model, machine, plans)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{model.name}: {model.numel:,} parameters, batch {model.batch}; {machine.name}")
    print(table(found[: options.best]) if found else "No plan can deal out this batch and these layers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
