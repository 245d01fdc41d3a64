"""Figures that answer "what if": at most three controls, a picture, and a table of the same numbers.

    from course_lib import explore

    explore.memory(job)          # beside what your own job held
    explore.collectives(alpha_s, bytes_per_s)  # with the latency and bandwidth that you have measured

In JupyterLab the controls are widgets, which the keyboard moves. Elsewhere, and in a stored notebook, one
state is shown: that of the start, or of `.at(ranks=64)`. All numbers come from `theory`, from `plan` and from
the lists of `mini.pipeline`: modelled, and drawn so; only what a job has measured is drawn as measured.

panel.py       the frame: controls, a picture and its table, drawn anew at each move
by_keyboard.py  buttons beside each control, one step back and one step on
states.py      memory per rank
links.py       seconds of an all_reduce
buckets.py     a step whose gradients travel in buckets
lists.py       schedules of a pipeline, which run at the push of a button
axes.py        a mesh of ranks, and the bytes along each axis
plans.py       the best plans for a model and a machine
servers.py     staleness and speed of a parameter server
intervals.py   how often to save
"""

import importlib

_HOMES = {
    "Explorer": "panel",
    "memory": "states",
    "collectives": "links",
    "overlap": "buckets",
    "schedules": "lists",
    "mesh": "axes",
    "planner": "plans",
    "staleness": "servers",
    "checkpoints": "intervals",
}

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
