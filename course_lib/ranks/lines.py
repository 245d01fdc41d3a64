"""How far each rank is, for who watches a job: one line a rank in a notebook, a few words in a terminal."""

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass

from course_lib.ranks import diagnose, places
from course_lib.ranks.launch import RankState
from course_lib.record.printed import SOFT
from course_lib.roles import rank_name

__all__ = ["RankLine", "of_ranks", "in_short", "lines_html"]

MOST_LINES = 16  # ranks that get a line of their own
STILL_S = 1.0  # without a step: then it is said where the rank is


@dataclass(frozen=True)
class RankLine:
    """How far one rank is.

    Attributes:
        name: "rank 0", or with its role "rank 0, serve".
        phase: "starting", "running", "finished" or "failed".
        steps: how many are done, of the whole training; None: it has told of none.
        total: of how many; None: it has not told.
        loss: the last one that it has told.
        since_s: seconds since it was last heard of a step, or of its start.
        place: where it is, in words, if it does not get on: "line 3, in train: waits in all_reduce".
    """

    name: str
    phase: str
    steps: int | None = None
    total: int | None = None
    loss: float | None = None
    since_s: float = 0.0
    place: str = ""


def of_ranks(states: Sequence[RankState]) -> list[RankLine]:
    """A line for each rank, from what the kernel knows of it now."""
    return [_of_one(state) for state in states]


def _of_one(state: RankState) -> RankLine:
    since_s = time.monotonic() - state.step_at if state.step_at else 0.0
    steps = None if state.step is None else state.step + 1 + (state.begun_at or 0)
    total = state.total if steps is not None and state.total is not None and steps <= state.total else None
    place = ""
    if state.phase == "running" and since_s > STILL_S and state.where and state.where_at >= state.step_at:
        frame, waits = places.learners_frame(state.where["frames"]), diagnose.waits_in_words(state)
        place = ": ".join(
            filter(None, [places.place_in_words(frame) if frame else "", waits and f"waits in {waits}"])
        )
    return RankLine(rank_name(state.rank, state.roles), state.phase, steps, total, state.loss, since_s, place)


def in_short(lines: Sequence[RankLine]) -> str:
    """All of them in a few words: "12 to 13 of 40 steps, loss 0.31, 1 of 4 ranks finished"."""
    told = [line for line in lines if line.steps is not None]
    if told:
        words = _steps(told)
        if losses := [line.loss for line in told if line.loss is not None]:
            words += f", loss {_range(losses, '{:.3g}')}"
    else:
        words = "starting" if any(line.phase == "starting" for line in lines) else "running"
    finished = sum(line.phase == "finished" for line in lines)
    return words + (f", {finished} of {len(lines)} ranks finished" if finished else "")


def lines_html(lines: Sequence[RankLine]) -> str:
    """A line for each rank: a bar where it is known of how many steps, else a pulse; the rest in columns."""
    shown, more = lines[:MOST_LINES], lines[MOST_LINES:]
    rows = [_cells(line) for line in shown]
    filled = [column for column, cells in enumerate(zip(*rows)) if any(cells)]
    cells = "".join(f"<div>{row[column]}</div>" for row in rows for column in filled)
    # the last one, a place, may be long
    columns = f"repeat({len(filled) - 1}, max-content) minmax(10em, 1fr)"
    below = f"<div>and {len(more)} more ranks: {html.escape(in_short(more))}</div>" if more else ""
    return (
        f'<div style="display: grid; grid-template-columns: {columns};'
        f' column-gap: 1.2em; font-variant-numeric: tabular-nums">{cells}</div>{below}'
    )


def _cells(line: RankLine) -> list[str]:
    """Name, bar or pulse, steps, loss, seconds, and where it is."""
    running, steps = line.phase == "running", line.steps is not None
    if line.total:
        sign = (
            f'<progress style="width: 9em; vertical-align: middle" max="{line.total}" value="{line.steps}"'
            f' aria-label="{html.escape(line.name)}"></progress>'
        )
    else:
        sign = f'<span aria-hidden="true">{"○" if running and int(line.since_s) % 2 else "●"}</span>'
    words = [
        line.name,
        _steps([line]) if steps else "",
        "" if line.loss is None else f"loss {line.loss:.3g}",
        "" if not running else f"{line.since_s:.1f} s ago" if steps else f"{line.since_s:.0f} s",
        line.place or ("" if running and steps else line.phase),
    ]
    name, *rest, seconds, place = map(html.escape, words)
    soft = [f'<span style="{SOFT}">{said}</span>' if said else "" for said in (seconds, place)]
    return [name, sign, *rest, *soft]


def _steps(lines: Sequence[RankLine]) -> str:
    """ "12 of 40 steps", "12 to 13 steps"."""
    totals = {line.total for line in lines}
    of = f" of {totals.pop()}" if len(totals) == 1 and None not in totals else ""
    counts = [line.steps for line in lines if line.steps is not None]
    return f"{_range(counts, '{}')}{of} step{'' if not of and max(counts) == 1 else 's'}"


def _range(values: Sequence, form: str) -> str:
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} to {most}"
