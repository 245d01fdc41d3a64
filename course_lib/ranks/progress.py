"""A sign of life while a job runs: a widget in JupyterLab, a line that rewrites itself in a terminal.

When the job is over one static line stays, the same on every machine, so that nbval can compare it. Of a
check's job nothing stays that can be seen or compared.
"""

import html
import sys
import time
from typing import Any

__all__ = ["Progress", "in_kernel"]

QUIET_S = 1.0  # shorter jobs show nothing while they run
REFRESH_S = 0.2
_WIDGET = "application/vnd.jupyter.widget-view+json"


class Progress:
    """Show how far a job is. Use as a context manager; call `update` as often as you like."""

    def __init__(self, title: str, stays: bool = True):
        """`title`: the static line, for example "train on 4 ranks"; `stays`: when the job is over, too."""
        self.title, self.drawn = title, False
        self._stays, self._begin, self._last = stays, time.monotonic(), 0.0
        self._in_kernel = in_kernel()
        self._handle: Any = None  # IPython's of what is shown, and the widget in it
        self._widget: Any = None

    def __enter__(self) -> "Progress":
        return self

    def update(self, text: str, fraction: float | None = None) -> None:
        """Show `text` beside the title; `fraction` (0 to 1) fills a bar."""
        now = time.monotonic()
        if now - self._begin < QUIET_S or now - self._last < REFRESH_S:
            return
        self._last = now
        if self._in_kernel:
            self._draw_widget(text, fraction)
            self.drawn = True
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{self.title}: {text}\x1b[K")
            sys.stderr.flush()
            self.drawn = True

    def __exit__(self, kind, error, trace) -> None:
        if self._in_kernel:
            from IPython.display import display

            if self._handle is not None:
                self._handle.update(self._line(), raw=True)
                self._widget.close()
            elif self._stays:
                display(self._line(), raw=True)
        elif self.drawn:
            sys.stderr.write(f"\r{self.title}\x1b[K\n" if self._stays else "\r\x1b[K")
            sys.stderr.flush()

    def _line(self) -> dict[str, str]:
        """What stays, as Jupyter takes it. Jupyter cannot take a display away: an empty one shows nothing."""
        return {"text/plain": self.title} if self._stays else {}

    def _draw_widget(self, text: str, fraction: float | None) -> None:
        bar = ""
        if fraction is not None:
            bar = (
                f'<progress value="{fraction:.3f}" max="1" style="width: 12em; vertical-align:'
                ' middle"></progress> '
            )
        shown = (
            f'<span style="color: var(--jp-ui-font-color1)">{html.escape(self.title)}'
            f" {bar}{html.escape(text)}</span>"
        )
        if self._handle is None:
            from IPython.display import display
            from ipywidgets import HTML

            self._widget = HTML(shown)
            view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
            self._handle = display({_WIDGET: view, **self._line()}, raw=True, display_id=True)
        else:
            self._widget.value = shown


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel (and not a terminal or a script)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")
