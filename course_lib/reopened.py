"""A widget in a notebook, and what stands in its place when the notebook is opened again without its kernel.

JupyterLab says "Error displaying widget: model not found" then, whatever else the widget's output holds. So
another output follows it, which nobody sees while the widget lives. A style in it hides a widget that has no
model any more, or no kernel, and shows what stands instead. (Seen in JupyterLab 4.6 with jupyterlab_widgets
3.0.) Where no widget can be shown, neither is the other: there the widget's output has a line of text.
"""

from typing import Any

__all__ = ["Display"]

_WIDGET = "application/vnd.jupyter.widget-view+json"
_DEAD = ":is(.jp-OutputArea-output.jupyter-widgets, .jupyter-widgets-disconnected)"
_CHILD, _INSTEAD = ".jp-OutputArea-child", ".course-lib-instead"
_STYLE = (
    f"{_CHILD}:has({_DEAD}):has(+ {_CHILD} {_INSTEAD}) {{ display: none !important }} "
    f"{_CHILD}:has({_DEAD}) + {_CHILD} {_INSTEAD} {{ display: block !important }}"
)


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

    def end(self, bundle: dict[str, str]) -> None:
        """Put `bundle` in the widget's place now. Jupyter cannot take a display away: an empty one shows
        nothing.
        """
        self._shown.update(bundle, raw=True)
        if self._below is not None:
            self._below.update({}, raw=True)
        _close(self._widget)


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
