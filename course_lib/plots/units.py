"""Bytes and seconds as a figure says them: all bytes of one axis in one unit, with three digits."""

from dataclasses import dataclass

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator

from course_lib.arguments import number

__all__ = ["Unit", "time_in_words"]


@dataclass(frozen=True)
class Unit:
    """The unit of an axis: its name, and how many bytes it is."""

    name: str
    size: float

    @classmethod
    def of(cls, largest_bytes: float) -> "Unit":
        """The unit in which the largest number of a figure reads well."""
        sizes = {"GB": 1e9, "MB": 1e6, "KB": 1e3}
        return next(
            (cls(name, size) for name, size in sizes.items() if largest_bytes >= size), cls("bytes", 1)
        )

    def number(self, value_bytes: float) -> str:
        """Three significant digits without the unit's name; whole bytes as they are."""
        count = value_bytes / self.size
        if self.size == 1 or count == 0 or count >= 999.5:
            return f"{count:,.0f}"
        return f"{count:#.3g}".rstrip(".")

    def text(self, *values_bytes: float) -> str:
        """A number with its unit; of several that differ the lowest and the highest."""
        low, high = self.number(min(values_bytes)), self.number(max(values_bytes))
        return f"{low} {self.name}" if low == high else f"{low} to {high} {self.name}"

    def ticks(self, axis: Axis) -> None:
        """Write the axis in this unit. (EngFormatter would choose a unit for each tick.)"""
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        formatter = FuncFormatter(lambda value, _: f"{value / self.size:,.6g}")
        formatter.unit = self  # for who says in words what is drawn
        axis.set_major_formatter(formatter)


def time_in_words(seconds: float) -> str:
    """Three significant digits in the unit that reads well, from µs to days: "1.25 ms", "3 h"."""
    number("seconds", seconds)
    least = {
        "days": (2 * 86_400, 86_400),
        "h": (3600, 3600),
        "min": (60, 60),
        "s": (1, 1),
        "ms": (1e-3, 1e-3),
    }
    for name, (from_s, size) in least.items():
        if seconds >= 0.9995 * from_s:
            return f"{_digits(seconds / size)} {name}"
    return f"{_digits(seconds * 1e6)} µs"


def _digits(count: float) -> str:
    return f"{count:.3g}" if count < 999.5 else f"{count:,.0f}"
