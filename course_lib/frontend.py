"""Who looks at what this process shows: a person in JupyterLab or in a terminal, or a program."""

import os
import sys

__all__ = ["in_kernel", "is_seen", "ipython_shell"]


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel (and not a terminal or a script)."""
    return hasattr(ipython_shell(), "kernel")


def is_seen() -> bool:
    """Whether a person's frontend is known to show what this kernel displays: that of JupyterLab, Notebook or
    VS Code.

    What nbval, nbconvert and `tests/execute_notebooks.py` run, they compare or store: there a display is text
    alone, the same on every machine.
    """
    return in_kernel() and (
        "JPY_SESSION_NAME" in os.environ  # a Jupyter server names the notebook, VS Code has a name of its own
        or "__vsc_ipynb_file__" in getattr(ipython_shell(), "user_ns", {})
    )


def ipython_shell():
    """IPython's shell in this process, in a kernel or in a terminal; None where there is none."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
