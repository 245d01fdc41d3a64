"""The kernel under the course's own name: in a list of several, a learner sees which one is meant, and a
notebook that was made in one environment does not start in another one.
"""

import sys

from ipykernel.kernelspec import install
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

__all__ = ["NAME", "SPEC", "language", "make_known"]

NAME = "distributed-training"
SPEC = {"display_name": "Distributed training", "language": "python", "name": NAME}  # in a notebook


def language() -> dict:
    """What JupyterLab writes into a notebook about this kernel's language. Where it stands there already, a
    notebook that is only opened is not changed, and nobody is asked whether to save it.
    """
    from ipykernel.ipkernel import IPythonKernel  # loads for a while

    return IPythonKernel.language_info


def make_known() -> None:
    """Make the kernel of this Python known to Jupyter: to all who share the environment; where that cannot be
    written to, to this user alone.

    Errors: OSError where neither can be written to.
    """
    try:
        if KernelSpecManager().get_kernel_spec(NAME).argv[0] == sys.executable:
            return
    except NoSuchKernel:
        pass
    try:
        install(prefix=sys.prefix, kernel_name=NAME, display_name=SPEC["display_name"])
    except OSError:  # no right to, or a disk that is read only
        install(user=True, kernel_name=NAME, display_name=SPEC["display_name"])
