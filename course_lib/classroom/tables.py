"""What a class has guessed and solved, as tables."""

import importlib
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pandas as pd

from course_lib.arguments import takes
from course_lib.classroom.reading import Classroom
from course_lib.learner.predictions import RIGHT

__all__ = ["who_is_where", "progress", "times", "guesses", "tries", "stumbles"]

BREAK = timedelta(minutes=30)  # who did nothing for longer was away
RUNS = "the answer runs, and returns what can be judged"  # what every exercise asks for, by the key "runs"


@takes(room=Classroom)
def who_is_where(room: Classroom) -> pd.DataFrame:
    """One row a learner, who was there last first: chapter and time (UTC) of what they did last, how many
    predictions they made and exercises they solved, and the exercise that they tried last and have not
    solved.
    """
    guessed, tried, rows = guesses(room), tries(room), []
    for learner, lines in room.learners.items():
        placed = [(line, chapter) for line in lines if (chapter := _chapter(room, line))]
        line, chapter = placed[-1] if placed else (lines[-1], None)
        mine = tried[tried["learner"] == learner]
        left = mine[~mine["solved"]].sort_values("last_try")
        rows.append(
            {
                "learner": learner,
                "chapter": chapter.title if chapter else "",
                "last_seen": line["when"].replace(tzinfo=None),
                "predicted": int((guessed["learner"] == learner).sum()),
                "solved": int(mine["solved"].sum()),
                "not_yet": left["exercise"].iloc[-1] if len(left) else "",
            }
        )
    columns = ["learner", "chapter", "last_seen", "predicted", "solved", "not_yet"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["last_seen", "learner"], ascending=[False, True], ignore_index=True)


@takes(room=Classroom)
def progress(room: Classroom) -> pd.DataFrame:
    """Which part of each chapter's predictions and exercises each learner has done, 0 to 1: a row a learner,
    a column a chapter (its file).
    """
    guessed, tried = guesses(room), tries(room)
    done = {(row.learner, row.prediction) for row in guessed.itertuples()}
    done |= {(row.learner, row.exercise) for row in tried[tried["solved"]].itertuples()}
    shares = {}
    for chapter in room.chapters:
        asked = [*chapter.predictions, *chapter.exercises]
        shares[chapter.file] = [
            sum((learner, name) in done for name in asked) / max(1, len(asked)) for learner in room.learners
        ]
    return pd.DataFrame(shares, index=pd.Index(list(room.learners), name="learner"))


@takes(room=Classroom)
def times(room: Classroom) -> pd.DataFrame:
    """How long chapters took: one row for each that somebody has begun. A learner's time is that between
    guesses, comparisons and verdicts in it that follow each other; half an hour without any is a break, and
    left out, as is the way to another chapter and back.

    Columns: chapter, learners (with two such lines or more), minutes (of these, the median), shortest and
    longest (minutes, too), it_says (minutes without exercises, and for these).
    """
    spent: dict[str, list[float]] = {}
    for lines in room.learners.values():
        placed = [
            (chapter.file, line["when"])
            for line in lines
            if line["kind"] != "reset" and (chapter := _chapter(room, line))
        ]
        count = Counter(file for file, _ in placed)
        its = {file: timedelta() for file in count if count[file] > 1}
        for (file, before), (next_file, after) in zip(placed, placed[1:]):
            if file == next_file and after - before < BREAK:
                its[file] += after - before
        for file, whole in its.items():
            spent.setdefault(file, []).append(whole.total_seconds() / 60)
    rows = [
        {
            "chapter": chapter.title,
            "learners": len(its),
            "minutes": round(float(np.median(its)), 1),
            "shortest": round(min(its), 1),
            "longest": round(max(its), 1),
            "it_says": "{} + {}".format(*chapter.minutes) if chapter.minutes else "",
        }
        for chapter in room.chapters
        if (its := spent.get(chapter.file))
    ]
    return pd.DataFrame(rows, columns=["chapter", "learners", "minutes", "shortest", "longest", "it_says"])


@takes(room=Classroom)
def guesses(room: Classroom) -> pd.DataFrame:
    """One row for each learner and prediction: the first guess that was compared, or if none was, the latest.
    Who saw the measurement before guessing is left out.

    Columns: learner, chapter (its file), prediction, guess (a number, or a choice), measured (by this
    learner; None: not yet), unit, how ("measured" or "modelled"), right (True, False, or None: not compared
    yet), at.
    """
    rows = []
    for learner, lines in room.learners.items():
        asked: dict[str, dict] = {}
        for line in lines:
            name = line.get("name")
            if line["kind"] == "guess" and not line.get("known") and not _is_compared(asked.get(name)):
                asked[name] = line
            elif line["kind"] == "compared" and name in asked and not _is_compared(asked[name]):
                asked[name] = line if line["guess"] is not None else asked[name]
            elif line["kind"] == "reset":
                for again in line["predictions"]:
                    if not _is_compared(asked.get(again)):
                        asked.pop(again, None)
        for name, line in asked.items():
            if chapter := room.chapter_of(name):
                compared = _is_compared(line)
                rows.append(
                    {
                        "learner": learner,
                        "chapter": chapter.file,
                        "prediction": name,
                        "guess": line["guess"],
                        "measured": line["measured"] if compared else None,
                        "unit": line["unit"],
                        "how": line["how"] if compared else None,
                        "right": _is_right(line["guess"], line["measured"]) if compared else None,
                        "at": line["when"],
                    }
                )
    columns = ["learner", "chapter", "prediction", "guess", "measured", "unit", "how", "right", "at"]
    # another edition may have asked for a choice where this one asks for a number: most decide
    kinds = Counter((row["prediction"], isinstance(row["guess"], str)) for row in rows)
    rows = [row for row in rows if _is_usual(row, kinds)]
    return pd.DataFrame(rows, columns=columns, dtype=object)


@takes(room=Classroom)
def tries(room: Classroom) -> pd.DataFrame:
    """One row for each learner and exercise that they tried: how often until it was solved (or, if it is not,
    till now), whether it is, and when (UTC) it was solved and tried last.
    """
    rows: dict[tuple[str, str], dict] = {}
    for learner, chapter, line in _verdicts(room):
        name = line["exercise"]
        row = {"learner": learner, "chapter": chapter.file, "exercise": name, "tries": 0, "solved": False}
        row = rows.setdefault((learner, name), row | {"solved_at": pd.NaT})
        if not row["solved"]:
            when = line["when"].replace(tzinfo=None)
            row |= {"tries": row["tries"] + 1, "last_try": when, "solved": line["passed"]}
            row["solved_at"] = when if line["passed"] else pd.NaT
            rows[learner, name] = row
    columns = ["learner", "chapter", "exercise", "tries", "solved", "solved_at", "last_try"]
    table = pd.DataFrame(list(rows.values()), columns=columns)
    return table.astype({"solved": bool, "solved_at": "datetime64[s]", "last_try": "datetime64[s]"})


@takes(room=Classroom)
def stumbles(room: Classroom) -> pd.DataFrame:
    """What is missed first, most learners first: one row for each exercise and demand, with the learners who
    missed it first in a try before they solved the exercise, the tries, and the demand in words.
    """
    solved, who, count, homes = set(), {}, Counter(), {}
    for learner, chapter, line in _verdicts(room):
        name = line["exercise"]
        if line["passed"]:
            solved.add((learner, name))
        elif line["missed"] and (learner, name) not in solved:
            key = name, line["missed"][0]
            who.setdefault(key, set()).add(learner)
            count[key] += 1
            homes[name] = chapter.file
    rows = [
        (homes[name], name, key, len(who[name, key]), count[name, key], _words(name, key))
        for name, key in who
    ]
    columns = ["chapter", "exercise", "demand", "learners", "tries", "words"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["learners", "tries"], ascending=False, kind="stable", ignore_index=True)


def _verdicts(room: Classroom) -> Iterator[tuple[str, object, dict]]:
    for learner, lines in room.learners.items():
        for line in lines:
            if line["kind"] == "verdict" and (chapter := room.chapter_of(line["exercise"])):
                yield learner, chapter, line


def _chapter(room: Classroom, line: dict):
    if line["kind"] == "reset":
        return next((chapter for chapter in room.chapters if chapter.file == line["chapter"]), None)
    return room.chapter_of(line.get("name") or line.get("exercise"))


def _is_compared(line: dict | None) -> bool:
    return line is not None and line["kind"] == "compared"


def _is_usual(row: dict, kinds: Counter) -> bool:
    choice = isinstance(row["guess"], str)
    return kinds[row["prediction"], choice] > kinds[row["prediction"], not choice] or (
        choice and kinds[row["prediction"], True] == kinds[row["prediction"], False]
    )


def _is_right(guess: float | str, measured: float | str) -> bool:
    if isinstance(measured, str):
        return guess == measured
    return abs(guess - measured) <= RIGHT * abs(measured)


def _words(exercise: str, key: str) -> str:
    """A demand in words; a key that this edition's check has not, as it is."""
    check = importlib.import_module("course_lib.check")  # loads torch
    demands = getattr(check, exercise).demands if exercise in check.EXERCISES else {}
    if key in demands:
        return demands[key].words.format(n="n")
    return RUNS if key == "runs" else key
