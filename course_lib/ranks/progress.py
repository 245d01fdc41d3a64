"""A sign of life while a job runs, with the first lines that its ranks print: a panel in JupyterLab, a line
that rewrites itself in a terminal, below what was printed.

When the job is over, one static line stays, the same on every machine, so that nbval can compare it. Where a
person looks (`frontend.is_seen`) the lines of the ranks stay below it, in rank order: only HTML, and only if
there are any. Of a check's job nothing stays that can be seen or compared.
"""

import html
import sys
import time
from collections.abc import Callable, Sequence

from course_lib.frontend import in_kernel, is_seen
from course_lib.ranks.lines import RankLine, in_short, lines_html
from course_lib.ranks.panel import Panel
from course_lib.record import printed
from course_lib.roles import rank_name

__all__ = ["Progress", "say"]

QUIET_S = 1.0  # shorter jobs show nothing while they run
QUIET_OF_A_CHECK_S = 3.0  # the same of a job of which nothing stays
REFRESH_S = 0.2
_INK = "color: var(--jp-content-font-color1)"


class Progress:
    """Show how far a job is. Use as a context manager; call `update` as often as you like."""

    def __init__(self, title: str, stays: bool = True, roles: Sequence[str] = ()):
        """`title`: the static line, for example "train on 4 ranks"; `stays`: when the job is over, too;
        `roles`: of the ranks, if they have some.
        """
        self.title, self.drawn, self._roles = title, False, roles
        self._stays, self._begin, self._last = stays, time.monotonic(), 0.0
        self._in_kernel = in_kernel()
        self._panel: Panel | None = None
        self._outputs: Sequence[str] = ()
        self._where = self._of = self._cost = ""
        self._said: dict[int, int] = {}  # in a terminal: rank -> how many of its lines have been written

    def __enter__(self) -> "Progress":
        return self

    def update(
        self,
        text: str,
        outputs: Callable[[], Sequence[str]] = tuple,
        ranks: Callable[[], Sequence[RankLine]] = tuple,
        fraction: float | None = None,
        at_once: bool = False,
    ) -> None:
        """Show `text` beside the title. `outputs` and `ranks` are asked, when something is drawn, for what
        each rank has printed so far, and for how far it is; `fraction` (0 to 1) of several jobs fills a bar.

        `at_once`: of a job of which nothing stays, too, after `QUIET_S`.

        Errors: Cancelled, a KeyboardInterrupt, once the learner has clicked on Cancel.
        """
        if self._panel is not None:
            self._panel.look()
        now = time.monotonic()
        quiet_s = QUIET_S if self._stays or at_once or self.drawn else QUIET_OF_A_CHECK_S
        if now - self._begin < quiet_s or now - self._last < REFRESH_S:
            return
        self._last = now
        if self._in_kernel:
            self._draw_panel(text, fraction, outputs(), ranks())
            self.drawn = True
        elif sys.stderr.isatty():
            self._write_lines(outputs(), over=False)
            far = in_short(lines) + ", " if (lines := ranks()) else ""
            sys.stderr.write(f"\r{self.title}: {far}{text}\x1b[K")
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

            if self._panel is not None:
                self._panel.end(self._line(), self._late(error) if is_seen() else "")
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
        """What stays, as Jupyter takes it."""
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

    def _late(self, error: BaseException | None) -> str:
        """What is left for a page that was closed while the job ran, as HTML: no error reaches it either."""
        how = "It has ended."
        if error is not None:
            how = getattr(error, "headline", "") or f"{type(error).__name__}: {error}"
            how += " All of it: last_error()." * bool(getattr(error, "reports", ()))
        line = self._line().get("text/html") or f'<div style="{printed.CODE}">{html.escape(self.title)}</div>'
        return (
            f'<div style="{_INK}; line-height: normal">{line}<div>{html.escape(how)}'
            f' <span style="{printed.SOFT}">This page was not open all the while: what the cell showed'
            " besides is not here.</span></div></div>"
        )

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

    def _draw_panel(
        self, text: str, fraction: float | None, outputs: Sequence[str], ranks: Sequence[RankLine]
    ) -> None:
        bar = ""
        if fraction is not None:
            bar = (
                f'<progress value="{fraction:.3f}" max="1" style="width: 12em; vertical-align: middle"'
                ' aria-label="jobs"></progress> '
            )
        line = f'<span style="{_INK}">{html.escape(self.title)}: {bar}{html.escape(text)}</span>'
        page = ""
        if ranks:
            page += f'<div style="{_INK}; line-height: normal">{lines_html(ranks)}</div>'
        if said := printed.rows(outputs):
            page += (
                f'<div style="{_INK}; line-height: normal; margin-top: 0.4em; {printed.CODE}">'
                f"{printed.rows_html(said, self._roles)}</div>"
            )
        if self._panel is None:
            self._panel = Panel(self.title, self._stays)
        self._panel.draw(line, page)


def say(outputs: Sequence[str]) -> None:
    """In a terminal: the first lines of what each rank has printed, for a job without a line of its own."""
    if not in_kernel() and sys.stderr.isatty():
        for rank, line in printed.rows(outputs):
            sys.stderr.write(f"rank {rank} | {line}\n")
