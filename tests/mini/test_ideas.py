"""Each idea of course_lib.mini stands in front: its `__init__` is short enough to read aloud, and knows no
model.
"""

import ast
from pathlib import Path

import pytest

from course_lib import mini

FOLDER = Path(mini.__file__).parent
IDEAS = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_reads_aloud(idea):
    assert len((FOLDER / idea / "__init__.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_works_for_every_model(idea):
    for file in (FOLDER / idea).glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text())):
            if isinstance(statement, ast.ImportFrom):
                names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            elif isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            else:
                continue
            assert not any(name.startswith("course_lib.models") for name in names), file
