"""Tell the learner's own code from libraries, and name a place in it."""

import linecache
from pathlib import Path

from course_lib.frontend import ipython_shell

__all__ = ["is_learners", "learners_frame", "place_in_words", "line_of"]

_LIBRARY = str(Path(__file__).resolve().parents[1])
_STDLIB = str(Path(linecache.__file__).parent)


def is_learners(filename: str) -> bool:
    """Whether a file is neither this library, nor an installed one, nor Python's own."""
    return not (
        filename.startswith(("<frozen", "<string>", _LIBRARY, _STDLIB)) or "site-packages" in filename
    )


def learners_frame(frames: list[tuple[str, int, str]]) -> tuple[str, int, str] | None:
    """The innermost frame (filename, line, function) that the learner wrote; frames outermost first."""
    return next((frame for frame in reversed(frames) if is_learners(frame[0])), None)


def place_in_words(frame: tuple[str, int, str]) -> str:
    """ "Cell In[5], line 3, in train" in a notebook, "train.py, line 3, in train" elsewhere."""
    filename, number, function = frame
    shell = ipython_shell()
    name = shell.compile.format_code_name(filename) if shell is not None else None
    return f"{' '.join(name) if name else Path(filename).name}, line {number}, in {function}"


def line_of(frame: tuple[str, int, str]) -> str:
    """The line of code itself."""
    return linecache.getline(frame[0], frame[1]).strip()
