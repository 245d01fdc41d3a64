"""What a figure shows, in words: for who hears a page and does not see it, or where a picture cannot load.

IPython keeps the words with the picture (`metadata["image/png"]["alt"]` of an output), where sites made from
notebooks find them. JupyterLab has no place for them yet: there, a job's tables say the same.
"""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from course_lib.frontend import ipython_shell
from course_lib.plots.units import Unit

__all__ = ["in_words", "tell", "tell_in_words"]

MOST_SERIES = 12  # what is named one by one
_told: WeakKeyDictionary[Axes, list[str]] = WeakKeyDictionary()


def in_words(figure: Figure) -> str:
    """Titles, axes, and each named series with its smallest and largest value, panel by panel."""
    return " ".join(text for ax in figure.axes if ax.get_visible() and (text := _panel(ax)))


def tell(ax: Axes, *sentences: str) -> None:
    """Of a panel that draws no values, what is to be said besides its title."""
    _told.setdefault(ax, []).extend(sentences)


def tell_in_words() -> None:
    """From here on each figure that this notebook shows carries its words. Elsewhere nothing happens."""
    shell = ipython_shell()
    if shell is None:
        return
    formatter = shell.display_formatter.formatters["image/png"]
    draw = formatter.type_printers.get(Figure)
    if draw is None or hasattr(draw, "told"):
        return

    def with_words(figure: Figure):
        drawn = draw(figure)
        picture, metadata = drawn if isinstance(drawn, tuple) else (drawn, {})
        return picture, {**metadata, "alt": in_words(figure)}

    with_words.told = True
    formatter.for_type(Figure, with_words)


def _panel(ax: Axes) -> str:
    """One panel, as sentences; "" if it has neither a title nor a series."""
    title = _line(ax.get_title("left") or ax.get_title())
    series = [*_series(ax)]
    if not title and not series:
        return ""
    said = [title or "A panel", *map(_line, _told.get(ax, ()))]
    if across := _line(ax.get_xlabel()):
        said.append(f"Across: {across}")
    if upward := _line(ax.get_ylabel()):
        said.append(f"Upward: {upward}")
    said += series[:MOST_SERIES]
    if len(series) > MOST_SERIES:
        said.append(f"and {len(series) - MOST_SERIES} more")
    return (". ".join(said) + ".").replace("?.", "?")  # a title may ask


def _series(ax: Axes) -> Iterable[str]:
    """Each label of the legend, with the extent of all values that are drawn under it, in the unit of their
    axis. Of a line from border to border, the place.
    """
    found: dict[str, list] = {}
    bars = [its for its in ax.containers if isinstance(its, BarContainer)]
    lie = {id(its) for its in bars if getattr(its, "orientation", "vertical") == "horizontal"}
    blocks = [its for its in ax.collections if type(its) is PolyCollection]  # of broken_barh, and bars as one

    def add(label, values, axis) -> None:
        unit = getattr(axis.get_major_formatter(), "unit", None)
        values = numpy.asarray(values, dtype=float) / (unit.size if isinstance(unit, Unit) else 1)
        found.setdefault(str(label), []).append(values)

    upright = []
    for line in ax.lines:
        if line.get_transform() is ax.get_xaxis_transform(which="grid"):
            upright.append(line)
        else:  # beside bars that lie, what counts is how far to the right
            add(
                line.get_label(),
                *((line.get_xdata(), ax.xaxis) if lie or blocks else (line.get_ydata(), ax.yaxis)),
            )
    for its in bars:
        across = id(its) in lie
        sizes = [bar.get_width() if across else bar.get_height() for bar in its]
        add(its.get_label(), sizes, ax.xaxis if across else ax.yaxis)
    for its in blocks:
        add(its.get_label(), [numpy.ptp(path.vertices[:, 0]) for path in its.get_paths()], ax.xaxis)
    named = {label: values for label, values in found.items() if not label.startswith("_")}
    if found and not named and ax not in _told:  # a curve alone needs no legend
        named = {"drawn": [numpy.concatenate(values) for values in found.values()]}
    for label, values in named.items():
        yield f"{_line(label)}: {_extent(numpy.concatenate(values))}"
    for line in upright:
        if not (label := str(line.get_label())).startswith("_"):
            yield f"{_line(label)}{_at(line.get_xdata()[0], ax.xaxis)}"


def _at(place: float, axis: Axis) -> str:
    """Where on an axis; "" if it has words in the place of numbers, and none there."""
    if isinstance(axis.get_major_locator(), FixedLocator):
        words = _line(axis.get_major_formatter()(place))
        return f": at {words}" if words else ""
    return f": at {_extent(numpy.array([place], dtype=float))}"


def _extent(values: numpy.ndarray) -> str:
    values = values[numpy.isfinite(values)]
    if not values.size:
        return "nothing"
    least, most = (
        f"{one:.3g}" if abs(one) < 999.5 else f"{one:,.0f}" for one in (values.min(), values.max())
    )
    return least if least == most else f"{least} to {most}"


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
