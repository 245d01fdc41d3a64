"""Measurements of speed are no tests. But each can begin: what it takes from the library and from the tests
is there.
"""

import ast
import importlib
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
BENCHES = sorted(TESTS.glob("bench/bench_*.py"))


def test_there_are_benches():
    assert BENCHES


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.stem)
def test_a_bench_finds_what_it_takes_from_elsewhere(bench, monkeypatch):
    for room in sorted(path for path in TESTS.iterdir() if path.is_dir()):
        monkeypatch.syspath_prepend(str(room))
    tree, modules = ast.parse(bench.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {(its.asname or its.name): importlib.import_module(its.name) for its in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for its in node.names:
                assert hasattr(module, its.name) or importlib.import_module(f"{node.module}.{its.name}")
                modules[its.asname or its.name] = getattr(module, its.name)
    asked = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    missing = [f"{name}.{attribute}" for name, attribute in asked if not hasattr(modules[name], attribute)]
    assert missing == []
