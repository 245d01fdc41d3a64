"""Run once more, by the file, what has failed in the last run of the tests.

    python tests/again.py [what pytest is to be told ...]

Among thousands of tests with real processes, browsers and kernels a fault that shows once in a thousand runs
shows in most runs. Here what fails twice has failed; what passes now is named as unstable: a fault all the
same, which somebody has to find, but none of the change at hand. Whole files run again, for a notebook's
cells and a browser's page need those before them. More files than a few are no accident, and are not tried.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".pytest_cache" / "v"
FEW = 3  # files


def kept(name: str):
    """What the last run has left in pytest's cache under this name, or None."""
    path = KEPT / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> int:
    ended, failed = kept("exit"), sorted(kept("cache/lastfailed") or ())
    if ended != pytest.ExitCode.TESTS_FAILED:
        return 1  # lint has failed, or pytest itself, and has said so
    files = sorted({name.partition("::")[0] for name in failed})
    if not 0 < len(files) <= FEW:
        print(f"{len(failed)} tests of {len(files)} files have failed.")
        return 1
    print(f"Once more, each from top to bottom: {', '.join(files)}", flush=True)
    # conftest.py, for what it changes is for notebooks, too
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], "tests/conftest.py", *files]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        return code
    print("UNSTABLE: failed at first, and passed when it was tried again. Please find out why:")
    print("\n".join(f"  {name}" for name in failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
