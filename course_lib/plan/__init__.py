"""What a step of training will cost, before it runs: a model and a machine as data, a cost for each plan, a
ranking with reasons. `python -m course_lib.plan model.yaml machine.yaml`

    model = plan.describe(module, images)       # or a file, or plan.transformer(layers=96, ...)
    machine = plan.calibrate(ranks=(1, 2))      # measured on this machine, in about half a minute
    plan.cost(plan.Plan("DDP", dp=2), model, machine).seconds
    print(plan.table(plan.ranked(model, machine, plan.here((1, 2)))))

Costs and rankings are arithmetic on plain data and load no torch; measuring and running do.

facts.py        layers, models, links, machines, plans: the data
ways.py         what each way to train sends, cuts and keeps, as data
costs.py        bytes, memory and seconds of one plan
moments.py      the memory of one rank, moment by moment, and the worst of them
ranking.py      all plans for so many ranks, the best first, each with its reason
reading.py      a model read off an nn.Module
calibration.py  a machine measured by ranks
trials.py       plans that run, by the trainings of course_lib.demo
clusters.py     published models and machines, and what their papers measured
files.py        models and machines in files
__main__.py     the calculator
"""

import importlib

_HOMES = {
    "Layer": "facts",
    "Model": "facts",
    "Link": "facts",
    "Machine": "facts",
    "Plan": "facts",
    "WAYS": "ways",
    "Cost": "costs",
    "cost": "costs",
    "Ranked": "ranking",
    "ranked": "ranking",
    "describe": "reading",
    "calibrate": "calibration",
    "run_plan": "trials",
    "peak": "trials",
    "moments_of": "moments",
    "here": "ranking",
    "layouts": "ranking",
    "table": "ranking",
    "transformer": "clusters",
    "A100": "clusters",
    "H100": "clusters",
    "published_rows": "clusters",
    "read": "files",
}

__all__ = [*_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
