"""What is seen of a job in a notebook while it runs: its ranks, and a button that cancels it.

The kernel is busy in `run` all that time, so a click is heard only where the frontend sends it to another
thread of the kernel (a subshell: JupyterLab from 4.4 on, with ipykernel 7). Whether it does is tried, not
guessed: the frontend tells the kernel that it has drawn the button, and the button can be seen once that was
heard while the job runs. Elsewhere there is none, and one interrupts the kernel.
"""

import html
import threading

from course_lib.frontend import is_seen
from course_lib.reopened import Display

__all__ = ["Panel", "Cancelled"]


class Cancelled(KeyboardInterrupt):
    """The learner has clicked on Cancel."""


class Panel:
    """A widget of what a job does now: a line, and below it a page of HTML. `stays`: the text that stays."""

    def __init__(self, stays: str):
        import ipywidgets as widgets

        self._clicked, self._heard = threading.Event(), threading.Event()
        self._line, self._page, self._button = widgets.HTML(), widgets.HTML(), None
        if is_seen():
            self._button = widgets.Button(
                description="Cancel",
                tooltip="Stop this job",
                layout=widgets.Layout(width="max-content", visibility="hidden"),
            )
            # ipykernel 7.4 sends all messages of a widget to the thread that has last written to it, which is
            # busy here; without this, they go to the thread that the frontend has named
            self._button.comm._reply_subshell_for = None
            self._button._view_count = 0  # from now on the frontend counts its views, and tells
            self._button.observe(lambda change: self._heard.set(), "_view_count")
            self._button.on_click(self._click)
        row = widgets.HBox([self._line] + [self._button] * is_seen())
        ended = f"{html.escape(stays)}: the notebook's kernel ended while it ran, and ended it, too."
        self._display = Display(widgets.VBox([row, self._page]), stays, ended if is_seen() else "")

    def draw(self, line: str, page: str) -> None:
        """Show it as it is now."""
        for widget, shown in ((self._line, line), (self._page, page)):
            if widget.value != shown:
                widget.value = shown
        if self._button is not None and self._heard.is_set() and self._button.layout.visibility == "hidden":
            self._button.layout.visibility = "visible"

    def look(self) -> None:
        """Errors: Cancelled if the button was clicked."""
        if self._clicked.is_set():
            raise Cancelled

    def end(self, bundle: dict[str, str]) -> None:
        """Leave `bundle` in its place."""
        self._display.end(bundle)
        if self._button is not None:
            self._button.close()

    def _click(self, button) -> None:
        self._clicked.set()
        button.disabled, button.description = True, "Stopping"
