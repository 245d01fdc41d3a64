"""Lists that are kept by hand name all that they should, and nothing else."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from conftest import SLOW
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import course_lib
from course_lib import check

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "course_lib"
# what is used without being imported, and the words in the Makefile that use it
TOOLS = {
    "jupyterlab": "-m jupyterlab",
    "pytest-xdist": "-m pytest -n ",
    "ruff": "-m ruff",
    "mypy": "-m mypy",
}


def code_of_notebooks() -> str:
    paths = (ROOT / "notebooks").rglob("*.ipynb")
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells]
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


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


def declared() -> tuple[set[str], set[str]]:
    """What the library needs, and what the tests need beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = project["dependencies"], project["optional-dependencies"]["test"]
    needed, for_tests = ({canonicalize_name(Requirement(line).name) for line in lines} for lines in lists)
    return needed, for_tests


def test_what_is_declared_is_used_and_what_is_used_is_declared():
    needed, for_tests = declared()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tools = {name for name, words in TOOLS.items() if words in makefile}
    by_library, by_tests = imported(LIBRARY), imported(ROOT / "tests")
    assert by_library <= needed, "the library imports what pyproject.toml does not name"
    assert by_tests <= needed | for_tests, "tests import what pyproject.toml does not name"
    assert needed <= by_library | tools, "nothing in the library uses this"
    assert for_tests <= by_tests | tools, "no test uses this"


@pytest.mark.parametrize("package", ["ranks"])
def test_a_package_that_lists_its_files_lists_all(package):
    folder = LIBRARY / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    listed = re.findall(r"^(\w+\.py)  ", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.py") if path.stem != "__init__")


def test_the_front_door_has_the_modules_that_notebooks_import():
    found = re.findall(r"^\s*from course_lib import (.*)$", code_of_notebooks(), re.MULTILINE)
    names = {name.split(" as ")[0].strip() for line in found for name in line.strip("()").split(",")} - {""}
    assert names <= set(course_lib.__all__)
    assert set(course_lib._MODULES) <= names, "no chapter imports this one"


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


def test_what_is_called_slow_is_there():
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    tests = set(re.findall(r"^def (test_\w+)\(", "\n".join(files.values()), re.MULTILINE))
    assert SLOW <= set(files) | tests


def test_every_row_of_the_table_of_faults_has_a_test():
    table = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert rows == list(range(1, len(rows) + 1)) and rows
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert {int(number) for number in re.findall(r"def test_row_(\d+)_", tests)} == set(rows)


def test_the_layout_in_the_design_names_every_room_of_the_library():
    layout = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Layout")[1]
    for path in LIBRARY.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert re.search(rf"(^|\s){path.name}{'/' * path.is_dir()}\s", layout), path.name


@pytest.mark.parametrize("page", ["README.md", "docs/style.md", "docs/faults.md"])
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https:)([^)]+)\)", text)
    paths = re.findall(r"`((?:tests|docs|data|course_lib|notebooks)/[\w./]*)`", text)
    names = {name for name in (*links, *paths) if "name" not in name}  # NN_name.ipynb stands for any
    assert names and [name for name in names if not (ROOT / name).exists()] == []
