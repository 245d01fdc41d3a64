"""The chapters as data: title, minutes, predictions and exercises, read from the published notebooks."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from course_lib.arguments import instance
from course_lib.learner import desk

__all__ = ["Chapter", "chapters", "PROJECT"]

PROJECT = Path(__file__).resolve().parents[2]
_TAKES = re.compile(r"\*\*It takes:\*\*(.*)")
_READING = re.compile(r"(\d+) minutes")
_EXERCISES = re.compile(r"(\d+) more|(as long again)")


@dataclass(frozen=True)
class Chapter:
    """One chapter.

    Attributes:
        file: its name in the desk.
        title: its first heading.
        predictions: name -> the question, in the chapter's order.
        exercises: the names of their checks, in the chapter's order.
        minutes: to read and run it, and for the exercises, as its first cell says; None where it does not.
    """

    file: str
    title: str
    predictions: Mapping[str, str]
    exercises: tuple[str, ...]
    minutes: tuple[int, int] | None

    @property
    def name(self) -> str:
        """Without number and ending: "ddp"."""
        return re.sub(r"^\d+_|\.ipynb$", "", self.file)


def chapters(project: Path = PROJECT) -> tuple[Chapter, ...]:
    """The chapters in reading order.

    Args:
        project: the folder that holds `notebooks/`.
    """
    found = []
    for file, path in desk.published(instance("project", project, Path)).items():
        if "/" in file:
            continue  # a solution
        notebook = json.loads(path.read_text(encoding="utf-8"))
        texts = ["".join(cell["source"]) for cell in notebook["cells"]]
        title = next((text.splitlines()[0].lstrip("# ") for text in texts if text.startswith("# ")), file)
        questions = _questions(notebook)
        predictions = {name: questions.get(name, "") for name in desk.predictions(notebook)}
        exercises = tuple(desk.exercises(notebook))
        found.append(Chapter(file, title, predictions, exercises, _minutes("\n".join(texts[:1]))))
    return tuple(found)


def _questions(notebook: dict) -> dict[str, str]:
    """What each `predict("name", "question", ...)` of a chapter asks, also where the question has a name."""
    found = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "predict(" not in source:
            continue
        nodes = list(ast.walk(ast.parse(source)))
        named = {ast.unparse(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "predict" and len(node.args) > 1:
                name, question = node.args[:2]
                found[_text(name)] = _text(named.get(ast.unparse(question), question))
    return found


def _text(node: ast.expr) -> str:
    """A text as it stands in the code; what is put into it is left as it is written: "With {n} ranks"."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return "".join(map(_text, node.values)) if isinstance(node, ast.JoinedStr) else ""


def _minutes(text: str) -> tuple[int, int] | None:
    line = _TAKES.search(text)
    reading = line and _READING.search(line[1])
    exercises = line and _EXERCISES.search(line[1])
    if not reading or not exercises:
        return None
    return int(reading[1]), int(exercises[1] or reading[1])
