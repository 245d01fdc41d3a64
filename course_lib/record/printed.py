"""What ranks have printed, for a person who looks at a job: the first lines of each rank, or all, folded.

In HTML colours are those of the page, in its light or its dark theme.
"""

import html
import re
from collections.abc import Sequence

from course_lib.roles import rank_name, ranks_in_words

__all__ = ["rows", "first_lines", "rows_html", "folds_html", "in_words"]

LINES = 12  # so many are shown at once, of all ranks together
WIDTH = 200  # characters of such a line
FOLD_LINES = 400  # of a rank, unfolded
MORE = "... "  # begins the line that stands for those that are not shown
_CUT = re.compile(r"^\.\.\. [\d,]+ bytes left out", re.MULTILINE)  # in a very long output (`Job.output`)
SOFT = "color: var(--jp-content-font-color2, inherit)"
CODE = "font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, inherit)"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")


def rows(outputs: Sequence[str]) -> list[tuple[int, str]]:
    """(rank, line) of what is shown at once, in rank order; nothing of ranks that printed nothing."""
    said = {rank: text for rank, text in enumerate(outputs) if text.strip()}
    return [(rank, line) for rank in said for line in first_lines(said[rank], len(said))]


def first_lines(text: str, ranks: int, more: bool = True) -> list[str]:
    """The first lines of one rank, where so many ranks print; if there are more, one that says how many, and
    the last of them (unless it is not wanted, as while they still come).
    """
    lines, most = _readable(text), max(LINES // ranks, 1)
    shown = [_short(line) for line in lines[:most]]
    if more and len(lines) > most:
        count = "" if _CUT.search(text) else f"{len(lines) - most:,} "
        shown.append(f"{MORE}{count}more, the last: {_short(lines[-1])}")
    return shown


def rows_html(shown: Sequence[tuple[int, str]], roles: Sequence[str] = ()) -> str:
    """These rows, each marked with its rank, and with its role where ranks have `roles`."""
    return "".join(
        f'<div style="white-space: pre-wrap; padding-left: 1em"><span style="{SOFT}">'
        f"{html.escape(rank_name(rank, roles))} |</span> {html.escape(line)}</div>"
        for rank, line in shown
    )


def folds_html(outputs: Sequence[str], where: str, roles: Sequence[str] = ()) -> str:
    """All that was printed, one fold for each rank that printed.

    Args:
        where: where the whole output of a rank is, with {rank} for its number: "job.output[{rank}]".
    """
    folds = []
    for rank, text in enumerate(outputs):
        if not text.strip():
            continue
        lines = _readable(text)
        if len(lines) > FOLD_LINES:
            half = FOLD_LINES // 2
            left_out = f"... {len(lines) - 2 * half:,} more: {where.format(rank=rank)} ..."
            lines = [*lines[:half], left_out, *lines[-half:]]
        folds.append(
            f'<details><summary style="cursor: pointer">{html.escape(ranks_in_words([rank], roles))} printed'
            f" {_count(text)}</summary>"
            f'<div style="white-space: pre-wrap; padding-left: 1em">{html.escape(chr(10).join(lines))}</div>'
            "</details>"
        )
    return "".join(folds)


def in_words(outputs: Sequence[str], where: str, roles: Sequence[str] = ()) -> list[str]:
    """One line for each rank that printed: "rank 0 printed 12 lines (job.output[0]): loss 2.31"; `where` as
    in `folds_html`.
    """
    return [
        f"{ranks_in_words([rank], roles)} printed {_count(text)} ({where.format(rank=rank)}):"
        f" {_short(_readable(text)[0], 80)}"
        for rank, text in enumerate(outputs)
        if text.strip()
    ]


def _readable(text: str) -> list[str]:
    """The lines of a text as a terminal leaves them: of a line that was written over (a progress bar) the
    last state, and no colours.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    states = [next(filter(None, reversed(line.split("\r"))), "") for line in lines]
    return [_ESCAPES.sub("", state).expandtabs().rstrip() for state in states]


def _count(text: str) -> str:
    if _CUT.search(text):
        return "very much"
    count = len(_readable(text))
    return f"{count:,} line{'' if count == 1 else 's'}"


def _short(line: str, limit: int = WIDTH) -> str:
    return line if len(line) <= limit else line[: limit - 3] + "..."
