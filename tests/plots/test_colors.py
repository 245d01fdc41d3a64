"""Colours that stand side by side can be told apart, also by readers who see no red or no green."""

import itertools

import numpy
import pytest
from matplotlib.colors import to_rgb

from course_lib.collectives import COLLECTIVES
from course_lib.plots.pictures.boxes import rank_color
from course_lib.plots.styles import COLORS, INK

# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency" (2009), table 1, severity 1.0: of linear red, green and blue
SIGHT = {
    "all colours": numpy.eye(3),
    "deuteranopia": numpy.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": numpy.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
TO_XYZ = numpy.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]])
APART = 10.0  # in CIELAB; about 2 is the least that can be seen
RANKS = [rank_color(rank) for rank in range(8)]
SIDE_BY_SIDE = {
    "ranks": RANKS,
    "kinds of memory": [
        COLORS[kind] for kind in ("params", "grads", "optimizer_states", "activations", "buffers", "other")
    ],
    "computing": [COLORS[kind] for kind in ("forward", "backward", "optimizer")],
    "axes": [COLORS[axis] for axis in ("dp", "tp", "pp", "cp", "ep")],
    "collectives": [row.color for row in COLLECTIVES.values()],
}


def linear(color: str) -> numpy.ndarray:
    channels = numpy.array(to_rgb(color))
    return numpy.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def seen(color: str, sight: numpy.ndarray) -> numpy.ndarray:
    """A colour in CIELAB, as someone with this sight sees it."""
    xyz = TO_XYZ @ numpy.clip(sight @ linear(color), 0, 1) / (0.95047, 1.0, 1.08883)
    x, y, z = numpy.where(xyz > 0.008856, numpy.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return numpy.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, sight: str) -> float:
    return float(numpy.linalg.norm(seen(one, SIGHT[sight]) - seen(other, SIGHT[sight])))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("what", SIDE_BY_SIDE)
def test_colors_that_stand_side_by_side_are_told_apart(what, sight):
    pairs = itertools.combinations(SIDE_BY_SIDE[what], 2)
    near = {pair: apart for pair in pairs if (apart := distance(*pair, sight)) < APART}
    assert not near


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_four_ranks_are_far_apart(sight):
    assert min(distance(*pair, sight) for pair in itertools.combinations(RANKS[:4], 2)) > 1.8 * APART


def test_the_simulation_takes_away_what_it_should():
    assert (
        distance("#FF1010", "#10B010", "all colours")
        > 100
        > 4 * distance("#B04000", "#707000", "deuteranopia")
    )
    for sight in SIGHT:  # greys stay what they are
        assert numpy.allclose(seen("#808080", SIGHT[sight]), seen("#808080", numpy.eye(3)), atol=0.1)


@pytest.mark.parametrize("color", RANKS)
def test_what_is_written_on_a_ranks_color_can_be_read(color):
    light, dark = (float(TO_XYZ[1] @ linear(one)) for one in (color, INK))
    assert (light + 0.05) / (dark + 0.05) > 4.5
