"""A class as tables: each number as the records say, and damaged and foreign ones passed over and counted."""

import io
import os
from contextlib import redirect_stdout

import pandas as pd
import pytest
from class_records import BYTES, CHOICE, EXERCISE, OTHER, at, compared, guess, reset, verdict, write

from course_lib.classroom import __main__ as commands
from course_lib.classroom.reading import MOST_BYTES, SAMPLE, read_class
from course_lib.classroom.tables import guesses, progress, stumbles, times, tries, who_is_where
from course_lib.classroom.topics import talk_about

TABLES = (who_is_where, progress, times, guesses, tries, stumbles, talk_about)


def test_who_is_where_and_how_far(tmp_path):
    write(
        tmp_path, "ada", guess(1), compared(1), verdict("shares"), verdict(), verdict("bytes", exercise=OTHER)
    )
    write(tmp_path, "ben", guess("3", CHOICE))
    write(tmp_path, "cleo")
    room = read_class(tmp_path)
    assert repr(room) == "3 learners, 9 lines; passed over, damaged or foreign: 0 files, 0 lines"
    table = who_is_where(room).set_index("learner")
    assert list(table.index) == ["ada", "ben", "cleo"], "who was there last stands first"
    assert table.loc["ada"].drop(["chapter", "last_seen"]).tolist() == [1, 1, OTHER]
    assert "Start here" in table.loc["ada", "chapter"] and table.loc["cleo", "chapter"] == ""
    assert table.loc["ada", "last_seen"] == pd.Timestamp(at(5)).tz_localize(None)
    share = progress(room)
    (chapter,) = [one for one in room.chapters if one.name == "start_here"]
    asked = len(chapter.predictions) + len(chapter.exercises)
    assert share.loc["ada", chapter.file] == 2 / asked and share.loc["cleo"].sum() == 0
    assert share.shape == (3, len(room.chapters))


def test_how_long_a_chapter_took_without_the_breaks(tmp_path):
    write(tmp_path, "ada", guess(1), compared(1), {"when": at(40).isoformat()} | verdict())  # away 38 minutes
    write(tmp_path, "ben", guess(1), compared(1), verdict("shares"), verdict())
    write(tmp_path, "cleo", guess(1))
    (row,) = times(read_class(tmp_path)).to_dict("records")
    assert "Start here" in row["chapter"] and row["learners"] == 2
    assert (row["minutes"], row["shortest"], row["longest"]) == (2, 1, 3)
    (chapter,) = [one for one in read_class(tmp_path).chapters if one.name == "start_here"]
    assert row["it_says"] == f"{chapter.minutes[0]} + {chapter.minutes[1]}"


def test_a_minute_counts_for_one_chapter_alone(tmp_path):
    elsewhere = guess(1, "momentum-bill"), compared(1, name="momentum-bill")
    write(tmp_path, "ada", guess(1), compared(1), *elsewhere, verdict("shares"), verdict())
    table = times(read_class(tmp_path))
    assert table["minutes"].tolist() == [2, 1] and table["learners"].tolist() == [1, 1]


def test_the_first_guess_that_was_compared_counts_and_one_that_knew_does_not(tmp_path):
    write(tmp_path, "ada", guess(3), guess(2), compared(2), reset(BYTES), guess(1.5), compared(1.5))
    write(tmp_path, "ben", compared(None), guess(1.5, known=True), compared(1.5))
    write(tmp_path, "cleo", guess(4))
    write(tmp_path, "dora", guess(4), reset(BYTES))
    write(tmp_path, "emil", guess(1.52), compared(1.52))
    table = guesses(read_class(tmp_path)).set_index("learner")
    assert table[["guess", "measured", "right"]].values.tolist() == [
        [2, 1.5, False],
        [4, None, None],
        [1.52, 1.5, True],
    ]
    assert list(table.index) == ["ada", "cleo", "emil"] and table.loc["cleo", "how"] is None


def test_where_editions_ask_in_two_ways_most_decide(tmp_path):
    for name in ("ada", "ben"):
        write(tmp_path, name, guess("3", CHOICE), compared("3", "3", CHOICE))
    write(tmp_path, "cleo", guess(3, CHOICE), compared(3, 3, CHOICE))
    assert list(guesses(read_class(tmp_path))["guess"]) == ["3", "3"]


def test_tries_until_it_is_solved_and_what_is_missed_first(tmp_path):
    missed = verdict("shares", "messages")
    write(tmp_path, "ada", missed, verdict("messages"), verdict(), verdict("shares"))
    write(tmp_path, "ben", missed, missed)
    write(tmp_path, "cleo", verdict("runs"))
    write(tmp_path, "dora", verdict("a-key-of-old"), {**verdict(), "exercise": "gone"})
    room = read_class(tmp_path)
    table = tries(room).set_index("learner")
    assert table[["tries", "solved"]].values.tolist() == [[3, True], [2, False], [1, False], [1, False]]
    assert table.loc["ada", "solved_at"] == pd.Timestamp(at(3)).tz_localize(None) and pd.isna(
        table.loc["ben", "solved_at"]
    )
    found = stumbles(room).set_index("demand")
    assert found[["learners", "tries"]].T.to_dict("list") == {
        "shares": [2, 3],
        "messages": [1, 1],
        "runs": [1, 1],
        "a-key-of-old": [1, 1],
    }
    assert found.loc["shares", "words"].startswith("every sample is on one rank")
    assert (
        found.loc["runs", "words"].startswith("the answer runs")
        and found.loc["a-key-of-old", "words"] == "a-key-of-old"
    )


def test_what_concerns_most_learners_is_talked_about_first(tmp_path):
    for name in ("ada", "ben", "cleo"):
        write(
            tmp_path,
            name,
            guess(2),
            compared(2),
            guess("3", CHOICE),
            compared("3", "3", CHOICE),
            verdict("shares"),
        )
    write(tmp_path, "dora", guess(1.5), compared(1.5), verdict())
    table = talk_about(read_class(tmp_path))
    assert table[["learners", "of", "name"]].values.tolist() == [[3, 4, BYTES], [3, 4, EXERCISE]]
    assert table["why"][0] == "3 said 2 x P; measured: 1.5 x P."
    assert table["why"][1].startswith("Missed first, in 3 tries: every sample")
    assert len(talk_about(read_class(tmp_path), most=1)) == 1


def test_what_is_no_record_is_passed_over_and_counted(tmp_path):
    whole = write(tmp_path, "ada", guess(2), compared(2), verdict())
    text = whole.read_text()
    bad = [
        text.splitlines()[1][:30],  # cut
        '{"kind": "guess"}',
        text.splitlines()[1].replace("guess", "sung"),
        text.splitlines()[1].replace('"guess": 2', '"guess": NaN'),
        text.splitlines()[1].replace('"guess": 2', f'"guess": {10**400}'),
        text.splitlines()[2].replace('"guess": 2', '"guess": "two"'),
        text.splitlines()[1].replace("2026-", "soon-"),
        text.splitlines()[3].replace("[]", '["<b>"]'),
        "[" * 100_000,
        "\x00",
    ]
    whole.write_text(text + "\n".join(bad))
    (tmp_path / "garbage.jsonl").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "foreign.jsonl").write_text('{"cells": []}\n[1]\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text(text)
    (tmp_path / "=cmd.jsonl").write_text(text)
    (tmp_path / "link.jsonl").symlink_to(whole)
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with (tmp_path / "huge.jsonl").open("w") as file:
        file.write(text)
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "README.md").write_text("what this is")
    room = read_class(tmp_path)
    assert repr(room) == "1 learner, 4 lines; passed over, damaged or foreign: 9 files, 10 lines"
    assert len(guesses(room)) == len(tries(room)) == 1


def test_an_empty_class_has_empty_tables_and_no_class_is_said(tmp_path):
    for table in TABLES:
        assert len(table(read_class(tmp_path))) == 0
    with pytest.raises(ValueError, match="There is no folder"):
        read_class(tmp_path / "nowhere")


def test_marks_as_csv(tmp_path, capsys):
    write(tmp_path, "ben", verdict("shares"), verdict())
    write(tmp_path, "ada, L", verdict(), verdict("bytes", exercise=OTHER)).rename(tmp_path / "ada L.jsonl")
    out = io.StringIO()
    with redirect_stdout(out):
        assert commands.main(["csv", str(tmp_path)]) == 0
    assert out.getvalue().splitlines() == [
        "learner,chapter,exercise,tries,solved_at_utc",
        f"ada L,00_start_here.ipynb,{EXERCISE},1,{at(1):%Y-%m-%d %H:%M:%S}",
        f"ben,00_start_here.ipynb,{EXERCISE},2,{at(2):%Y-%m-%d %H:%M:%S}",
    ]
    assert commands.main(["csv", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.endswith(f"Error: There is no folder {tmp_path / 'nowhere'}.\n")


def test_the_sample_is_a_class_of_thirty_of_whom_three_are_damaged():
    room = read_class()
    assert len(list(SAMPLE.glob("*.jsonl"))) == 30 and len(room.learners) == 28
    assert room.files_passed_over == 2 and room.lines_passed_over == 2
    for table in TABLES:
        assert len(table(room))
