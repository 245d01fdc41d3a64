"""Names of the package: a module never carries a name that it offers, so `from course_lib import run` gives
the function, whatever was imported before.
"""

import ast
from pathlib import Path

import pytest

import course_lib
from course_lib import record

FOLDER = Path(course_lib.__file__).parent
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_no_module_carries_a_name_that_it_offers(file):
    path = FOLDER / file
    name = path.parent.name if path.stem == "__init__" else path.stem
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            assert repr(name) not in ast.unparse(statement.value)


def test_what_the_package_offers_is_there():
    assert all(getattr(course_lib, name) for name in course_lib.__all__) and set(course_lib.__all__) <= set(
        dir(course_lib)
    )


def test_the_front_door_has_all_that_is_read_off_a_job():
    assert {name for name, home in course_lib._HOMES.items() if home == "record"} == set(record.__all__)
