"""The first cell of every chapter."""

import platform

import torch

from course_lib import about


def test_it_names_versions_and_the_backend(capsys):
    about()
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Python {platform.python_version()}, torch {torch.__version__}"
    assert second.startswith("Two ranks would run with ") and " on " in second
