"""Draw what ranks hold before and after they exchange something."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from course_lib.arguments import instance, listed
from course_lib.plots.pictures.boxes import HEIGHT, WIDTH, arrow, box, frame, heads
from course_lib.plots.styles import INK, SMALL, SOFT, panel

__all__ = ["collective", "RingStep", "ring_steps", "ring"]


def collective(
    title: str,
    subtitle: str,
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    ax: Axes | None = None,
) -> Axes:
    """Draw what each rank holds before and after a collective: one row per rank, one box per piece; an empty
    box is a 0.

    Args:
        title: the collective.
        subtitle: what it does, in words.
        before, after: [rank][piece], as the ranks returned them.
    """
    for name, pieces in (("before", before), ("after", after)):
        listed(name, pieces, "a list of ranks, each a list of numbers", _are_numbers)
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} ranks and after {len(after)}: it must be the same number."
        )
    ax = panel(title, subtitle, ax, size=(4.9, 1.0 + 0.4 * len(before)))
    columns = max(map(len, before))
    right = columns * WIDTH + 1.1
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        ax.text(-0.15, rank, f"rank {rank}", ha="right", va="center", fontsize=SMALL, color=SOFT)
        for left, values in ((0, old), (right, new)):
            for piece, value in enumerate(values):
                box(ax, left + piece * WIDTH, rank, value)
    for left, rows in ((0, before), (right, after)):
        heads(ax, left, -0.55, "piece", max(map(len, rows)))
    middle = (len(before) - 1) / 2
    start, end = (columns * WIDTH + 0.15, middle), (right - 0.15, middle)
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK))
    frame(ax, -0.95, right + max(map(len, after)) * WIDTH + 0.1, -0.8, len(before) - 0.4)
    return ax


@dataclass(frozen=True)
class RingStep:
    """All ranks after one step of a ring.

    Attributes:
        name: of the step.
        held: [rank][chunk], the values after the step.
        sent: the chunk that each rank has sent to the next rank in this step; None at the start.
    """

    name: str
    held: list[list[float]]
    sent: list[int] | None


def ring_steps(notes: Sequence[Sequence[tuple]]) -> list[RingStep]:
    """Put together what the ranks have noted: for each rank a list of (name of the step, chunk sent or None,
    values held after it).
    """
    listed(
        "notes",
        notes,
        "a list of ranks, each a list of (name, chunk, values)",
        lambda rank: (
            isinstance(rank, list)
            and len(rank) == len(notes[0])
            and all(isinstance(note, tuple) and len(note) == 3 for note in rank)
        ),
    )
    steps = []
    for notes_of_step in zip(*notes, strict=True):
        names, sent, held = zip(*notes_of_step)
        steps.append(
            RingStep(names[0], [list(values) for values in held], None if sent[0] is None else list(sent))
        )
    return steps


def ring(step: RingStep, subtitle: str = "", ax: Axes | None = None) -> Axes:
    """Draw one step of a ring: a row per rank, an arrow from each chunk that was sent to the box that it
    changed.

    The last rank's right neighbour is rank 0: its arrow leaves at the bottom and comes in at the top.
    """
    ranks = len(instance("step", step, RingStep).held)
    ax = panel(step.name, subtitle, ax, size=(4.2, 1.1 + 0.75 * ranks))
    heads(ax, 0, -1.05, "chunk", len(step.held[0]))
    for rank, values in enumerate(step.held):
        ax.text(-0.15, 1.5 * rank, f"rank {rank}", ha="right", va="center", fontsize=SMALL, color=SOFT)
        for chunk, value in enumerate(values):
            changed = step.sent is not None and step.sent[rank - 1] == chunk
            box(ax, chunk * WIDTH, 1.5 * rank, value, changed)
    for rank, chunk in enumerate(step.sent or []):
        x, top = (chunk + 0.5) * WIDTH, 1.5 * rank + HEIGHT / 2
        arrow(ax, x, top, 1.5 - HEIGHT if rank < ranks - 1 else 0.5)
        if rank == ranks - 1:
            arrow(ax, x, -HEIGHT / 2 - 0.5, 0.5)
            ax.text(x + 0.12, top + 0.3, "to rank 0", fontsize=SMALL - 1, color=SOFT, va="center")
    frame(ax, -0.95, len(step.held[0]) * WIDTH + 0.1, -1.25, 1.5 * (ranks - 1) + 1.0)
    return ax


def _are_numbers(pieces) -> bool:
    return (
        isinstance(pieces, (list, tuple))
        and len(pieces) > 0
        and all(isinstance(piece, (int, float)) and piece >= 0 for piece in pieces)
    )
