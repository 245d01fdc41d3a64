"""What is seen of a job in a notebook while it runs: its ranks, and a button that cancels it.

The kernel is busy in `run` all that time, so a click is heard only where the frontend sends it to another
thread of the kernel (a subshell: JupyterLab from 4.4 on, with ipykernel 7). Whether it does is tried, not
guessed: the frontend tells the kernel that it has drawn the button, and the button can be seen once that was
heard while the job runs. Elsewhere there is none, and one interrupts the kernel.
"""

import html
import threading
import time
from typing import Any

from course_lib.frontend import is_seen
from course_lib.ranks import answers
from course_lib.reopened import Display

__all__ = ["Panel", "Cancelled"]

FIRST_S, LAST_S = 0.5, 30.0  # pauses between tries whether a button is heard; each is twice as long


class Cancelled(KeyboardInterrupt):
    """The learner has clicked on Cancel."""


class Panel:
    """A widget of what a job does now: a line, and below it a page of HTML. `stays`: the title, as text."""

    def __init__(self, title: str, stays: bool):
        import ipywidgets as widgets

        self._clicked, self._heard = threading.Event(), threading.Event()
        self._line, self._page = widgets.HTML(), widgets.HTML()
        self._button: Any = None
        self._row = widgets.HBox([self._line])
        self._next_at, self._pause_s = time.monotonic() + FIRST_S, FIRST_S
        # seen where no page was open to which its end could be told, and the kernel has ended since, or many
        # other jobs have
        ended = f"{html.escape(title)}: its end was not seen here: the page was closed, or the kernel ended."
        box = widgets.VBox([self._row, self._page])
        self._display = Display(box, title if stays else "", ended if is_seen() else "")
        if is_seen():
            answers.begin(self)

    def draw(self, line: str, page: str) -> None:
        """Show it as it is now."""
        if self._line.value != line:  # once a second
            answers.tell_busy()
        for widget, shown in ((self._line, line), (self._page, page)):
            if widget.value != shown:
                widget.value = shown
        if self._button is not None and self._heard.is_set():
            if self._button.layout.visibility == "hidden":
                self._button.layout.visibility = "visible"
        elif is_seen() and time.monotonic() > self._next_at and self._pause_s < LAST_S:
            self._pause_s *= 2
            self._next_at += self._pause_s
            self._offer()

    def _offer(self) -> None:
        """A button that is not seen yet, in place of the last one, from which nothing was heard: JupyterLab
        asks for the other thread when the first widget comes, and until it is there it writes to this one.
        """
        import ipywidgets as widgets

        last = self._button
        self._button = widgets.Button(
            description="Cancel",
            tooltip="Stop this job",
            layout=widgets.Layout(width="max-content", flex="none", visibility="hidden"),
        )
        # ipykernel 7.4 sends all messages of a widget to the thread that has last written to it, which is
        # busy here; without this, they go to the thread that the frontend has named
        self._button.comm._reply_subshell_for = None
        # IPython shows and closes all figures after a message, also those that the running cell goes on with
        self._button.comm.handle_msg = self._button._handle_msg
        self._button._view_count = 0  # from now on the frontend counts its views, and tells
        self._button.observe(lambda change: self._heard.set(), "_view_count")
        self._button.on_click(self._click)
        self._row.children = [self._line, self._button]
        if last is not None:
            last.close()

    def look(self) -> None:
        """Errors: Cancelled if the button was clicked."""
        if self._clicked.is_set():
            raise Cancelled

    def end(self, bundle: dict[str, str], late: str = "") -> None:
        """Leave `bundle` in its place; on a page that was opened again since it began: `late`, as HTML."""
        answers.end(self)
        self._display.end(bundle, late)

    def _click(self, button) -> None:
        self._clicked.set()
        button.disabled, button.description = True, "Stopping"
