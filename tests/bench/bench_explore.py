"""What a move of an explorer costs: seconds of a core for a picture and its table, of each explorer.

    python tests/bench/bench_explore.py [states]

Of each explorer so many of its states are drawn, chosen by chance, after one that warms up. Seconds are those
of this process on its cores, so that other work on the machine counts less; a busy machine still makes them
longer.
"""

import random
import statistics
import sys
import time

import matplotlib

matplotlib.use("Agg")

from course_lib import explore  # noqa: E402


def move_seconds(name: str, states: int) -> list[float]:
    explorer, chance, found = getattr(explore, name)(), random.Random(name), []
    for k in range(states + 1):
        values = {control: chance.choice(list(of.values())) for control, of in explorer.choices.items()}
        begin = time.process_time()
        explorer.at(**values)._page()
        if k:  # the first one loads fonts
            found.append(time.process_time() - begin)
    return found


def main() -> None:
    states = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    print(f"seconds of a core for a move, {states} states of each: median (least to most)")
    for name in (name for name in explore.__all__ if name != "Explorer"):
        found = move_seconds(name, states)
        print(f"{name:12} {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
