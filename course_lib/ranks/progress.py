"""A sign of life while a job runs, with the first lines that its ranks print: a widget in JupyterLab, a line
that rewrites itself in a terminal, below what was printed.

When the job is over, one static line stays, the same on every machine, so that nbval can compare it. Where a
person looks (`frontend.is_seen`) the lines of the ranks stay below it, in rank order: only HTML, and only if
there are any. Of a check's job nothing stays that can be seen or compared.
"""

import html
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from course_lib.frontend import in_kernel, is_seen
from course_lib.record import printed
from course_lib.roles import rank_name

__all__ = ["Progress", "say"]

QUIET_S = 1.0  # shorter jobs show nothing while they run
REFRESH_S = 0.2
_WIDGET = "application/vnd.jupyter.widget-view+json"


class Progress:
    """Show how far a job is. Use as a context manager; call `update` as often as you like."""

    def __init__(self, title: str, stays: bool = True, roles: Sequence[str] = ()):
        """`title`: the static line, for example "train on 4 ranks"; `stays`: when the job is over, too;
        `roles`: of the ranks, if they have some.
        """
        self.title, self.drawn, self._roles = title, False, roles
        self._stays, self._begin, self._last = stays, time.monotonic(), 0.0
        self._in_kernel = in_kernel()
        self._handle: Any = None  # IPython's of what is shown, and the widget in it
        self._widget: Any = None
        self._outputs: Sequence[str] = ()
        self._where = self._of = self._cost = ""
        self._said: dict[int, int] = {}  # in a terminal: rank -> how many of its lines have been written

    def __enter__(self) -> "Progress":
        return self

    def update(
        self,
        text: str,
        fraction: float | None = None,
        outputs: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Show `text` beside the title; `fraction` (0 to 1) fills a bar; `outputs` is asked, when something
        is drawn, for what each rank has printed so far.
        """
        now = time.monotonic()
        if now - self._begin < QUIET_S or now - self._last < REFRESH_S:
            return
        self._last = now
        if self._in_kernel:
            self._draw_widget(text, fraction, outputs())
            self.drawn = True
        elif sys.stderr.isatty():
            self._write_lines(outputs(), over=False)
            sys.stderr.write(f"\r{self.title}: {text}\x1b[K")
            sys.stderr.flush()
            self.drawn = True

    def again(self, told: str, outputs: Sequence[str]) -> None:
        """The job starts again, and what its ranks print is shown anew: `told` says so in a terminal, below
        the rest of what they had printed.
        """
        if self._stays and not self._in_kernel and sys.stderr.isatty():
            self._write_lines(outputs, over=True)
            sys.stderr.write(f"\r\x1b[K{told}\n")
        self._said.clear()

    def over(self, outputs: Sequence[str], where: str, of: str = "", cost: str = "") -> None:
        """The job is done: what each rank has printed in all, and where one finds it.

        Args:
            of: words for which job it is, where there are several.
            cost: what failures have cost, for the line that stays.
        """
        self._outputs, self._where, self._of = outputs, where, of
        self._cost = cost
        if cost and (is_seen() or not self._in_kernel):
            self.title += f": {cost}"
            self.drawn = self.drawn or sys.stderr.isatty()

    def __exit__(self, kind, error, trace) -> None:
        if reports := getattr(error, "reports", ()):
            self.over([report.output for report in reports], "last_error().reports[{rank}].output")
        if self._in_kernel:
            from IPython.display import display

            if self._handle is not None:
                self._handle.update(self._line(), raw=True)
                self._widget.close()
            elif self._stays:
                display(self._line(), raw=True)
            if self._cost and not is_seen():  # a line of its own: nbval knows a line only as it was at first
                display({"text/plain": self._cost}, raw=True)
        elif self._stays and sys.stderr.isatty() and any(self._outputs):
            self._write_lines(self._outputs, over=True)
        if self.drawn and not self._in_kernel:
            sys.stderr.write(f"\r{self.title}\x1b[K\n" if self._stays else "\r\x1b[K")
            sys.stderr.flush()

    def _line(self) -> dict[str, str]:
        """What stays, as Jupyter takes it. Jupyter cannot take a display away: an empty one shows nothing."""
        if not self._stays:
            return {}
        line = {"text/plain": self.title}
        if any(self._outputs) and is_seen():
            shown = printed.rows(self._outputs)
            cut = [rank for rank, text in shown if text.startswith(printed.MORE)]
            notes = [self._of, f"all of it: {self._where.format(rank=cut[0])}" if cut else ""]
            before, after = (f'<div style="{printed.SOFT}">{html.escape(note)}</div>' for note in notes)
            line["text/html"] = (
                f'<div style="{printed.CODE}"><div>{html.escape(self.title)}</div>'
                f"{before * bool(self._of)}{printed.rows_html(shown, self._roles)}{after * bool(cut)}</div>"
            )
        return line

    def _write_lines(self, outputs: Sequence[str], over: bool) -> None:
        """In a terminal: lines of the ranks that have not been written yet, above the one that rewrites
        itself.
        """
        for rank, text in enumerate(outputs):
            # while the job runs, whole lines alone
            whole = text if over else text[: text.rfind("\n") + 1]
            for line in printed.first_lines(whole, len(outputs), more=over)[self._said.get(rank, 0) :]:
                sys.stderr.write(f"\r\x1b[K{rank_name(rank, self._roles)} | {line}\n")
                self._said[rank] = self._said.get(rank, 0) + 1

    def _draw_widget(self, text: str, fraction: float | None, outputs: Sequence[str]) -> None:
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
        if said := printed.rows(outputs):
            shown += (
                f'<div style="color: var(--jp-content-font-color1); line-height: normal; {printed.CODE}">'
                f"{printed.rows_html(said, self._roles)}</div>"
            )
        if self._handle is None:
            from IPython.display import display
            from ipywidgets import HTML

            self._widget = HTML(shown)
            view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
            self._handle = display({_WIDGET: view, **self._line()}, raw=True, display_id=True)
        elif self._widget.value != shown:
            self._widget.value = shown


def say(outputs: Sequence[str]) -> None:
    """In a terminal: the first lines of what each rank has printed, for a job without a line of its own."""
    if not in_kernel() and sys.stderr.isatty():
        for rank, line in printed.rows(outputs):
            sys.stderr.write(f"rank {rank} | {line}\n")
