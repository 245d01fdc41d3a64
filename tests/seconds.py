"""Write down how long the tests take, for levels.py.

    PYTEST_ADDOPTS="--junitxml=report.xml -o junit_duration_report=call" make test ALL=1
    .venv/bin/python tests/seconds.py report.xml

The report is to be of a machine that does nothing else, and without the seconds of what is set up for a whole
file. Of several reports the last counts for what is in it. Very short tests are not written down.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
from levels import ROOT, SECONDS

FROM_S = 0.5


def main() -> None:
    taken = {}
    for report in sys.argv[1:]:
        taken |= dict(of_report(Path(report)))
    rows = sorted((name, seconds) for name, seconds in taken.items() if seconds >= FROM_S)
    SECONDS.write_text("".join(f"{seconds:.1f}\t{name}\n" for name, seconds in rows), encoding="utf-8")


def of_report(path: Path):
    """Pairs of a test's name, as levels.name_of gives it, and its seconds."""
    ids = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        file, name = Path(case.get("classname").replace(".", "/")), case.get("name")
        if file.name == "ipynb":
            file = file.parent.with_suffix(".ipynb")
            if file not in ids:
                cells = nbformat.read(ROOT / file, as_version=4).cells
                ids[file] = [cell.id for cell in cells if cell.cell_type == "code"]
            name = ids[file][int(name.removeprefix("Cell "))]
        else:
            file = file.with_suffix(".py")
        yield f"{file}::{name}", float(case.get("time"))


if __name__ == "__main__":
    main()
