"""Where a learner stands in the book: for each chapter, what is predicted and what is solved."""

import html
from dataclasses import dataclass
from pathlib import Path

from course_lib.learner import record
from course_lib.learner.book import PROJECT, chapters

__all__ = ["where_i_stand", "Standing", "Place"]


@dataclass(frozen=True)
class Place:
    """One chapter: the predictions and exercises it has, in its order, and those that are done.

    Attributes:
        file: the chapter's name in the desk.
        title: its first heading.
        tried: exercises with an answer that was refused, and none that was accepted yet.
    """

    file: str
    title: str
    predictions: tuple[str, ...]
    predicted: frozenset[str]
    exercises: tuple[str, ...]
    solved: frozenset[str]
    tried: frozenset[str]

    @property
    def done(self) -> bool:
        return set(self.exercises) <= self.solved and set(self.predictions) <= self.predicted


class Standing(tuple[Place, ...]):
    """The chapters in reading order; it prints as a table."""

    def __repr__(self) -> str:
        rows = [("", "predicted", "solved"), *((place.title, *self._counts(place)) for place in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        return "\n".join([*lines, self.next_step])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align: left"><a href="{place.file}">{html.escape(place.title)}</a></td>'
            + "".join(f"<td>{count}</td>" for count in self._counts(place))
            + "</tr>"
            for place in self
        )
        return (
            "<table><thead><tr><th></th><th>predicted</th><th>solved</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><p>{html.escape(self.next_step)}</p>"
        )

    @property
    def next_step(self) -> str:
        """One sentence: where to go on."""
        for place in self:
            if not place.done and (place.solved or place.predicted or place.tried):
                tried = [name for name in place.exercises if name in place.tried]
                open_ = tried + [name for name in place.exercises if name not in place.solved | place.tried]
                what = f"the exercise {open_[0].replace('_', ' ')}" if open_ else "its predictions"
                return f"Go on with {place.title}: {what}."
        for place in self:
            if not place.done:
                return f"Begin with {place.title}."
        return "All of it is done." if self else "There are no chapters here."

    @staticmethod
    def _counts(place: Place) -> tuple[str, str]:
        return (
            f"{len(place.predicted)} of {len(place.predictions)}" if place.predictions else "",
            f"{len(place.solved)} of {len(place.exercises)}" if place.exercises else "",
        )


def where_i_stand(where: Path | None = None, project: Path = PROJECT) -> Standing:
    """For each chapter, which predictions were made and which exercises are solved, by the record of a desk.

    Args:
        where: the desk; None: the folder in which this notebook works. Where it is no desk, nothing is kept,
            and nothing is done.
        project: the folder that holds `notebooks/`.
    """
    guessed, solved, tried = set(), set(), set()
    for line in record.kept(where):
        if line["kind"] == "guess" and not line.get("known"):
            guessed.add(line.get("name"))
        elif line["kind"] == "reset":
            guessed.difference_update(line.get("predictions") or ())
        elif line["kind"] == "verdict":
            (solved if line.get("passed") else tried).add(line.get("exercise"))
    return Standing(
        Place(
            chapter.file,
            chapter.title,
            tuple(chapter.predictions),
            frozenset(guessed.intersection(chapter.predictions)),
            chapter.exercises,
            frozenset(solved.intersection(chapter.exercises)),
            frozenset((tried - solved).intersection(chapter.exercises)),
        )
        for chapter in chapters(project)
    )
