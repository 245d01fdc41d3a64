"""A mesh in figures: messages have the colour of their axis, and a host is drawn around its ranks."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from test_plots import make_job

from course_lib import plots
from course_lib.mini import hybrid
from course_lib.plots import described, pictures

SQUARE = {"dp": 2, "tp": 2}
GROUPS = {axis: hybrid.axis_groups(axis, SQUARE) for axis in SQUARE}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def job_on_a_mesh():
    """On each of four ranks a sum along tp, one along dp, and one of all."""
    job = make_job(ranks=4)
    comm, timeline = [], []
    for rank in range(4):
        row, column = (next(ranks for ranks in GROUPS[axis] if rank in ranks) for axis in ("tp", "dp"))
        for number, ranks in enumerate((row, column, range(4))):
            name, start_s = "all_reduce", 0.01 * number
            call = dict(job.records["comm"][0], rank=rank, group=",".join(map(str, ranks)), start_s=start_s)
            comm.append(call | {"op": name, "group_size": len(ranks)})
            piece = {"rank": rank, "kind": "communication", "name": name, "start_s": start_s, "seconds": 0.01}
            timeline.append(piece)
        timeline.append({"rank": rank, "kind": "backward", "name": "", "start_s": 0.0, "seconds": 0.03})
    return replace(job, records={**job.records, "comm": comm, "timeline": timeline})


def drawn(ax) -> dict[str, str]:
    handles, labels = ax.get_legend_handles_labels()
    return {
        label: to_hex(handle.patches[0].get_facecolor()).upper() for handle, label in zip(handles, labels)
    }


def test_messages_along_an_axis_have_its_colour():
    told = drawn(plots.timeline(job_on_a_mesh(), groups=GROUPS))
    wanted = {name: plots.COLORS[name] for name in ("backward", "tp", "dp", "all_reduce")}
    assert told == wanted, "and who is on no axis keeps the colour of its kind"
    assert len(set(wanted.values())) == 4


def test_without_groups_nothing_is_called_by_an_axis():
    assert set(drawn(plots.timeline(job_on_a_mesh()))) == {"backward", "all_reduce"}


@pytest.mark.parametrize("hosts", [GROUPS["tp"], GROUPS["dp"]], ids=["rows", "columns"])
def test_a_host_is_drawn_around_its_ranks_alone(hosts):
    places = [hybrid.coordinates(rank, SQUARE) for rank in range(4)]
    ax = pictures.mesh("A mesh", "", places, GROUPS, hosts=hosts)
    assert "groups: nothing" not in described.in_words(ax.figure), "a legend's bands are no empty series"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"{axis} groups" for axis in GROUPS]
    *_, one, other = [patch for patch in ax.patches if type(patch) is Rectangle]
    assert {"host 0", "host 1"} <= {text.get_text() for text in ax.texts}
    spots = {text.get_text(): text.get_position() for text in ax.texts}
    for border, ranks in zip((one, other), hosts):
        (left, top), width, height = border.get_xy(), border.get_width(), border.get_height()
        inside = [
            rank
            for rank in range(4)
            if left < spots[f"rank {rank}"][0] < left + width
            and top < spots[f"rank {rank}"][1] < top + height
        ]
        assert inside == list(ranks)
