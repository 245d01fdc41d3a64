"""Private places of torch: they stand in one file, each is used, and where a release has moved one, what it
was for is absent and everything else goes on.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import workers
from chapter_code import code_of_notebooks

import course_lib
from course_lib import run, torch_internals

FOLDER = Path(course_lib.__file__).parent
FILES = {str(path.relative_to(FOLDER)): path.read_text() for path in sorted(FOLDER.rglob("*.py"))}
TREES = {file: ast.parse(text) for file, text in FILES.items()}
HOME = "torch_internals.py"

# Private, though no underscore says so.
UNDOCUMENTED = {
    "distributed_c10d",
    "kineto_results",
    "experimental_event_tree",
    "redispatch",
    "unbox",
    "ScriptObject",
    "hooked",
    "is_traceable_wrapper_subclass",
    "get_backend_config",
}
# Who has private names that a string may spell.
OWNERS = (torch, torch.Tensor, torch.nn.Linear(1, 1), torch.optim.Optimizer, dist, dist.distributed_c10d)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: Iterable[ast.Module]) -> set[str]:
    """Private names that this library itself gives to something."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return set(filter(is_private, names))


def root_of(node: ast.expr) -> str:
    """`a` in a.b.c, and "" of what does not begin with a name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_places(tree: ast.Module, own: set[str]) -> list[str]:
    """What of torch's own a file uses: "line: name"."""
    found = []
    # modules that are neither torch's nor ours
    foreign = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] not in ("torch", "course_lib")
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if names:
            found += [
                f"{node.lineno}: {name}"
                for name in names
                if name.startswith("torch.")
                and any(is_private(part) or part in UNDOCUMENTED for part in name.split("."))
            ]
        elif isinstance(node, ast.Attribute):
            theirs = is_private(node.attr) and node.attr not in own and root_of(node) not in foreign
            if theirs or node.attr in UNDOCUMENTED:
                found.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if "torch._" in text or (is_private(text) and any(hasattr(owner, text) for owner in OWNERS)):
                found.append(f"{node.lineno}: {text!r}")
    return found


# private places of ipykernel, comm and ipywidgets: these files say in which versions they have seen them
NOT_OF_TORCH = {
    "ranks/answers.py": {"_publish_status", "_msg_callback", "_shell_parent"},
    "ranks/panel.py": {"_handle_msg"},
}


@pytest.mark.parametrize(
    "code, name",
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("from torch._C import _distributed_c10d", "torch._C._distributed_c10d"),
        ("from torch.utils._pytree import tree_leaves", "torch.utils._pytree.tree_leaves"),
        ("from torch.distributed.distributed_c10d import x", "torch.distributed.distributed_c10d.x"),
        ("import torch\ntorch._C.f()", "_C"),
        ("def f(tensor):\n    return tensor._version", "_version"),
        ("class A:\n    def f(self, p):\n        return p.a[0]._post_hooks", "_post_hooks"),
        ("import torch.distributed as dist\ndist.distributed_c10d.f()", "distributed_c10d"),
        ("import importlib\nimportlib.import_module('torch._dynamo')", "'torch._dynamo'"),
        ("getattr(module, '_parameters')", "'_parameters'"),
    ],
)
def test_the_search_finds_a_private_place(code, name):
    assert name in [place.partition(": ")[2] for place in private_places(ast.parse(code), set())]


def test_the_search_leaves_out_what_is_not_torchs():
    code = (
        "import os\nos._exit(0)\nclass A:\n    def f(self, other):\n        self._x = other._x +"
        " super().__init__"
    )
    tree = ast.parse(code)
    assert private_places(tree, own_names([tree])) == []


def test_no_private_place_of_torch_in_a_chapter():
    chapters = ast.parse(code_of_notebooks())
    assert private_places(chapters, own_names([*TREES.values(), chapters])) == []


def test_no_private_place_of_torch_outside_of_its_file():
    own = own_names(TREES.values())
    found = {file: private_places(tree, own) for file, tree in TREES.items()}
    for file, names in NOT_OF_TORCH.items():
        found[file] = [place for place in found[file] if place.partition(": ")[2] not in names]
    assert {file: places for file, places in found.items() if places} == {HOME: found[HOME]}


@pytest.mark.parametrize("name", torch_internals.__all__)
def test_every_place_is_explained_and_used(name):
    entry = getattr(torch_internals, name)
    if isinstance(entry, str):  # a name: the comment above says it
        (told,) = [part for part in FILES[HOME].split("\n\n") if f"\n{name} = " in part]
        told = told.replace("\n# ", " ")
    elif entry.__module__ == torch_internals.__name__:
        told = " ".join(inspect.getdoc(entry).split())
    else:
        told = ""  # torch's own
    if told and not inspect.isclass(entry):
        assert re.search(r"Seen: \d\.\d+ to \d\.\d+\b.*\. Gone: \S", told)
    assert any(re.search(rf"\b{name}\b", text) for file, text in FILES.items() if file != HOME)


def test_places_that_a_row_of_a_collective_names_are_explained_too():
    text = FILES["collectives.py"]
    (told,) = re.findall(r"((?:^# .*\n)+)_ROWS = ", text, re.MULTILINE)
    assert re.search(r"Seen: \d\.\d+ to \d\.\d+\b.*\. Gone: \S", told.replace("\n# ", " "))


def test_everything_in_the_file_is_offered():
    functions = {n.name for n in TREES[HOME].body if isinstance(n, ast.FunctionDef)}
    assigned = [target for n in TREES[HOME].body if isinstance(n, ast.Assign) for target in n.targets]
    names = {name.id for target in assigned for name in ast.walk(target) if isinstance(name, ast.Name)}
    defined = functions | names - {"__all__"}
    assert {name for name in defined if not is_private(name)} <= set(torch_internals.__all__)


# A release in which one of them is gone


@pytest.mark.parametrize(
    "holder, name, absent",
    [
        ("torch._C", "_dispatch_keyset_full_after", {"collectives"}),
        ("torch.distributed.ProcessGroup", "unbox", {"collectives"}),
        ("torch._C._autograd", "_top_saved_tensors_default_hooks", {"activations"}),
        ("torch._C._profiler", "_ExperimentalConfig", set()),
        ("torch.autograd.profiler", "_is_profiler_enabled", set()),
        ("torch.autograd.graph", "_engine_run_backward", set()),
    ],
)
def test_where_a_place_is_gone_that_layer_is_absent_and_the_others_measure(holder, name, absent):
    job = run(workers.one_step_without, holder, name, ranks=1)
    assert set(job.absent) - {"other memory", "wire bytes"} == absent
    assert all(name in job.absent[layer] for layer in absent)
    assert job.steps["phase"].tolist() == ["warm-up", "traced", "timed"] and not job.timeline.empty
    assert job.comm.empty == ("collectives" in absent)
    assert ("activations" in set(job.memory["category"])) == ("activations" not in absent)


def test_what_a_waiting_rank_tells_is_empty_where_a_place_is_gone(monkeypatch):
    c10d = torch._C._distributed_c10d
    monkeypatch.setattr(c10d, "_dump_fr_trace", lambda *_: b"\x80\x04}.", raising=False)  # an empty dict
    assert torch_internals.flight_records() == []
    monkeypatch.delattr(c10d, "_dump_fr_trace")
    monkeypatch.delattr(dist.distributed_c10d, "_world")
    assert torch_internals.flight_records() == torch_internals.group_names() == []
    assert torch_internals.group_timeouts() == [] and torch_internals.ranks_of_group("9") is None


def test_a_record_that_cannot_be_read_is_absent_and_memory_is_not():
    job = run(workers.one_step_without, "torch._C._autograd._KinetoEvent", "start_ns", ranks=1)
    told = {layer for layer, reason in job.absent.items() if "start_ns" in reason}
    assert told == {"collectives", "collective times", "timeline"}
    assert job.comm.empty and job.timeline.empty and "activations" in set(job.memory["category"])


def test_what_cannot_run_without_a_place_says_so(monkeypatch):
    monkeypatch.delattr(dist.distributed_c10d, "_get_default_store")
    with pytest.raises(RuntimeError, match="late cannot run on torch 2.*_get_default_store.*pyproject"):
        torch_internals.default_store()


def test_where_there_is_something_public_it_is_taken(monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.delattr(dist, "get_backend_config")
        assert not torch_internals.uses_nccl()
        monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
        assert torch_internals.uses_nccl()
    finally:
        dist.destroy_process_group()
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    torch_internals.preload()


def test_storages_are_followed_and_not_kept():
    tensor = torch.zeros(10)
    number = torch_internals.hold_weakly(tensor.untyped_storage())
    assert number == torch_internals.storage_number(tensor.untyped_storage())
    assert torch_internals.bytes_if_alive([number]) == [40]
    del tensor
    assert torch_internals.bytes_if_alive([number]) == [None]
    torch_internals.let_go(number)
