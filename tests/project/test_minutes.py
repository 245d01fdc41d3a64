"""The minutes at the top of a chapter are what its words, lines, figures, predictions and runs take a reader.

The rates are for somebody to whom English is a second language, and who thinks about what is there: half of
what is read of easy prose (238 words a minute: Brysbaert 2019, doi.org/10.1016/j.jml.2019.104047). How long
cells run stands in tests/seconds.tsv, measured. Exercises are extra.
"""

import re

import levels
import nbformat
import pytest

from course_lib.learner.book import chapters

WORDS, LINES = 130, 12  # of prose and of code, in a minute
PREDICTION, FIGURE, TABLE = 1.0, 1.0, 0.5  # minutes; what is printed in several lines counts as a table
TABLE_LENGTH = 250  # characters
APART = 0.12  # relative; what is said is rounded to five minutes
CHAPTERS = {chapter.name: chapter for chapter in chapters()}


def is_table(output) -> bool:
    data = output.get("data", {})
    return "text/html" in data or len(output.get("text", data.get("text/plain", ""))) > TABLE_LENGTH


def minutes_of(file: str, last: str | None = None) -> float:
    """Of the whole chapter, or of it up to the cell `last`."""
    cells = nbformat.read(levels.ROOT / "notebooks" / file, as_version=4).cells
    if last is not None:
        cells = cells[: 1 + [cell.id for cell in cells].index(last)]
    cells = [cell for cell in cells if "exercise" not in cell.metadata.get("tags", ())]
    prose = " ".join(re.sub(r"[#*`|$\\]", " ", cell.source) for cell in cells if cell.cell_type == "markdown")
    code = [cell for cell in cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    outputs = [output for cell in code for output in cell.outputs]
    figures = ["image/png" in output.get("data", {}) for output in outputs]
    tables = [is_table(output) and not figure for output, figure in zip(outputs, figures)]
    predictions = sum("predict(" in line for line in lines)
    ran_s = sum(
        seconds for name, seconds in levels.known_seconds().items() if name.startswith(f"notebooks/{file}::")
    )
    read = len(prose.split()) / WORDS + len(lines) / LINES + ran_s / 60
    return read + predictions * PREDICTION + sum(figures) * FIGURE + sum(tables) * TABLE


@pytest.mark.parametrize("name", CHAPTERS)
def test_minutes_are_what_the_parts_of_a_chapter_take(name):
    said, counted = CHAPTERS[name].minutes[0], minutes_of(CHAPTERS[name].file)
    assert abs(said / counted - 1) < APART, f"it says {said} minutes, and its parts take {counted:.0f}"


def test_three_pictures_of_two_ranks_are_read_after_a_quarter_of_an_hour():
    """The first chapter and the website's first page say so; what the environment takes comes before it."""
    minutes = minutes_of(CHAPTERS["start_here"].file, last="start-here-first-read")
    assert minutes < 16, f"its parts take {minutes:.0f}"
