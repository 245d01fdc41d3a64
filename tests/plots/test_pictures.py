"""Pictures of who holds what say what the ranks returned: artists are read, not pixels."""

import base64
from html.parser import HTMLParser

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyArrowPatch, Rectangle

from course_lib.plots import pictures

START = [[1, 2, 3], [10, 20, 30], [100, 200, 300]]
SUMS = [[111, 0, 0], [0, 222, 0], [0, 0, 333]]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    plt.close("all")  # of tests before, elsewhere
    yield
    plt.close("all")


def numbers(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text().isdigit()]


def filled(ax) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_fill()]


def framed(ax) -> list[tuple[int, int]]:
    """(rank, chunk) of the boxes that are marked as changed."""
    return [
        (round((box.get_y() + box.get_height() / 2) / 1.5), round(box.get_x()))
        for box in ax.patches
        if isinstance(box, Rectangle) and not box.get_fill() and box.get_linewidth() > 1.5
    ]


@pytest.mark.parametrize(
    "value, ranks",
    [(0, []), (4, [0]), (300, [2]), (3303, [0, 2, 3]), (1111.0, [0, 1, 2, 3]), (50_000_000, [7])],
)
def test_digits_tell_the_ranks(value, ranks):
    assert pictures.sources(value) == ranks


def test_collective_shows_every_value_and_leaves_nothing_empty_that_is_not():
    ax = pictures.collective("reduce_scatter", "each rank gets one piece of the sum", START, SUMS)
    assert numbers(ax) == ["1", "2", "3", "111", "10", "20", "30", "222", "100", "200", "300", "333"]
    assert len(filled(ax)) == 9 + 3 * 3, "one colour for a piece of one rank, three for a sum of three"
    assert len({patch.get_facecolor() for patch in filled(ax)}) == 3
    assert ax.get_title(loc="left") == "reduce_scatter"
    assert sum(isinstance(patch, FancyArrowPatch) for patch in ax.patches) == 1


def test_axes_in_axes_out():
    figure, ax = plt.subplots()
    assert pictures.collective("gather", "", START, SUMS, ax=ax) is ax
    assert pictures.ring(pictures.RingStep("start", START, None), ax=ax) is ax
    assert plt.get_fignums() == [figure.number]


def test_ring_marks_what_was_sent_and_what_it_changed():
    step = pictures.RingStep("step 1 of 2", [[1, 202, 3], [10, 20, 33], [110, 200, 300]], sent=[2, 0, 1])
    ax = pictures.ring(step)
    assert framed(ax) == [
        (0, 1),
        (1, 2),
        (2, 0),
    ], "rank 0 sent chunk 2 to rank 1, rank 1 chunk 0 to rank 2, rank 2 chunk 1 to rank 0"
    assert sum(isinstance(patch, FancyArrowPatch) for patch in ax.patches) == 4, (
        "the one that goes round is drawn where it leaves and where it comes in"
    )
    assert "to rank 0" in [text.get_text() for text in ax.texts]
    before = pictures.ring(pictures.RingStep("start", START, None))
    assert not framed(before) and "to rank 0" not in [text.get_text() for text in before.texts]


def test_notes_of_ranks_become_steps():
    notes = [
        [("start", None, [1, 2]), ("step 1", 1, [1, 2])],
        [("start", None, [10, 20]), ("step 1", 0, [10, 22])],
    ]
    assert pictures.ring_steps(notes) == [
        pictures.RingStep("start", [[1, 2], [10, 20]], None),
        pictures.RingStep("step 1", [[1, 2], [10, 22]], [1, 0]),
    ]
    with pytest.raises(ValueError):
        pictures.ring_steps([notes[0], notes[1][:1]])


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    """What `display` got, by MIME type."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda *given, **options: bundles.extend(given))
    return bundles


class Tags(HTMLParser):
    """The tags of a text in HTML with their attributes, by name."""

    def __init__(self, text: str):
        super().__init__()
        self.found: dict[str, list[dict]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))


def draw_step(number: int):
    return pictures.ring(pictures.RingStep(f"picture <{number}>", START, None), "3 ranks")


def test_slider_draws_each_picture_once_and_needs_no_kernel_and_no_network(shown):
    drawn = []
    pictures.slider(lambda number: drawn.append(number) or draw_step(number), 3)
    (bundle,) = shown
    assert drawn == [0, 1, 2]
    tags = Tags(bundle["text/html"]).found
    files = [image["src"].removeprefix("data:image/png;base64,") for image in tags["img"]]
    assert len(set(files)) == 3 and all(base64.b64decode(file).startswith(b"\x89PNG") for file in files)
    assert [("hidden" in image) for image in tags["img"]] == [False, True, True]
    (bar,) = tags["input"]
    assert (bar["type"], bar["min"], bar["max"], bar["value"]) == ("range", "0", "2", "0")
    assert "http" not in bundle["text/html"] and "script" not in tags
    assert bundle["image/png"] == files[0], "where no HTML is shown"
    assert not plt.get_fignums(), "a figure that stays open is shown a second time under the cell"


def test_slider_can_be_read_aloud_and_hides_its_controls_where_they_cannot_work(shown):
    pictures.slider(draw_step, 2)
    tags = Tags(shown[0]["text/html"]).found
    assert [image["alt"] for image in tags["img"]] == [
        f"picture <{number}>, 3 ranks, chunk 0, chunk 1, chunk 2,"
        " rank 0, 1, 2, 3, rank 1, 10, 20, 30, rank 2, 100, 200, 300"
        for number in (0, 1)
    ]
    assert tags["input"][0]["aria-label"] and "aria-valuetext" in tags["input"][0]["oninput"]
    assert "hidden" in tags["div"][0] and "hidden = false" in tags["img"][0]["onload"]
    assert shown[0]["text/plain"] == "(a slider steps through 2 pictures)"


def test_slider_is_small_enough_to_be_stored(shown):
    pictures.slider(draw_step, 7)
    assert sum(map(len, shown[0].values())) < 1_000_000


def test_slider_refuses_what_draws_no_axes(shown):
    with pytest.raises(TypeError, match="^what draw returns=3: it must be an Axes"):
        pictures.slider(lambda number: 3, 2)
    assert not shown


def test_an_equation_gives_each_rank_its_part_of_each_matrix():
    ax = plt.subplots()[1]
    parts = [("X", 2, 3, "whole"), "·", ("A", 3, 4, "columns"), ("B", 4, 3, "rows"), "=", ("Z", 2, 3, "sum")]
    assert pictures.equation("two products", "by hand", *parts, ax=ax) is ax
    names = [text.get_text() for text in ax.texts]
    assert names[-8:] == ["X", "·", "$A_0$", "$A_1$", "$B_0$", "$B_1$", "=", "$Z_0 + Z_1$"]
    x, a0, a1, b0, b1, z0, z1 = filled(ax)
    assert (x.get_width(), a0.get_width(), a0.get_height()) == (3, 2, 3)
    assert (b0.get_width(), b0.get_height()) == (3, 2) and b0.get_y() > b1.get_y(), (
        "rank 0 has the upper rows"
    )
    assert (z0.get_width(), z0.get_height()) == (z1.get_width(), z1.get_height()) == (3, 2)
    colors = [part.get_facecolor() for part in (x, a0, a1, b0, b1, z0, z1)]
    assert colors[1] == colors[3] == colors[5] != colors[2] == colors[4] == colors[6] != colors[0]


def test_an_equation_knows_four_cuts():
    with pytest.raises(
        ValueError, match="^cut='diagonal': it must be one of 'whole', 'columns', 'rows', 'sum'"
    ):
        pictures.equation("", "", ("A", 1, 1, "diagonal"))
