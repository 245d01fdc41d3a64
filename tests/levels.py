"""Which tests are left out where. Four levels, by the time in which they answer on two quiet cores:

- `make test-quick`, three minutes, for who changes code: no notebooks, nothing slow, nothing thorough;
- `make test`, fifteen minutes: nothing thorough;
- `make test PUSH=1`, 25 minutes, for each push: clusters and browsers too, and of the cells all but the
  longest, each with what stands on it;
- `make test ALL=1`, an hour, once a week: everything.

How long a test takes stands in seconds.tsv, which seconds.py writes. What is not in it yet counts as short.
"""

from collections import Counter
from pathlib import Path

from cells import takers
from nbval.plugin import IPyNbCell

__all__ = ["ROOT", "SECONDS", "FOLDERS", "name_of", "known_seconds", "mark", "longest_first"]

ROOT = Path(__file__).resolve().parents[1]
SECONDS = ROOT / "tests" / "seconds.tsv"

SLOW_S = 0.7
THOROUGH_S, SHORTEST_S = 2.5, 10.0  # so long may the shortest case of a test take that has several
# Cells that take so long, if no more cells stand on one, itself among them: thorough, and weekly.
CELL_S, WITH_IT = 6.0, 6
LONGEST_CELL_S, WITH_LONGEST = 20.0, 8

# What runs in a browser, and solved twins, are thorough: checks are tested with answers like theirs.
FOLDERS = {"browser", "solutions"}
# What is thorough is for once a week, but for most cells of chapters, and these: nothing else is like them.
EACH_PUSH = {"notebooks", "browser", "cluster"}
# For these a kernel, a cluster or a website is begun: slow, whatever a test takes then.
BEGIN_SLOWLY = {"test_kernel.py", "test_slurm.py", "test_slurm_faults.py", "test_website.py"}
# Of each exercise's answers all but so many, the plainest, which stand first.
RIGHT, WRONG = "test_right_answers_are_accepted", "test_wrong_answers_are_refused_with_the_reason"
PLAINEST = {RIGHT: 1, WRONG: 2}


def name_of(item) -> str:
    """As in seconds.tsv: a cell by its id, which stays if others come before it."""
    if isinstance(item, IPyNbCell):
        return f"{item.nodeid.partition('::')[0]}::{item.cell.id}"
    return item.nodeid


def known_seconds() -> dict[str, float]:
    rows = (line.split("\t") for line in SECONDS.read_text(encoding="utf-8").splitlines())
    return {name: float(seconds) for seconds, name in rows}


def mark(items: list) -> None:
    """Give tests the markers `slow`, `thorough` and `weekly`."""
    known = known_seconds()
    seconds = {item: known.get(name_of(item), 0.0) for item in items}
    shortest = _shortest_cases(seconds)
    longest = _long_cells(seconds, LONGEST_CELL_S, WITH_LONGEST)
    left_out = _long_cells(seconds, CELL_S, WITH_IT) | longest
    answers = Counter()
    for item in items:
        if seconds[item] >= SLOW_S or item.path.name in BEGIN_SLOWLY:
            item.add_marker("slow")
        name = getattr(item, "originalname", "")
        if name in PLAINEST:
            exercise = item.path, name, item.callspec.params["check"].__name__
            answers[exercise] += 1
            far = answers[exercise] > PLAINEST[name]
        else:
            far = item.path.parent.name in FOLDERS or item in left_out
        long = seconds[item] >= (SHORTEST_S if item in shortest else THOROUGH_S)
        if far or long and name != RIGHT and not isinstance(item, IPyNbCell):
            item.add_marker("thorough")
            if item in longest or item.path.parent.name not in EACH_PUSH:
                item.add_marker("weekly")


def longest_first(items: list) -> None:
    """Sort by files, each from top to bottom, so that no worker is left alone with a long one at the end."""
    known, total = known_seconds(), Counter()
    for item in items:
        total[item.path] += known.get(name_of(item), 0.0)
    items.sort(key=lambda item: (-total[item.path], str(item.path)))


def _shortest_cases(seconds: dict) -> set:
    """Of each test with several cases, the one that takes the least time."""
    tests = {}
    for item in seconds:
        if hasattr(item, "callspec"):
            tests.setdefault((item.path, item.originalname), []).append(item)
    return {min(cases, key=seconds.get) for cases in tests.values() if len(cases) > 1}


def _long_cells(seconds: dict, least: float, most: int) -> set:
    """Cells of chapters that take so long, with those that stand on them, if these are no more than `most`
    together.
    """
    cells = {(item.path, item.cell_num): item for item in seconds if isinstance(item, IPyNbCell)}
    found = set()
    for (path, number), item in cells.items():
        if seconds[item] >= least:
            numbers = takers(path, number)
            if len(numbers) <= most:
                found |= {cells[path, other] for other in numbers if (path, other) in cells}
    return found
