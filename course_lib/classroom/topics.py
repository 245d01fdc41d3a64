"""What to speak of next with a class: predictions that many got wrong, and what many miss first."""

from collections import Counter

import pandas as pd

from course_lib.arguments import takes, whole
from course_lib.classroom.reading import Classroom
from course_lib.classroom.tables import guesses, stumbles, tries

__all__ = ["talk_about"]

FEWEST = 3  # guesses or tries of one thing: fewer say little of a class
MANY = 0.4  # of those who tried: so many are worth the class's time


def _at_least_1(name: str, value: object) -> int:
    return whole(name, value)


@takes(room=Classroom, most=_at_least_1)
def talk_about(room: Classroom, most: int = 8) -> pd.DataFrame:
    """What to speak of next, what concerns most learners first.

    Args:
        most: rows.

    Returns: columns learners (whom it concerns), of (who tried), chapter (its file), name (of the prediction
    or exercise), and why, a sentence.
    """
    rows = [*_wrong_guesses(room), *_missed(room)]
    table = pd.DataFrame(rows, columns=["learners", "of", "chapter", "name", "why"])
    return table.sort_values("learners", ascending=False, kind="stable", ignore_index=True).head(most)


def _wrong_guesses(room: Classroom):
    table = guesses(room)
    compared = table[table["measured"].notna()]
    for name, its in compared.groupby("prediction", sort=False):
        wrong = its[~its["right"].astype(bool)]
        if len(its) < FEWEST or len(wrong) < MANY * len(its):
            continue
        ((said, times),) = Counter(wrong["guess"]).most_common(1)
        truth, unit = _in_the_middle(its["measured"].tolist()), its["unit"].iloc[0]
        why = f"{times} said {_shown(said, unit)}; {its['how'].iloc[0]}: {_shown(truth, unit)}."
        yield len(wrong), len(its), its["chapter"].iloc[0], name, why


def _missed(room: Classroom):
    tried = tries(room)
    for row in stumbles(room).itertuples():
        of = int((tried["exercise"] == row.exercise).sum())
        if of >= FEWEST and row.learners >= MANY * of:
            why = f"Missed first, in {row.tries} tries: {row.words}."
            yield row.learners, of, row.chapter, row.exercise, why


def _in_the_middle(values: list) -> float | str:
    if isinstance(values[0], str):
        return Counter(values).most_common(1)[0][0]
    return sorted(values)[len(values) // 2]


def _shown(value: float | str, unit: str) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:.3g} {unit}".rstrip()
