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
