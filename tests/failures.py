"""What is told of a test that fails, and what is tried once more."""

import pytest
from nbval.plugin import IPyNbCell

TORCHRUN, SCRIPT_FAILED = "torch.distributed.run", "CalledProcessError"


def pytest_sessionfinish(session, exitstatus):
    """How it has ended, for again.py."""
    if not hasattr(session.config, "workerinput") and session.config.pluginmanager.has_plugin(
        "cacheprovider"
    ):
        session.config.cache.set("exit", int(exitstatus))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Where a test in a browser fails, its error names the folder in which one can look at the page; where a
    cell does, what it has printed stands below the error. A cell whose script failed runs once more: what the
    script said is not told, and it may be torch's abort after all was well (AT_PYTHONS_END of
    project/test_scripts.py).
    """
    try:
        return (yield)
    except Exception as error:
        if isinstance(item, IPyNbCell) and TORCHRUN in item.cell.source:
            if SCRIPT_FAILED in str(getattr(error, "inner_traceback", "")):
                return item.runtest()
        if watched := getattr(item, "funcargs", {}).get("watched"):
            watched.note(error, item.name)
        printed = [output for output in getattr(item, "test_outputs", []) if output.get("text")]
        for output in printed:
            item.add_report_section("call", output["name"], output["text"])
        raise
