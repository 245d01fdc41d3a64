"""What all tests share."""

import itertools
import os
import random
import signal
import tempfile
from types import SimpleNamespace

import failures
import levels
import nbval.kernel
import pytest
from cells import needed_cells
from jupyter_client import KernelManager
from nbval.plugin import IPyNbCell

# Started in the background of a shell (`make test &`), a process ignores SIGINT, and so would the kernels
# that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("verdicts")

# Started from a cell, the tests would take its notebook for theirs (course_lib.frontend).
os.environ.pop("JPY_SESSION_NAME", None)

# Kernels talk through sockets in the file system. A TCP port that is free when a kernel is started may be a
# rank's when the kernel wants to have it.
_folder, _number = tempfile.TemporaryDirectory(prefix="kernels-"), itertools.count()


def kernel_manager(**options) -> KernelManager:
    return KernelManager(transport="ipc", ip=f"{_folder.name}/{next(_number)}", **options)


nbval.kernel.KernelManager = kernel_manager

CASES = os.environ.get("CASES", "0")  # which cases checks are tested with


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    levels.mark(items)
    yield  # what is marked and not wanted is left out here
    if CASES == "0":  # once a week, twins too run as a whole
        twins = [
            item for item in items if isinstance(item, IPyNbCell) and item.path.parent.name == "solutions"
        ]
        if left_out := {item for item in twins if item.cell_num not in needed_cells(item.path)}:
            config.hook.pytest_deselected(items=list(left_out))
            items[:] = [item for item in items if item not in left_out]
    levels.longest_first(items)


def pytest_configure(config):
    config.pluginmanager.register(failures)  # hooks of this file see no cell of notebooks/


@pytest.fixture(scope="session")
def two_hosts():
    """Two linked hosts to run on. Where the machine cannot make them, a test is skipped, with the reason."""
    from course_lib import hosts

    two = hosts.Linked(2, mbit=200)
    if reason := two.missing():
        pytest.skip(reason)
    return two


@pytest.fixture(autouse=True)
def cases_that_come_again(request, monkeypatch):
    """Checks draw their cases anew in every try. Tests draw them from the test's own name and a number, so
    that one that fails fails again: CASES=7 draws others, CASES=anew other ones each time.
    """
    if request.path.parent.name == "check" and CASES != "anew":
        from course_lib.check import judge

        draw = random.Random(f"{CASES} {request.node.nodeid}")
        monkeypatch.setattr(judge, "secrets", SimpleNamespace(randbelow=draw.randrange))
