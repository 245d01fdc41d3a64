"""A drawn schedule says what the blocks, or the spans of a job, say: artists are read, not pixels."""

from collections import Counter

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.collections import PolyCollection
from test_plots import make_job

from course_lib import plots
from course_lib.mini.pipeline import on_paper


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def drawn(ax) -> list[tuple[float, float, int]]:
    """Begin, length and rank of each block; without the lanes behind them."""
    boxes = [path.get_extents() for path in blocks_of(ax).get_paths()]
    return sorted((box.x0, box.width, round((box.y0 + box.y1) / 2)) for box in boxes)


def blocks_of(ax) -> PolyCollection:
    (blocks,) = (artist for artist in ax.collections if isinstance(artist, PolyCollection))
    return blocks


def numbers_of(ax) -> list:
    return [its for its in ax.collections if (its.get_gid() or "").startswith("micro-batch ")]


def is_dashed(ax) -> bool:
    return all(dashes is not None for _, dashes in blocks_of(ax).get_linestyle())


@pytest.mark.parametrize("kind, chunks", [("1f1b", 1), ("interleaved", 2), ("zb_h1", 1)])
def test_every_block_is_there_with_its_number(kind, chunks):
    blocks = on_paper.blocks(kind, 4, 8, chunks)
    ax = plots.schedule(blocks, kind)
    asked = sorted((block.begin, block.end - block.begin, block.rank) for block in blocks)
    assert drawn(ax) == [pytest.approx(block) for block in asked]
    wanted = Counter(f"micro-batch {block.microbatch}" for block in blocks)
    assert Counter(its.get_gid() for its in numbers_of(ax) for _ in its.get_offsets()) == wanted
    written = {(round(x, 6), round(rank)) for its in numbers_of(ax) for x, rank in its.get_offsets()}
    assert written == {(round((block.begin + block.end) / 2, 6), block.rank) for block in blocks}
    assert any("modelled" in text.get_text() for text in ax.texts)
    assert is_dashed(ax)
    shades = set(map(tuple, blocks_of(ax).get_facecolor()))
    assert len(shades) == chunks * len({block.op for block in blocks})


def test_all_numbers_are_written_or_none():
    few, many = (plots.schedule(on_paper.blocks("interleaved", 4, m, 4), "") for m in (4, 64))
    counts = [sum(len(its.get_offsets()) for its in numbers_of(ax)) for ax in (few, many)]
    assert counts == [2 * 4 * 4 * 4, 0]


def test_a_job_is_drawn_from_its_spans():
    job = make_job()
    rows = [
        {"rank": 0, "kind": "span", "name": "F0@0", "start_s": 5.0, "seconds": 0.010},
        {"rank": 1, "kind": "span", "name": "I0@3", "start_s": 5.02, "seconds": 0.020},
        {"rank": 1, "kind": "span", "name": "mine", "start_s": 5.0, "seconds": 0.5},
    ]
    ax = plots.schedule(type(job)(**{**vars_of(job), "records": {**job.records, "timeline": rows}}))
    assert drawn(ax) == [pytest.approx((0, 10, 0)), pytest.approx((20, 20, 1))]
    assert not is_dashed(ax)


def vars_of(job) -> dict:
    return {field: getattr(job, field) for field in job.__dataclass_fields__}


def test_nothing_is_no_schedule():
    with pytest.raises(ValueError, match="a list of blocks on paper"):
        plots.schedule([], "")
