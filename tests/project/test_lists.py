"""Lists that are kept by hand name all that they should, and nothing else."""

import ast
import json
import re
import runpy
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from chapter_code import code_of_notebooks
from levels import known_seconds
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import course_lib
from course_lib import check
from course_lib.learner import desk

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "course_lib"
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
# what is used without being imported, and the words in the Makefile that use it
TOOLS = {
    "pytest-xdist": "-m pytest -n ",
    "ruff": "-m ruff",
    "mypy": "-m mypy",
}


def imported(folder: Path) -> set[str]:
    """The distributions that the files below a folder import, by their names in an index."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    found = {canonicalize_name(name) for module in modules for name in known.get(module, [])}
    return found - {"course-lib"}


def declared() -> tuple[set[str], set[str], set[str], set[str]]:
    """What the library needs, what it needs for clusters, and what the tests need beside it: all of them, and
    those in a browser.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists = project["dependencies"], extras["cluster"], extras["test"], extras["browser"]
    return tuple({canonicalize_name(Requirement(line).name) for line in lines} for lines in lists)


def test_what_is_declared_is_used_and_what_is_used_is_declared():
    needed, for_clusters, for_tests, for_browsers = declared()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tools = {name for name, words in TOOLS.items() if words in makefile}
    by_library, by_tests = imported(LIBRARY), imported(ROOT / "tests")
    assert by_library <= needed | for_clusters, "the library imports what pyproject.toml does not name"
    optional = for_clusters | for_browsers
    assert by_tests <= needed | for_tests | optional, "tests import what pyproject.toml does not name"
    for name in for_browsers:  # it may not be installed here
        users = [
            path
            for path in (ROOT / "tests").rglob("*.py")
            if f"from {name}." in path.read_text(encoding="utf-8")
        ]
        assert {path.parent.name for path in users} == {"browser"}, "only tests in a browser load this"
        assert name in (ROOT / ".ci/run").read_text(encoding="utf-8"), "continuous integration installs it"
    for name in for_clusters:  # it may not be installed here
        users = [
            path for path in LIBRARY.rglob("*.py") if f"import {name}" in path.read_text(encoding="utf-8")
        ]
        assert [path.parent.name for path in users] == ["slurm"], "only who has a cluster loads this"
    in_tools = (LIBRARY / "clinic" / "tools.py").read_text(encoding="utf-8")
    tools |= {"py-spy"} if '/ "py-spy"' in in_tools else set()
    assert needed <= by_library | tools, "nothing in the library uses this"
    assert for_tests <= by_tests | tools, "no test uses this"


# docs/design.md lists the files of course_lib itself, and an idea of mini names its files: see the next test
LISTED = sorted(
    str(path.parent.relative_to(LIBRARY))
    for path in LIBRARY.rglob("__init__.py")
    if path.parent != LIBRARY and path.parents[1].name != "mini"
)


@pytest.mark.parametrize("package", LISTED)
def test_a_package_lists_its_files(package):
    text = ast.get_docstring(ast.parse((LIBRARY / package / "__init__.py").read_text(encoding="utf-8")))
    listed = re.findall(r"^(\w+)(?:\.py|/)  ", text, re.MULTILINE)
    chapters = list(check._CHECKS) if package == "check" else []
    there = [
        path.stem
        for path in (LIBRARY / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert sorted([*listed, *chapters, "__init__"]) == sorted(there)


@pytest.mark.parametrize("idea", sorted(path.parent.name for path in LIBRARY.glob("mini/*/__init__.py")))
def test_an_idea_names_the_files_beside_it(idea):
    folder = LIBRARY / "mini" / idea
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    named = {name for pair in re.findall(r"`(\w+)`|\b(\w+)\.py\b", text) for name in pair}
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert there and not there - named


@pytest.mark.parametrize(
    "path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY))
)
def test_a_module_says_what_it_offers(path):
    """In `__all__`; but for a package or a script that defines nothing."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assigned = {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)
    assert "__all__" in assigned or not defines


@pytest.mark.parametrize("folder", ["course_lib", "tests"])
def test_a_chapter_is_known_by_its_name(folder):
    """Its number stands in the names of its files alone, so that one may come between."""
    number = re.compile(r"\bchapters?\s+\d|(?<![\w.,-])0\d(?![\d.])(?!_\w+\.ipynb)", re.IGNORECASE)
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        lines = path.read_text(encoding="utf-8")
        found |= {str(path): match.group() for match in number.finditer(lines)}
    assert not found


def test_the_front_door_has_the_modules_that_notebooks_import():
    found = re.findall(r"^\s*from course_lib import (.*)$", code_of_notebooks(), re.MULTILINE)
    names = {name.split(" as ")[0].strip() for line in found for name in line.strip("()").split(",")} - {""}
    assert names <= set(course_lib.__all__)
    assert set(course_lib._MODULES) <= names, "no chapter imports this one"


def test_predictions_have_names_of_their_own_and_each_is_compared():
    asked = Counter()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        names = desk.predictions(notebook)
        asked.update(names)
        code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
        kept = re.findall(r"^(\w+) = predict\(", code, re.MULTILINE)
        assert len(kept) == len(names) and (not names or 3 <= len(names) <= 6), path.name
        for name in kept:
            assert f"{name}.compare(" in code, f"{path.name}: {name}"
    assert asked.total() == len(asked)


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    checks = set()
    for path in (LIBRARY / "check").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for decorator in getattr(node, "decorator_list", ()):
                if re.match(r"exercise\b", ast.unparse(decorator)):
                    checks.add(node.name)
    assert checks and checks <= set(check.__all__)
    called = set(re.findall(r"\bcheck\.(\w+)\(", code_of_notebooks()))
    assert checks <= called <= set(check.__all__)


def test_what_is_said_to_take_long_is_there():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    functions = set(re.findall(r"\btest_\w+", code))
    for known in known_seconds():
        file, name = known.partition("[")[0].split("::")
        cells = [] if file.endswith(".py") else json.loads((ROOT / file).read_text(encoding="utf-8"))["cells"]
        assert (ROOT / file).exists() and name in functions | {cell["id"] for cell in cells}, known


def test_every_row_of_the_table_of_faults_has_a_test():
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert rows == list(range(1, len(rows) + 1)) and rows
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert {int(number) for number in re.findall(r"def test_row_(\d+)_", tests)} == set(rows)


def test_the_rows_that_the_bench_of_faults_injects_are_those_that_the_table_says():
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"`tests/bench/bench_faults.py` injects the rows ([\d ,toand]+) many times", table)
    said = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", words):
        said |= set(range(int(first), int(last or first) + 1))
    bench = ast.parse((ROOT / "tests" / "bench" / "bench_faults.py").read_text(encoding="utf-8"))
    (faults,) = [
        node.value
        for node in bench.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FAULTS"
    ]
    pairs = [node.elts[0] for node in ast.walk(faults) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    names = [name.value for name in pairs if isinstance(name, ast.Constant) and name.value[0].isdigit()]
    assert {int(name.split()[0]) for name in names} == said


def test_the_layout_in_the_design_names_every_room_of_the_library():
    layout = DESIGN.split("## Layout")[1]
    for path in LIBRARY.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert re.search(rf"(^|\s){path.name}{'/' * path.is_dir()}\s", layout), path.name


def test_the_layout_in_the_design_names_nothing_else():
    layout = DESIGN.split("## Layout")[1].split("```")[1]
    rows = re.findall(r"^( *)(.*?)(?:  .*)?$", layout, re.MULTILINE)
    names = {
        (LIBRARY if indent else ROOT) / name
        for indent, words in rows
        for name in re.findall(r"\w+(?:\.\w+|/)", words)
    }
    assert names and [path for path in names if not path.exists()] == []


def test_the_bench_of_checks_has_an_answer_for_each():
    bench = runpy.run_path(str(ROOT / "tests" / "bench" / "bench_checks.py"))
    assert {its.__name__ for its, _ in bench["right_answers"]([], first=True)} == set(check.EXERCISES)


def test_files_that_a_chapter_names_are_there():
    for path in sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            folders = [ROOT / name for name in re.findall(r"`(course_lib/[\w/]*)`", text)]
            files = re.findall(r"`([\w./]+\.py)`", text)
            folders += [(ROOT / name).parent for name in files]
            gone = [name for name in files if not any((home / name).exists() for home in (ROOT, *folders))]
            assert not gone, (path.name, gone)


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))],
)
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    # GitHub keeps a workflow's page and badge at such an address beside the README, whoever owns the project
    text = re.sub(r"\.\./\.\./actions/(workflows/\w+\.yml)(/badge\.svg)?\)", r".github/\1)", text)
    links = re.findall(r"\]\((?!https:)([^)]+)\)", text)
    paths = re.findall(r"`((?:tests|docs|data|course_lib|notebooks)/[\w./]*)`", text)
    files = re.findall(r"`([\w./]+\.(?:py|md|toml|txt|yml|ipynb))`", text)
    names = {name for name in (*links, *paths, *files) if "name" not in name}  # NN_name.ipynb stands for any
    tests = ROOT / "tests"
    homes = ROOT, (ROOT / page).parent, LIBRARY, tests / "check", tests / "ranks", tests / "browser"
    assert names and [name for name in names if not any((home / name).exists() for home in homes)] == []


def test_every_idea_has_a_section_where_it_runs():
    table = (ROOT / "docs" / "ideas.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ") and "notebooks/" in line]
    assert len(rows) > 40
    for row in rows:
        places = re.findall(r'\[(\d\d)\]\(\.\./(notebooks/\1_\w+\.ipynb)\), "([^"]+)"', row)
        assert places and len(places) == row.count("](../"), row
        for _, path, heading in places:
            cells = nbformat.read(ROOT / path, as_version=4).cells
            headings = [
                line.lstrip("#").strip()
                for cell in cells
                if cell.cell_type == "markdown"
                for line in cell.source.splitlines()
                if line.startswith("#")
            ]
            assert heading in headings, f"{path} has no section {heading!r}"
