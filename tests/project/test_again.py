"""What has failed runs once more, by the file; what then passes is named, and nothing is hidden."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CONFTEST = "import failures\n\n\ndef pytest_configure(config):\n    config.pluginmanager.register(failures)\n"
FAILS_ONCE = """
from pathlib import Path
SEEN = Path(__file__).with_suffix(".seen")

def test_before(): pass

def test_of_the_weather():
    tried = SEEN.exists()
    SEEN.touch()
    assert tried
"""
FAILS = "def test_of_a_fault(): assert False\n"


@pytest.fixture
def tried_again(tmp_path):
    """Runs these files, then again.py; returns its exit status and what it has said."""

    def run(files: dict[str, str]) -> tuple[int, str]:
        folder = tmp_path / "tests"
        folder.mkdir()
        for name in ("again.py", "failures.py"):
            shutil.copy(TESTS / name, folder)
        for name, source in {"conftest.py": CONFTEST, **files}.items():
            (folder / name).write_text(source)
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "tests"],
            cwd=tmp_path,
            capture_output=True,
        )
        done = subprocess.run(
            [sys.executable, "tests/again.py", "-q", "--rootdir", str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    return run


def test_what_passes_then_is_named_as_unstable(tried_again):
    code, said = tried_again({"test_one.py": FAILS_ONCE, "test_other.py": "def test_fine(): pass\n"})
    assert code == 0 and "2 passed" in said, said
    assert said.rstrip().endswith("  tests/test_one.py::test_of_the_weather") and "UNSTABLE" in said


def test_what_fails_twice_has_failed(tried_again):
    code, said = tried_again({"test_one.py": FAILS_ONCE, "test_other.py": FAILS})
    assert code == 1 and "1 failed, 2 passed" in said and "UNSTABLE" not in said, said


def test_many_files_are_no_accident(tried_again):
    code, said = tried_again({f"test_{name}.py": FAILS_ONCE for name in "abcd"})
    assert code == 1 and said.strip() == "4 tests of 4 files have failed."


@pytest.mark.parametrize("source", ["import nothing_that_is_there\n", "def test_fine(): pass\n"])
def test_what_is_no_failed_test_is_not_tried(tried_again, source):
    assert tried_again({"test_one.py": source}) == (1, "")
