"""What README shows works as it stands there."""

import re
from pathlib import Path

import matplotlib.pyplot

matplotlib.use("Agg")

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "example"}
    matplotlib.pyplot.close("all")
    exec(example, names)
    job = names["job"]
    assert len(job.results) == 4 and not job.comm.empty and not job.memory.empty and not job.steps.empty
    assert len(matplotlib.pyplot.get_fignums()) == 3
    matplotlib.pyplot.close("all")
