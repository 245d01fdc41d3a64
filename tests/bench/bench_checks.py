"""Judge every right answer of the tests many times and print a table: check, answer, tries, refused, median
seconds to the verdict.

    python tests/bench/bench_checks.py [check ...] [--tries 20] [--first] [--busy K]

Names of checks take these alone. --first takes one answer of each check, the solution. --busy keeps every
core busy with K more processes meanwhile. Exit code 1 if one is refused; what was said then stands below the
table. A median over ten seconds is marked "slow", and counts too unless --busy.
"""

import argparse
import importlib
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

# so long a learner may wait for a verdict, on a machine that does nothing else
SLOW_S = 10.0
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("", "check", "mini", "ranks")]


def right_answers(names: list[str], first: bool) -> list[tuple]:
    """(check, answers) of every chapter's tests."""
    found = []
    for file in sorted(TESTS.glob("check/test_check_*.py")):
        for check, answers in getattr(importlib.import_module(file.stem), "RIGHT", ()):
            if (not names or check.__name__ in names) and not (
                first and any(known is check for known, _ in found)
            ):
                found.append((check, answers if isinstance(answers, (tuple, list)) else (answers,)))
    if missing := set(names) - {check.__name__ for check, _ in found}:
        sys.exit(f"No check has the name {', '.join(sorted(missing))}.")
    return found


def judge(check, answers: tuple, tries: int) -> tuple[str, list[str], bool]:
    """One row of the table, each refusal, and whether verdicts are slow."""
    seconds, refused = [], []
    for _ in range(tries):
        begin = time.monotonic()
        verdict = check(*answers)
        seconds.append(time.monotonic() - begin)
        if not verdict:
            refused.append(repr(verdict))
    name = ", ".join(getattr(answer, "__name__", "answer") for answer in answers)
    slow = statistics.median(seconds) > SLOW_S
    row = (
        f"{check.__name__:22} {name:40.40} {tries:5} {len(refused):8} {statistics.median(seconds):9.1f}"
        f" {max(seconds):9.1f}{'  slow' * slow}"
    )
    return row, refused, slow


def spin() -> None:
    while True:
        pass


def main() -> int:
    options = argparse.ArgumentParser(usage=__doc__)
    options.add_argument("checks", nargs="*")
    options.add_argument("--tries", type=int, default=20)
    options.add_argument("--first", action="store_true")
    options.add_argument("--busy", type=int, default=0)
    options = options.parse_args()
    answers = right_answers(options.checks, options.first)
    spinners = [
        multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        for _ in range(options.busy * (os.cpu_count() or 1))
    ]
    for spinner in spinners:
        spinner.start()
    said, any_slow = [], False
    try:
        print(f"{'check':22} {'answer':40} {'tries':>5} {'refused':>8} {'median s':>9} {'longest s':>9}")
        for check, its in answers:
            row, refused, slow = judge(check, its, options.tries)
            print(row, flush=True)
            said += refused
            any_slow |= slow
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.join()
    print(*said, sep="\n")
    return bool(said or any_slow and not options.busy)


if __name__ == "__main__":
    sys.exit(main())
