"""What all tests share."""

import itertools
import signal
import tempfile

import nbval.kernel
import pytest
from jupyter_client import KernelManager

# Started in the background of a shell (`make test &`), a process ignores SIGINT, and so would the kernels
# that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("verdicts")

# Kernels talk through sockets in the file system. A TCP port that is free when a kernel is started may be a
# rank's when the kernel wants to have it.
_folder, _number = tempfile.TemporaryDirectory(prefix="kernels-"), itertools.count()


def kernel_manager(**options) -> KernelManager:
    return KernelManager(transport="ipc", ip=f"{_folder.name}/{next(_number)}", **options)


nbval.kernel.KernelManager = kernel_manager

# What `make test-quick` leaves out: files that take long beside what they find first; and of the tests of
# checks, all but the stub and the first right answer.
SLOW = {
    "test_demo.py",
    "test_execute_notebooks.py",
    "test_faults.py",
    "test_fuzz.py",
    "test_kernel.py",
    "test_mini_zero_everyday.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        case = item.callspec.params if hasattr(item, "callspec") else {}
        other_answer = case.get("like") not in (None, case.get("answers"))
        if item.path.name in SLOW or other_answer or "test_wrong_answers" in item.name:
            item.add_marker(pytest.mark.slow)
