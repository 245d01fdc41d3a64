"""Draw a schedule of a pipeline: what each rank does when, as it ran, or on paper."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from numbers import Real
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from course_lib.arguments import listed, number
from course_lib.plots.described import tell
from course_lib.plots.styles import COLORS, FAINT, INK, PAPER, SMALL, panel
from course_lib.plots.traced import require_trace
from course_lib.record import Job

__all__ = ["schedule"]

_OPS = {"F": "forward", "B": "backward", "I": "backward_input", "W": "backward_weight"}
_COLORS = {
    "forward": COLORS["forward"],
    "backward": COLORS["backward"],
    "backward_input": "#332288",
    "backward_weight": "#DDCC77",
}
_WORDS = {
    "forward": "F forward",
    "backward": "B backward",
    "backward_input": "I backward, input",
    "backward_weight": "W backward, weights",
}


class _Piece(NamedTuple):
    rank: int
    stage: int
    microbatch: int
    op: str
    begin: float
    end: float


def _is_block(entry) -> bool:
    """Rank, stage, micro-batch, op, begin and end."""
    numbers = (entry[:3] + entry[4:]) if isinstance(entry, tuple) and len(entry) == 6 else ("",)
    return all(isinstance(one, Real) for one in numbers) and isinstance(entry[3], str)


def schedule(what: Job | Iterable, title: str = "", ax: Axes | None = None, times: float = 1.0) -> Axes:
    """Draw a lane for each rank, and in it a block for each instruction: its colour says which op, its number
    which micro-batch. Where a rank has several stages, later ones are drawn darker.

    Args:
        what: a job that ran a `mini.pipeline`: its spans in the traced step. Or blocks on paper, with rank,
            stage, microbatch, op, begin and end (`mini.pipeline.on_paper`): modelled, drawn with dashes.
        title: of the panel; "" for the job's label.
        times: the length of the axis, over that of what is drawn, to compare two panels.
    """
    ran = isinstance(what, Job)
    number("times", times, above=True)
    if not ran:
        listed("what", what, "a job, or a list of blocks on paper", _is_block)
    pieces = _spans(what) if ran else [_Piece(*block) for block in what]
    if not pieces:
        raise ValueError("there is no instruction to draw.")
    ranks, length = 1 + max(piece.rank for piece in pieces), max(piece.end for piece in pieces)
    where = what.where if ran else "modelled: messages take no time"
    xlabel = "ms since the first rank began" if ran else "time, in forwards of one of p equal stages"
    size = (9, 1.3 + 0.42 * ranks)
    ax = panel(title or (what.label if ran else "On paper"), where, ax, size=size, xlabel=xlabel, grid="x")
    ax.set_xlim(0, length * times)
    ax.set_ylim(ranks - 0.5, -0.5)
    ax.barh(range(ranks), [length * times] * ranks, 0.8, color=FAINT, zorder=0)
    stages = [sorted({piece.stage for piece in pieces if piece.rank == rank}) for rank in range(ranks)]
    width_in = ax.get_position().width * ax.figure.get_figwidth() * 0.9
    widths = sorted(piece.end - piece.begin for piece in pieces)
    narrow = widths[len(widths) // 10] / (length * times) * width_in  # where it ran, a few are narrower
    digits = len(str(max(piece.microbatch for piece in pieces)))
    fontsize = min(8.0, narrow * 72 / (0.75 * digits))  # all numbers in one size, or none
    colors = [_shade(its.op, stages[its.rank].index(its.stage), len(stages[its.rank]) - 1) for its in pieces]
    # as one collection: hundreds of patches would be slow
    corners = [
        [(begin, rank - 0.4), (end, rank - 0.4), (end, rank + 0.4), (begin, rank + 0.4)]
        for rank, _, _, _, begin, end in pieces
    ]
    look = {"linestyle": "-", "edgecolor": PAPER} if ran else {"linestyle": "--", "edgecolor": INK}
    blocks = PolyCollection(corners, facecolor=colors, linewidth=0.6, zorder=2, **look)
    ax.add_collection(blocks, autolim=False)  # the lanes behind them are as wide
    if fontsize >= 4.5:
        _write_numbers(ax, pieces, colors, fontsize)
    ax.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    ax.tick_params(axis="y", length=0, labelsize=SMALL)
    _explain(ax, pieces)
    ops = Counter(its.op for its in pieces)
    tell(ax, f"{ranks} lanes of ranks with {' and '.join(f'{n} of {op}' for op, n in ops.items())}")
    return ax


def _write_numbers(ax: Axes, pieces: list[_Piece], colors: list[str], fontsize: float) -> None:
    """The micro-batch of each piece in its middle. Equal numbers are one shape at many places: hundreds of
    texts would be slow.
    """
    middles = defaultdict(list)
    for its, color in zip(pieces, colors):
        middles[its.microbatch, _ink(color)].append(((its.begin + its.end) / 2, its.rank))
    inches = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans
    for (microbatch, ink), at in middles.items():
        shape = TextPath((0, 0), str(microbatch), size=fontsize)
        (left, low), (right, high) = shape.get_extents().get_points()
        shape = shape.transformed(Affine2D().translate(-(left + right) / 2, -(low + high) / 2))
        look = {"facecolor": ink, "linewidth": 0, "zorder": 3, "gid": f"micro-batch {microbatch}"}
        drawn = PathCollection([shape], offsets=at, offset_transform=ax.transData, **look)
        drawn.set_transform(inches)
        ax.add_collection(drawn, autolim=False)


def _spans(job: Job) -> list[_Piece]:
    """The instructions that a job ran, in ms."""
    require_trace(job)
    spans, pieces = job.timeline[job.timeline["kind"] == "span"], []
    first_s = spans["start_s"].min() if len(spans) else 0.0
    for row in spans.itertuples():
        if match := re.fullmatch(r"([FBIW])(\d+)(?:@(\d+))?", row.name):
            begin = (row.start_s - first_s) * 1e3
            stage = int(match[3]) if match[3] else row.rank
            pieces.append(
                _Piece(row.rank, stage, int(match[2]), _OPS[match[1]], begin, begin + row.seconds * 1e3)
            )
    return pieces


@functools.cache
def _shade(op: str, nth: int, last: int) -> str:
    """The colour of an op; of the first of a rank's stages, which are numbered up to `last`, mixed with
    white.
    """
    white = 0.55 * (1 - nth / last) if last else 0.0
    return to_hex([part + (1 - part) * white for part in to_rgb(_COLORS[op])])


def _ink(color: str) -> str:
    red, green, blue = to_rgb(color)
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def _explain(ax: Axes, pieces: list[_Piece]) -> None:
    """A legend under the axes, so that the lanes keep their width."""
    ops = [op for op in _WORDS if any(piece.op == op for piece in pieces)]
    handles = [Patch(color=_COLORS[op], label=_WORDS[op]) for op in ops]
    stages = {piece.rank: set() for piece in pieces}
    for piece in pieces:
        stages[piece.rank].add(piece.stage)
    if max(map(len, stages.values())) > 1:
        handles.append(Patch(facecolor=PAPER, edgecolor=PAPER, label="light: a rank's first stage"))
    look = {"frameon": False, "fontsize": SMALL, "labelcolor": INK, "handlelength": 1.2}
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1.0),
        ncols=len(handles),
        borderaxespad=0,
        **look,
    )
