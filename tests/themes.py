"""The colours of JupyterLab's own themes, and how well one can be read on another."""

import re
from pathlib import Path

from jupyterlab.commands import get_app_dir

THEMES = ("light", "dark")
LEGIBLE = 4.5  # WCAG 2.2, 1.4.3 (AA)

Colour = tuple[float, float, float]


def colour(theme: str, name: str) -> str:
    """What a theme has for a CSS variable, such as "--jp-layout-color0"."""
    css = Path(get_app_dir(), "themes", "@jupyterlab", f"theme-{theme}-extension", "index.css").read_text()
    value = re.search(rf"{name}:\s*([^;}}]+)[;}}]", css).group(1)
    inner = re.fullmatch(r"var\((--[\w-]+)(?:,\s*(.+))?\)", value)
    return (inner.group(2) or colour(theme, inner.group(1))) if inner else value


def seen(value: str, ground: Colour = (255, 255, 255)) -> Colour:
    """A colour of CSS, on this ground where one can see through it."""
    value = {"white": "#ffffff", "black": "#000000"}.get(value, value)
    if value.startswith("#"):
        digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
        return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))
    *rgb, alpha = map(float, re.findall(r"[\d.]+", value))
    return tuple(alpha * part + (1 - alpha) * under for part, under in zip(rgb, ground))


def contrast(one: Colour, other: Colour) -> float:
    """1 (the same) to 21 (black on white)."""
    lights = sorted(map(_luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(rgb: Colour) -> float:
    parts = [part / 255 for part in rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
