"""Meshes on real ranks: groups, equal to one process along every combination of axes, bytes of each axis, and
the modelled link.
"""

import functools
import math

import hybrid_workers
import matplotlib.pyplot as plt
import pytest

from course_lib import plots, run, theory
from course_lib.mini import hybrid
from course_lib.plots import pictures

ERROR_LIMIT, WIRE_LIMIT = 1e-6, 0.03
TWO, PIPES, CUBE = {"dp": 2, "tp": 2}, {"dp": 2, "pp": 2, "tp": 1}, {"dp": 2, "pp": 2, "tp": 2}


@functools.cache
def alone():
    return run(hybrid_workers.one_process, ranks=1, backend="gloo").results[0]


def error(job) -> float:
    """The largest error of a rank's weights, over the distance that training has moved them."""
    start, wanted = alone()
    moved = math.sqrt(sum((wanted[name] - start[name]).square().sum() for name in wanted))
    assert moved > 0 and set().union(*job.results) == set(wanted), "every weight is compared"
    return (
        max(
            math.sqrt(sum((weights[name] - wanted[name]).square().sum() for name in weights))
            for weights in job.results
        )
        / moved
    )


def by_axis(job, sizes) -> dict[int, dict[str, float]]:
    """Bytes that each rank sends along each axis; every collective must be within a group of the mesh."""
    axis_of = {
        ",".join(map(str, ranks)): axis
        for axis in sizes
        if sizes[axis] > 1
        for ranks in hybrid.axis_groups(axis, sizes)
    }
    sent = {rank: dict.fromkeys(sizes, 0.0) for rank in range(job.ranks)}
    for row in job.comm.itertuples():
        if row.group_size > 1:
            sent[row.rank][axis_of[row.group]] += theory.gloo_bytes(row.op, row.payload_bytes, row.group_size)
    return sent


def assert_sum_is_the_wire(job, sent) -> None:
    wire = job.steps[job.steps["phase"] == "traced"].set_index("rank")["wire_bytes"]
    if wire.isna().any():
        pytest.skip("this operating system does not count what one process sends")
    for rank, axes in sent.items():
        assert sum(axes.values()) == pytest.approx(wire[rank], rel=WIRE_LIMIT), (rank, axes)


# -- coordinates and groups


@pytest.mark.parametrize(
    "sizes",
    [{"dp": 4}, TWO, {"dp": 2, "tp": 4}, {"dp": 3, "pp": 2, "tp": 2}, {"dp": 2, "cp": 1, "pp": 3, "tp": 2}],
    ids=str,
)
def test_groups_of_an_axis_differ_in_it_alone_and_have_every_rank_once(sizes):
    count = math.prod(sizes.values())
    places = [hybrid.coordinates(rank, sizes) for rank in range(count)]
    assert len({tuple(place.values()) for place in places}) == count
    assert places == sorted(places, key=lambda place: tuple(place.values())), "the last axis is the fastest"
    for axis in sizes:
        groups = hybrid.axis_groups(axis, sizes)
        assert sorted(rank for group in groups for rank in group) == list(range(count))
        for group in groups:
            assert [places[rank][axis] for rank in group] == list(range(sizes[axis]))
            assert (
                len({tuple(place for name, place in places[rank].items() if name != axis) for rank in group})
                == 1
            )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="dp 2 x tp 2 has the ranks 0 to 3"):
        hybrid.coordinates(4, TWO)
    with pytest.raises(ValueError, match="'dp', 'tp'"):
        hybrid.axis_groups("pp", TWO)


def test_process_groups_are_torchs_and_work():
    sizes = {"dp": 3, "pp": 1, "tp": 2}
    for rank, found in enumerate(run(hybrid_workers.groups, sizes, ranks=6, backend="gloo").results):
        assert found["place"] == hybrid.coordinates(rank, sizes)
        for axis, (own, torchs, total) in found["groups"].items():
            assert (
                own == torchs and rank in own and own in hybrid.axis_groups(axis, sizes) and total == sum(own)
            )


# -- equal to one process, and the bytes of each axis


def test_data_and_tensor_equal_one_process_and_their_bytes_add_up():
    job = run(hybrid_workers.data_tensor, TWO, ranks=4, backend="gloo")
    assert error(job) < ERROR_LIMIT
    sent = by_axis(job, TWO)
    held = job.memory[job.memory["category"] == "params"].set_index("rank")["bytes"]
    b, s, h = hybrid_workers.BATCH // 2, hybrid_workers.CONTEXT, 64
    for rank, axes in sent.items():
        assert axes["dp"] == theory.collective_bytes("all_reduce", held[rank], 2)
        assert axes["tp"] == 2 * theory.tensor_parallel_bytes(b, s, h, 2, 8) + (2 * b * s * h + 3 * b * s) * 8
    assert_sum_is_the_wire(job, sent)


@pytest.mark.parametrize("wrong", ["all", "tp"])
def test_averages_over_another_axis_are_far_from_one_process(wrong):
    assert error(run(hybrid_workers.data_tensor, TWO, wrong, ranks=4, backend="gloo")) > 0.1


@pytest.mark.parametrize("sizes, ranks", [(PIPES, 4), (CUBE, 8)], ids=["2x2", "2x2x2"])
def test_pipelines_on_a_mesh_equal_one_process_and_their_bytes_add_up(sizes, ranks):
    job = run(hybrid_workers.data_pipeline_tensor, sizes, 2, ranks=ranks, backend="gloo")
    assert error(job) < ERROR_LIMIT
    sent = by_axis(job, sizes)
    held = job.memory[job.memory["category"] == "params"].set_index("rank")["bytes"]
    for rank, axes in sent.items():
        assert axes["pp"] == hybrid_workers.BATCH // 2 * hybrid_workers.CONTEXT * 64 * 8, (
            "each sends one tensor per micro-batch"
        )
        assert axes["dp"] == theory.collective_bytes("all_reduce", held[rank], 2)
    assert_sum_is_the_wire(job, sent)


def test_hybrid_sharding_equals_one_process_and_only_gradients_leave_the_row():
    job = run(hybrid_workers.hybrid_sharding, (2, 2), ranks=4, backend="gloo")
    assert error(job) < ERROR_LIMIT
    sent, sizes = (
        by_axis(job, {"replicate": 2, "shard": 2}),
        job.memory.pivot(index="rank", columns="category", values="bytes"),
    )
    for rank, axes in sent.items():
        assert axes["replicate"] == theory.collective_bytes("all_reduce", sizes["grads"][rank], 2)
    assert_sum_is_the_wire(job, sent)


# -- the modelled link


def test_only_what_crosses_hosts_waits_for_the_link():
    numel = 100_000
    # through the link; what does not wait may be late on a busy machine: then once more, with a slower link
    for needs_s in (0.1, 0.4, 1.6, 6.4):
        told = run(
            hybrid_workers.through_a_slow_link, numel, numel * 4 / needs_s, ranks=4, backend="gloo"
        ).results
        for found in told:
            assert found["across"] >= needs_s and found["two"] >= 2 * needs_s, (
                "two messages pass one after the other"
            )
        if all(max(found["inside"], found["launched"], found["afterwards"]) < needs_s for found in told):
            break
    for found in told:
        assert found["inside"] < needs_s and found["afterwards"] < needs_s
        assert found["launched"] < needs_s, "the rank goes on meanwhile"
        assert found["sums"] == [[2.0]] * 4
        missing, double, flat, stopped = found["refused"]
        assert (
            missing == "hosts=[[0, 1], [2]]: every rank of the job must be on one host, 0 to 3."
            and double.endswith(missing[len("hosts=[[0, 1], [2]]") :])
        )
        assert (
            flat == "hosts=[0, 1, 2, 3]: it must be a list of hosts, each a list of ranks."
            and stopped.startswith("bytes_per_s=0:")
        )


# -- the picture


def colors_of(ax) -> dict[str, str]:
    return {
        text.get_text(): line.get_color()
        for text, line in zip(ax.get_legend().get_texts(), ax.get_legend().get_lines())
    }


@pytest.mark.parametrize("sizes", [{"dp": 3}, TWO, CUBE], ids=str)
def test_the_picture_has_a_box_per_rank_and_a_band_between_neighbours(sizes):
    count = math.prod(sizes.values())
    places = [hybrid.coordinates(rank, sizes) for rank in range(count)]
    ax = pictures.mesh("A mesh", "", places, {axis: hybrid.axis_groups(axis, sizes) for axis in sizes})
    boxes = [patch for patch in ax.patches if type(patch).__name__ == "Rectangle"]
    bands = [patch for patch in ax.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(boxes) == count and len({box.get_xy() for box in boxes}) == count
    assert len(bands) == sum(count // size * (size - 1) for size in sizes.values())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"{axis} groups" for axis in sizes]
    assert colors_of(ax) == {f"{axis} groups": plots.COLORS[axis] for axis in sizes}, "one colour for an axis"
    assert {f"rank {rank}" for rank in range(count)} <= {text.get_text() for text in ax.texts}
    plt.close(ax.figure)
