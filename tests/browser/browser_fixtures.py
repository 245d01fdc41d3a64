"""What the tests of this folder share: a Chromium, and a desk that JupyterLab shows in it. Each file imports
these fixtures.
"""

import contextlib
import functools

import chromium_here
import pytest
from lab_here import LabHere

__all__ = ["browser", "lab", "watched"]


@functools.cache
def _chromium(config):
    """One for all files: each of them has a fixture of its own."""
    until_the_end = contextlib.ExitStack()
    config.add_cleanup(until_the_end.close)
    return until_the_end.enter_context(chromium_here.chromium())


@pytest.fixture(scope="session")
def browser(pytestconfig):
    """Where it cannot be had, a test is skipped, with the reason."""
    if reason := chromium_here.missing():
        pytest.skip(f"a real browser is needed: {reason}")
    return _chromium(pytestconfig)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    with LabHere(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def watched(browser, lab):
    """A page with JupyterLab, as a learner's browser opens it: with the desk's first chapter."""
    with chromium_here.Watched(browser, viewport={"width": 1280, "height": 900}) as watched:
        watched.page.goto(lab.url(), wait_until="commit")
        watched.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.path")
        yield watched
