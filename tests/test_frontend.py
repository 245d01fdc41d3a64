"""Who looks at what is shown."""

from types import SimpleNamespace

import IPython
import pytest

from course_lib import frontend


@pytest.mark.parametrize(
    "shell, environ, kernel, seen",
    [
        (None, {}, False, False),
        (None, {"JPY_SESSION_NAME": "a.ipynb"}, False, False),  # a script that a notebook has started
        (SimpleNamespace(user_ns={}), {}, False, False),  # IPython in a terminal
        (SimpleNamespace(kernel=1, user_ns={}), {}, True, False),  # nbval, nbconvert
        (SimpleNamespace(kernel=1, user_ns={}), {"JPY_SESSION_NAME": "a.ipynb"}, True, True),
        (SimpleNamespace(kernel=1, user_ns={"__vsc_ipynb_file__": "a.ipynb"}), {}, True, True),
    ],
)
def test_a_person_looks_where_a_frontend_says_so(monkeypatch, shell, environ, kernel, seen):
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert (frontend.in_kernel(), frontend.is_seen()) == (kernel, seen)
