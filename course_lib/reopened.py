"""A widget in a notebook, and what stands in its place when the notebook is opened again without its kernel.

JupyterLab says "Error displaying widget: model not found" then, whatever else the widget's output holds. So
another output follows it, which nobody sees while the widget lives. A style in it hides a widget that has no
model any more, or no kernel, and shows what stands instead. (Seen in JupyterLab 4.6 with jupyterlab_widgets
3.0.) Where no widget can be shown, neither is the other: there the widget's output has a line of text.

A page that is closed while a cell runs and opened again gets no output of this cell any more: it has those
that were saved, and only a widget among them can still change.
"""

from collections import deque
from typing import Any

__all__ = ["Display"]

_WIDGET = "application/vnd.jupyter.widget-view+json"
# without a model; with one that was closed while the page was open; without a kernel
_DEAD = (
    ":is(.jp-OutputArea-output.jupyter-widgets, .jp-OutputArea-output.lm-mod-hidden,"
    " .jupyter-widgets-disconnected)"
)
_CHILD, _INSTEAD = ".jp-OutputArea-child", ".course-lib-instead"
_STYLE = (
    f"{_CHILD}:has({_DEAD}):has(+ {_CHILD} {_INSTEAD}) {{ display: none !important }} "
    f"{_CHILD}:has({_DEAD}) + {_CHILD} {_INSTEAD} {{ display: block !important }}"
)

LATE = 8  # so many widgets are kept for pages that are opened again
_late: deque[Any] = deque()


class Display:
    """A widget that is displayed, until it is taken away.

    Args:
        widget: of ipywidgets.
        line: text in place of the widget for whatever shows none, and what is compared; "": none.
        instead: HTML, to be seen when the notebook is opened again and the widget is gone; "": nothing is,
            and no other output follows the widget's.
    """

    def __init__(self, widget: Any, line: str, instead: str = ""):
        from IPython.display import display

        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        text = {"text/plain": line} if line else {}
        self._widget = widget
        self._shown = display({_WIDGET: view} | text, raw=True, display_id=True)
        self._below = display(_hidden(instead), raw=True, display_id=True) if instead else None

    def tell_instead(self, instead: str) -> None:
        """Change what stands in the widget's place when it is gone."""
        if self._below is not None:
            self._below.update(_hidden(instead), raw=True)

    def end(self, bundle: dict[str, str], late: str = "") -> None:
        """Put `bundle` in the widget's place now. Jupyter cannot take a display away: an empty one shows
        nothing.

        `late`: HTML for a page that was closed and opened again, and hears of no output: the widget, a box,
        shows it there until some others have ended, too.
        """
        self._shown.update(bundle, raw=True)
        if self._below is not None:
            self._below.update({}, raw=True)
        if not late:
            _close(self._widget)
            return
        import ipywidgets as widgets

        parts, self._widget.children = self._widget.children, [widgets.HTML(late)]
        for part in parts:
            _close(part)
        _late.append(self._widget)
        if len(_late) > LATE:
            _close(_late.popleft())


def _close(widget: Any) -> None:
    """Close a widget, and then all that stands in it.

    A box that is open and holds a closed widget has no state any more. For a page that is opened again while
    the kernel runs, JupyterLab asks for the states of all widgets at once, and would show none of them.
    """
    widget.close()
    for part in getattr(widget, "children", ()):
        _close(part)


def _hidden(instead: str) -> dict[str, str]:
    page = f'<div class="course-lib-instead" style="display: none">{instead}</div>'
    return {"text/html": f"<style>{_STYLE}</style>{page}"}
