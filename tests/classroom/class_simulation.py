"""A class that is simulated: learners who never were, at real desks. What they do is done by real kernels
with the chapters' own cells: `predict`, a guess, `compare` with what the cell has measured, and checks of
answers.

A kernel plays several learners in turn. What costs much is done once in each kernel: the jobs of a cell, and
the check of an answer, whose verdict is then kept for every learner who gives the same answer.
"""

import ast
import json
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_client.manager import start_new_kernel

from course_lib.classroom.desks import CLASS, lay_class
from course_lib.learner import desk
from course_lib.learner.book import PROJECT

__all__ = ["Learner", "Play", "simulate", "damage", "NAMES"]

NAMES = (
    "ada ben cleo dora emil fay gus hana ivo jun kofi lena mia nils olga pia quinn rosa sami tess uma vito"
    " wren xena yuki zoe amir bela chidi dana"
).split()
PATIENCE_S = 900  # of one cell, on a busy machine
# What runs in no kernel of the simulation: exercises, errors that are meant, and figures.
LEFT_OUT = {"exercise", "raises-exception"}
AT_A_KERNEL = """
import os
from course_lib import check
from course_lib.learner import record
asked, judged = {}, {}

def sit_down(desk):
    os.chdir(desk)
    record.here.cache_clear()

def hand_in(exercise, answer):
    if answer not in judged:
        getattr(check, exercise)(getattr(answers, answer))
        judged[answer] = list(record.kept())[-1]
    else:
        its = judged[answer]
        record.keep("verdict", exercise=exercise, passed=its["passed"], missed=its["missed"])
"""


@dataclass(frozen=True)
class Play:
    """What can be done in one chapter.

    Attributes:
        chapter: its name.
        guesses: prediction -> what people say; one of them is drawn for each learner.
        answers: exercise -> answers that are wrong, by their names in tests/check/answers_<chapter>.py. The
            right one has the exercise's name.
    """

    chapter: str
    guesses: dict[str, tuple]
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Learner:
    """One learner, and how far they come: a part of what can be done, 0 to 1."""

    name: str
    desk: Path
    far: float
    chance: random.Random

    @property
    def sits_down(self) -> str:
        """The line of code after which the kernel works at this learner's desk."""
        return f"sit_down({str(self.desk)!r})\n"

    def goes_to(self, at: int, of: int) -> bool:
        return at < self.far * of


def simulate(where: Path, names: list[str], plays: tuple[Play, ...], kernels: int = 1, seed: int = 0) -> Path:
    """Lay the desks, let the learners work, one kernel after the other; return the class's folder."""
    told, refused = lay_class(names, where, _book_of(plays, where / "book"))
    assert len(told) == len(names) and not refused, refused
    chance = random.Random(seed)
    learners = [
        Learner(
            name, where / name / desk.DESK, min(1, chance.uniform(0.25, 1.3)), random.Random(f"{seed} {name}")
        )
        for name in names
    ]
    for first in range(kernels):
        play_in_a_kernel(learners[first::kernels], plays)
    return where / CLASS


def play_in_a_kernel(learners: list[Learner], plays: tuple[Play, ...]) -> None:
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    manager, client = start_new_kernel(
        kernel_name="python3", cwd=str(learners[0].desk), env={**os.environ, "PYTHONPATH": path}
    )
    try:

        def do(code: str) -> None:
            reply = client.execute_interactive(code, timeout=PATIENCE_S, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", (code, reply["content"])

        do(f"import sys\nsys.path.insert(0, {str(PROJECT / 'tests' / 'check')!r})\n" + AT_A_KERNEL)
        of = sum(len(play.guesses) + len(play.answers) for play in plays)
        at = 0
        for play in plays:
            at = _play(play, learners, at, of, do)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _play(play: Play, learners: list[Learner], at: int, of: int, do) -> int:
    """One chapter, from its first cell to the last that is wanted; what can be done is counted on."""
    wanted, names = (
        set(play.guesses) | set(play.answers),
        {},
    )  # of predictions, by the variable of the chapter
    do(f"import answers_{play.chapter} as answers")
    for cell in _cells(play.chapter):
        if not wanted:
            break
        source = "".join(cell["source"])
        tags = set(cell["metadata"].get("tags", ()))
        asked = re.search(r'^(\w+) = predict\(\s*"([a-z0-9-]+)"', source, re.MULTILINE)
        compared = [one for one in re.findall(r"^(\w+)\.compare\(", source, re.MULTILINE) if one in names]
        checked = re.search(r"^check\.(\w+)\(", source, re.MULTILINE)
        if asked and asked[2] in wanted:
            variable, name = asked.groups()
            names[variable] = name
            for learner in learners:
                said = learner.chance.choice(play.guesses[name]) if learner.goes_to(at, of) else None
                say = "" if said is None else f"{variable}.say({said!r})\n"
                do(f"{learner.sits_down}{source}\n{say}asked[{learner.name!r}, {variable!r}] = {variable}")
        elif compared:
            work, compares = _parted(source, compared)
            do(work)
            for learner in learners:
                if learner.goes_to(at, of):
                    taken = "".join(f"{one} = asked[{learner.name!r}, {one!r}]\n" for one in compared)
                    do(f"{learner.sits_down}{taken}{compares}")
            wanted -= {names.pop(variable) for variable in compared}
            at += len(compared)
        elif checked:
            if checked[1] in wanted:
                for learner in learners:
                    if learner.goes_to(at, of):
                        _try(learner, checked[1], play.answers[checked[1]], do)
                wanted.discard(checked[1])
                at += 1
        elif not tags & LEFT_OUT and ("nbval-ignore-output" not in tags or "import" in source):
            do(source)
    assert not wanted, f"{play.chapter} has no cells for {wanted}"
    return at


def _try(learner: Learner, exercise: str, wrong: tuple[str, ...], do) -> None:
    """Up to three wrong answers, then mostly the right one."""
    tries = learner.chance.sample(wrong, learner.chance.choice((0, 0, 1, 1, 2)))
    tries += [exercise] if learner.chance.random() < 0.85 else []
    for answer in tries:
        do(f"{learner.sits_down}hand_in({exercise!r}, {answer!r})")


def _cells(chapter: str) -> list[dict]:
    cells = json.loads(_path(chapter).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _parted(source: str, compared: list[str]) -> tuple[str, str]:
    """A cell's jobs, and its comparisons with guesses."""
    parts = [], []
    for statement in ast.parse(source).body:
        text = ast.unparse(statement)
        parts[any(f"{one}.compare(" in text for one in compared)].append(text)
    return "\n".join(parts[0]), "\n".join(parts[1])


def _book_of(plays: tuple[Play, ...], folder: Path) -> Path:
    """A project with these chapters alone: thirty desks with all of them take long to lay."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    for play in plays:
        path = _path(play.chapter)
        shutil.copy(path, folder / "notebooks" / path.name)
    return folder


def _path(chapter: str) -> Path:
    (path,) = (PROJECT / "notebooks").glob(f"[0-9]*_{chapter}.ipynb")
    return path


def damage(folder: Path, cut: str, garbage: str, foreign: str) -> None:
    """Three records as accidents leave them: the last line of one is cut and another line is not whole, one
    is no text, one is another program's.
    """
    path = folder / f"{cut}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][: len(lines[2]) // 2] + b"\n"
    path.write_bytes(b"".join(lines)[:-9])
    (folder / f"{garbage}.jsonl").write_bytes(bytes(random.Random(0).randrange(256) for _ in range(4000)))
    (folder / f"{foreign}.jsonl").write_text('{"version": 2, "widgets": [[], {}]}\n[1, 2, 3]\n"kind"\n')
