"""The project files agree with each other: what is needed, what is pinned, and what make and CI do."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
TARGETS = {
    "env",
    "lab",
    "desk",
    "class",
    "lint",
    "test",
    "test-quick",
    "demo",
    "notebooks",
    "book",
    "bench",
    "clean",
    "help",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def direct_dependencies() -> list[Requirement]:
    extras = project()["optional-dependencies"]
    return [Requirement(line) for line in [*project()["dependencies"], *sum(extras.values(), [])]]


def pins() -> dict[str, Requirement]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    by_name = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(by_name) == len(requirements), "a package is pinned twice"
    return by_name


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{requirement} is not an exact pin"
    return specifier.version


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run make as from a shell, also when these tests were started by make."""
    outer = ("MAKE", "MFLAGS", "ALL", "PUSH")  # of the make that may have started these tests
    environment = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def recipe(*target: str) -> str:
    """Return what `make target` would run, were the environment built."""
    return make("-n", "-o", ".venv/.installed", "-o", ".venv/.installed-book", *target).stdout


def project_files() -> list[Path]:
    """Return the files of the repository: those that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
            "\0"
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git clone, so what belongs to the project is not known")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


# pyproject.toml, constraints.txt, environment.yml


@pytest.mark.parametrize("requirement", direct_dependencies(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement):
    pin = pins()[canonicalize_name(requirement.name)]
    assert pin.marker is None, "a direct dependency is needed on every platform"
    assert requirement.specifier.contains(pinned_version(pin))


def test_every_pin_is_exact_and_none_belongs_to_one_machine():
    for requirement in pins().values():
        assert "+" not in pinned_version(requirement), f"{requirement} names a local build"
        assert requirement.url is None
    assert canonicalize_name(project()["name"]) not in pins()
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))], (
        "torch pins these itself"
    )


def test_what_only_one_system_needs_carries_a_marker():
    marker = pins()["appnope"].marker
    assert marker is not None
    assert Marker(str(marker)).evaluate({"sys_platform": "darwin"})
    assert not Marker(str(marker)).evaluate({"sys_platform": "linux"})


def test_pins_hold_everything_that_is_installed_for_the_project():
    """Walk from the direct dependencies through what is installed here, and look for each in the pins. What
    an optional extra needs is pinned, and need not be here.
    """
    todo, seen = list(direct_dependencies()), set()
    groups = project()["optional-dependencies"]
    optional = {
        Requirement(line).name for group, lines in groups.items() if group != "test" for line in lines
    }
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
        if key in seen or re.match("nvidia|cuda|triton", key[0]):
            continue
        seen.add(key)
        assert key[0] in pins(), f"{key[0]} is not pinned"
        try:
            below = [Requirement(line) for line in requires(requirement.name) or []]
        except PackageNotFoundError:
            if requirement.name in optional:
                continue
            pytest.skip(f"{requirement.name} is not installed here")
        extras = requirement.extras or {""}
        todo += [
            item
            for item in below
            if not item.marker or any(item.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert len(seen) > 80


def test_python_versions_agree():
    supported = SpecifierSet(project()["requires-python"])
    assert [f"3.{minor}" for minor in range(9, 20) if supported.contains(f"3.{minor}.5")] == list(PYTHONS)
    (conda_python,) = re.findall(r"^ +- python=([\d.]+)$", read("environment.yml"), re.MULTILINE)
    assert conda_python in PYTHONS
    tested = re.findall(r'"(3\.\d+)"', read(".github/workflows/test.yml"))
    assert set(tested) == set(PYTHONS)
    assert project()["requires-python"] == f">={PYTHONS[0]},<3.{int(PYTHONS[-1][2:]) + 1}"
    assert f"(3, {PYTHONS[0][2:]}) <= v < (3, {int(PYTHONS[-1][2:]) + 1})" in read("Makefile")


def test_the_oldest_torch_that_is_promised_is_tested():
    (torch,) = [requirement for requirement in direct_dependencies() if requirement.name == "torch"]
    (oldest,) = re.findall(r'torch: "torch==(\d+\.\d+)\.\*"', read(".github/workflows/test.yml"))
    assert f">={oldest}" in str(torch.specifier).split(",")
    assert "BOOK: ${{ matrix.torch != 'pinned' && 'no' || '' }}" in read(".github/workflows/test.yml")
    assert "-c constraints.txt -e" not in read(".ci/run"), "this would install the pinned torch"


def test_conda_installs_the_same_pinned_set_as_make():
    before, pip_part = read("environment.yml").split("- pip:\n")
    assert re.findall(r"^ +- (.*)$", pip_part, re.MULTILINE) == ["-c constraints.txt", "-e .[test,cluster]"]
    packages = re.findall(r"^ +- (.*)$", before.split("dependencies:\n")[1], re.MULTILINE)
    assert packages == ["python=3.11", "pip"], "anything else would come from conda, and not pinned"
    assert "pip install -c constraints.txt -e '.[test,cluster]'" in read("Makefile")


def test_binder_builds_the_pinned_set_and_lays_a_desk():
    before, pip_part = read(".binder/environment.yml").split("- pip:\n")
    assert re.findall(r"^ +- (.*)$", pip_part, re.MULTILINE) == ["-c ../constraints.txt", "-e .."]
    packages = before.split("dependencies:")[1].split("dependencies:\n")[-1]
    assert packages == read("environment.yml").split("dependencies:")[1].split("- pip:\n")[0]
    after = ROOT / ".binder" / "postBuild"
    assert os.access(after, os.X_OK) and "-m course_lib.learner desk" in after.read_text(encoding="utf-8")


def test_the_version_is_the_one_that_course_lib_names():
    (version,) = re.findall(r'^__version__ = "(.+)"$', read("course_lib/__init__.py"), re.MULTILINE)
    assert project()["version"] == version


def test_no_file_names_a_package_index():
    # Put together here, so that this file does not name one either.
    options = "|".join(["index" + "-url", "find" + "-links", "trusted" + "-host"])
    hosts = "|".join(
        ["py" + "pi" + r"\.", "python" + "hosted", "download" + r"\.py" + "torch", "ana" + r"conda\.org"]
    )
    forbidden = re.compile(f"({options}|{hosts}|://[^ ]+/(simple|whl)\\b)", re.IGNORECASE)
    assert forbidden.search("https:" + "//mirror.example.org/simple/")
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found = forbidden.search(text)
        assert not found, f"{path.relative_to(ROOT)} names an index: {found.group()!r}"
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        assert "://" not in read(name), f"{name} installs from an address"


# make and continuous integration


def test_make_has_every_target_and_help_lists_it():
    phony = set(re.search(r"^\.PHONY:(.*)$", read("Makefile"), re.MULTILINE).group(1).split())
    rules = set(re.findall(r"^([a-z-]+):(?!=)", read("Makefile"), re.MULTILINE))
    listed = set(re.findall(r"^make ([a-z-]+)  ", make().stdout, re.MULTILINE))
    assert phony == rules == listed == TARGETS


def test_make_test_runs_the_tests_and_the_notebooks_strictly():
    *lint, last = recipe("test").splitlines()
    assert (
        lint
        == recipe("lint").splitlines()
        == [f".venv/bin/python -m {tool}" for tool in ("ruff format --check .", "ruff check .", "mypy")]
    )
    everything = (
        ".venv/bin/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder --nbval --nbval-current-env"
        " --nbval-cell-timeout=900 --nbval-kernel-startup-timeout=900 tests notebooks"
    )
    assert last == everything.replace("pytest", 'pytest -m "not thorough"')
    *_, last = recipe("test", "PUSH=1").splitlines()
    of_six = everything.replace("-n 4", "-n 6")
    assert last == of_six.replace("pytest", 'pytest -m "not weekly"')
    *_, last = recipe("test", "ALL=1").splitlines()
    assert " ".join(last.split()) == of_six
    *_, tried, again = read(".ci/run").splitlines()
    assert tried.startswith('make test "${TESTS:-PUSH}=1" ||') and set(again.split()[3:]) <= set(
        everything.split()
    )


def test_the_quick_tests_are_a_part_of_all():
    *lint, last = recipe("test-quick").splitlines()
    assert lint == recipe("lint").splitlines()
    assert last == '.venv/bin/python -m pytest -n 4 --dist loadscope -m "not slow and not thorough" tests'


def test_the_course_is_looked_at_with_the_settings_of_this_project():
    tools = tomllib.loads(read("pyproject.toml"))["tool"]
    assert tools["ruff"]["line-length"] == 110
    assert set(tools["ruff"]["lint"]["select"]) == {"E", "F", "I", "B", "UP"}
    assert {"course_lib/record", "course_lib/ranks", "course_lib/theory.py"} <= set(tools["mypy"]["files"])


def test_hooks_run_the_pinned_tools():
    """pre-commit takes ruff from the environment, so that its version is the one in constraints.txt."""
    hooks = read(".pre-commit-config.yaml")
    assert re.findall(r"entry: (.*)$", hooks, re.MULTILINE) == [
        ".venv/bin/python -m ruff check",
        ".venv/bin/python -m ruff format",
    ]
    ignored = [line for line in read(".git-blame-ignore-revs").splitlines() if not line.startswith("#")]
    assert ignored and all(re.fullmatch("[0-9a-f]{40}", line) for line in ignored if line)


def test_the_other_targets_run_what_they_say():
    assert recipe("lab").split() == ".venv/bin/python -m course_lib.learner lab".split()
    assert recipe("desk").split() == ".venv/bin/python -m course_lib.learner desk".split()
    of_a_class = recipe("class", "LIST=names.txt", "DESK=/srv/course").splitlines()[-1]
    assert of_a_class == '.venv/bin/python -m course_lib.classroom lay "names.txt" "/srv/course"'
    assert "-m course_lib.demo" in recipe("demo")
    assert (
        "tests/execute_notebooks.py" in recipe("notebooks")
        and (ROOT / "tests/execute_notebooks.py").is_file()
    )
    assert "tests/bench/" in recipe("bench")
    assert "docs/website/pages.py" in recipe("book") and " -m sphinx -W " in recipe("book")


def test_plain_pytest_leaves_out_measurements_and_notebooks(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("tests/test_a.py", "tests/ranks/test_b.py", "tests/bench/test_c.py", "notebooks/test_d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def test_it(): pass\n")
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    listing = subprocess.run(collect, cwd=tmp_path, capture_output=True, text=True).stdout
    assert sorted(re.findall(r"^(\S+)::", listing, re.MULTILINE)) == [
        "tests/ranks/test_b.py",
        "tests/test_a.py",
    ]


def fake_python(folder: Path, script: str) -> Path:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "script, message",
    [
        (None, "there is no"),
        (
            'exec {python} -c "import sys; sys.version_info = (3, 10, 1); exec(sys.argv[1])" "$2"',
            "is Python 3.10, but",
        ),
        (
            'exec {python} -c "import sys; sys.version_info = (3, 14, 0); exec(sys.argv[1])" "$2"',
            "is Python 3.14, but",
        ),
        ('case "$2" in *venv*) exit 1;; esac', "venv"),
    ],
)
def test_make_env_says_in_one_sentence_what_is_wrong(tmp_path, script, message):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = (
        tmp_path / "missing"
        if script is None
        else fake_python(tmp_path, script.format(python=sys.executable))
    )
    result = make("env", f"PYTHON={python}", cwd=tmp_path)
    assert result.returncode != 0
    first, *rest = result.stderr.strip().splitlines()
    assert first.startswith("Error: ") and message in first
    assert all(line.startswith("make") for line in rest), "nothing but make's own line may follow"
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_make_test_from_anywhere(tmp_path):
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert "run: .ci/run" in read(".github/workflows/test.yml")
    workflows = read(".github/workflows/test.yml") + read(".github/workflows/book.yml")
    for action in re.findall(r"uses: (.*)$", workflows, re.MULTILINE):
        assert re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", action), f"{action} is not pinned"
    (tmp_path / ".ci").mkdir()
    shutil.copy(script, tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text("test:\n\t@echo tested in $(CURDIR)\n")
    environ = os.environ | {"SLURM": "no", "BROWSER": "no"}  # nothing is installed for this test
    result = subprocess.run(
        [tmp_path / ".ci" / "run"], cwd="/", env=environ, capture_output=True, text=True, check=True
    )
    assert f"tested in {tmp_path}" in result.stdout
