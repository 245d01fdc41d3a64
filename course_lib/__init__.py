"""Run real ranks from a notebook cell, measure them in one ledger, and draw them beside the theory.

    from course_lib import run, sweep, measure, plots, theory

The names load when they are first used, so that a rank, which needs `measure` alone, never pays for pandas or
matplotlib.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "run": "jobs",
    "sweep": "jobs",
    "RankWarning": "jobs",
    "Job": "record",
    "Sweep": "record",
    "sent": "record",
    "held": "record",
    "calls": "record",
    "step_seconds": "record",
    "samples_per_second": "record",
    "overlap": "record",
    "bubble": "record",
    "span_seconds": "record",
    "parity": "record",
    "RankError": "ranks.errors",
    "last_error": "ranks.errors",
    "about": "environment",
    "predict": "learner.predictions",
    "where_i_stand": "learner.standing",
}
_MODULES = (
    "measure",
    "plots",
    "theory",
    "models",
    "datasets",
    "mini",
    "check",
    "hosts",
    "plan",
    "explore",
)

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str):
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
