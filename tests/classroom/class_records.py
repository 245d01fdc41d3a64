"""Records of a class, written by hand for tests."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

BYTES, CHOICE = "bytes-of-four-ranks", "numbers-in-the-list"  # predictions of "Start here"
EXERCISE, OTHER = "my_share", "average"  # and exercises


def at(minute: int) -> datetime:
    """When the line of that number is written."""
    return datetime(2026, 3, 2, 9, tzinfo=UTC) + timedelta(minutes=minute)


def write(folder: Path, learner: str, *lines: dict) -> Path:
    """A learner's file: the line of the join, and these, a minute apart."""
    path = folder / f"{learner}.jsonl"
    whole = [{"kind": "joined", "desk": learner}, *lines]
    texts = [json.dumps({"when": at(minute).isoformat()} | line) for minute, line in enumerate(whole)]
    path.write_text("\n".join(texts) + "\n")
    return path


def guess(value, name=BYTES, known=False) -> dict:
    return {"kind": "guess", "name": name, "guess": value, "unit": "x P", "known": known}


def compared(value, measured=1.5, name=BYTES, how="measured") -> dict:
    return {"kind": "compared", "name": name, "guess": value, "measured": measured, "unit": "x P", "how": how}


def verdict(*missed: str, exercise=EXERCISE) -> dict:
    return {"kind": "verdict", "exercise": exercise, "passed": not missed, "missed": list(missed)}


def reset(*predictions: str) -> dict:
    return {"kind": "reset", "chapter": "00_start_here.ipynb", "predictions": list(predictions)}
