"""What a desk passes on to a class: nothing without the join, nothing from before it, each line once, and
nobody's work stops where it cannot be written.
"""

import json
import os
import stat
from pathlib import Path

import pytest

from course_lib.learner import __main__ as commands
from course_lib.learner import class_folder, lines, record
from course_lib.learner.class_folder import join, leave, membership


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


@pytest.fixture
def desk(tmp_path):
    return make_desk(tmp_path / "ada")


def make_desk(place: Path) -> Path:
    (place / "desk").mkdir(parents=True)
    (place / "desk" / record.COPIES).write_text("{}")
    return place / "desk"


def join_as(desk: Path, folder: Path, name: str) -> str:
    return join(desk, folder, name, desk / record.RECORD)


def guess(desk: Path, number: int) -> None:
    record.keep("guess", desk, name="ring-bytes", guess=number, unit="", known=False)


def passed_on(file: Path) -> list[int]:
    found, others = lines.read(file.read_text())
    assert not others and found[0]["kind"] == "joined"
    return [line["guess"] for line in found[1:]]


def test_nothing_leaves_a_desk_that_has_not_joined_or_has_left(desk, folder):
    guess(desk, 1)
    assert list(folder.iterdir()) == [] and membership(desk) is None
    join_as(desk, folder, "Ada L.")
    guess(desk, 2)
    assert leave(desk).startswith("Nothing more is passed on.")
    guess(desk, 3)
    assert passed_on(folder / "Ada L..jsonl") == [2]
    assert [line["guess"] for line in record.kept(desk)] == [1, 2, 3]
    join_as(desk, folder, "Ada L.")
    guess(desk, 4)
    assert passed_on(folder / "Ada L..jsonl") == [2, 4], "what was kept in between stays in the desk"
    assert leave(desk) and leave(desk) == "This desk is in no class."


def test_the_join_says_in_one_sentence_who_sees_what(desk, folder):
    told = join_as(desk, folder, "ada")
    assert told == join_as(desk, folder, "ada"), "again changes nothing"
    for words in ("your guesses", "verdicts of checks", str(folder / "ada.jsonl"), "everybody who may enter"):
        assert words in told
    assert stat.S_IMODE((folder / "ada.jsonl").stat().st_mode) == 0o644
    folder.chmod(0o3733)
    assert "you and the group" in join_as(make_desk(folder.parent / "ben"), folder, "ben")
    assert stat.S_IMODE((folder / "ben.jsonl").stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_mode_is_the_folders_whatever_the_umask(desk, folder, umask):
    before = os.umask(umask)
    try:
        join_as(desk, folder, "ada")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "ada.jsonl").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ben", "a/b", ".ada", " ada", "ada ", "a\nb", "a" * 61, "$x$"]
)
def test_a_name_that_leads_elsewhere_is_refused(desk, folder, name):
    with pytest.raises(ValueError, match="name="):
        join_as(desk, folder, name)
    assert list(folder.iterdir()) == [] and membership(desk) is None


def test_two_learners_cannot_have_one_name(desk, folder):
    join_as(desk, folder, "ada")
    other = make_desk(folder.parent / "other")
    with pytest.raises(ValueError, match="Another desk is in this class as 'ada': choose another name."):
        join_as(other, folder, "ada")
    guess(other, 9)
    guess(desk, 1)
    assert passed_on(folder / "ada.jsonl") == [1] and membership(other) is None


@pytest.mark.parametrize("plant", [lambda path, to: path.symlink_to(to), lambda path, to: os.mkfifo(path)])
def test_a_link_or_a_pipe_under_the_name_is_not_followed(desk, folder, tmp_path, plant):
    target = tmp_path / "precious"
    target.write_text('{"desk": "x"}\n')
    plant(folder / "ada.jsonl", target)
    with pytest.raises(ValueError, match="choose another name"):
        join_as(desk, folder, "ada")
    assert target.read_text() == '{"desk": "x"}\n'


def test_a_link_to_a_file_that_names_this_desk_is_not_followed_either(desk, folder, tmp_path):
    join_as(desk, folder, "ada")
    leave(desk)
    own = (folder / "ada.jsonl").rename(tmp_path / "elsewhere")
    (folder / "ada.jsonl").symlink_to(own)
    with pytest.raises(ValueError, match="choose another name"):
        join_as(desk, folder, "ada")


def test_a_file_that_has_become_anothers_stays_so_and_stops_nobody(desk, folder):
    join_as(desk, folder, "ada")
    (folder / "ada.jsonl").write_text('{"kind": "joined", "desk": "of another"}\n')
    guess(desk, 1)
    assert len((folder / "ada.jsonl").read_text().splitlines()) == 1
    assert [line["guess"] for line in record.kept(desk)] == [1]


def test_a_desk_is_in_one_class(desk, folder, tmp_path):
    join_as(desk, folder, "ada")
    (tmp_path / "second").mkdir()
    with pytest.raises(ValueError, match="leave that class first"):
        join_as(desk, tmp_path / "second", "ada")
    with pytest.raises(ValueError, match="There is no folder"):
        join_as(make_desk(tmp_path / "ben"), tmp_path / "nowhere", "ben")


def test_a_folder_that_vanishes_stops_nobody_and_what_was_missed_follows(desk, folder):
    join_as(desk, folder, "ada")
    guess(desk, 1)
    folder.rename(folder.with_name("away"))
    guess(desk, 2)
    assert not folder.exists(), "it is not made anew: a disk that is away would be covered"
    folder.with_name("away").rename(folder)
    guess(desk, 3)
    assert passed_on(folder / "ada.jsonl") == [1, 2, 3]
    (folder / "ada.jsonl").unlink()  # the teacher begins the folder anew
    guess(desk, 4)
    assert passed_on(folder / "ada.jsonl") == [4]


def test_on_a_full_disk_no_half_line_stays_and_all_follows_later(desk, folder, monkeypatch):
    join_as(desk, folder, "ada")
    guess(desk, 1)
    write, own = os.write, (folder / "ada.jsonl").stat().st_ino
    full = lambda file, text: write(file, text[:20] if os.fstat(file).st_ino == own else text)  # noqa: E731
    monkeypatch.setattr(lines.os, "write", full)
    guess(desk, 2)
    assert passed_on(folder / "ada.jsonl") == [1]
    monkeypatch.setattr(lines.os, "write", write)
    guess(desk, 3)
    assert passed_on(folder / "ada.jsonl") == [1, 2, 3]


def test_a_record_begun_anew_and_a_spoilt_membership_stop_nobody(desk, folder):
    join_as(desk, folder, "ada")
    for number in range(3):
        guess(desk, number)
    (desk / record.RECORD).unlink()
    guess(desk, 7)
    assert passed_on(folder / "ada.jsonl") == [0, 1, 2, 7]
    for text in ("{", "[]", '{"folder": 3}', '{"folder": "/x", "name": "../y", "desk": "z", "sent": 0}'):
        (desk / ".class.json").write_text(text)
        guess(desk, 8)
        assert membership(desk) is None
    assert len(list(record.kept(desk))) == 5


def test_two_notebooks_at_once_pass_each_line_on_once(desk, folder):
    join_as(desk, folder, "ada")
    children = []
    for first in (0, 100):
        if not (child := os.fork()):
            for number in range(first, first + 50):
                guess(desk, number)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert sorted(passed_on(folder / "ada.jsonl")) == [*range(50), *range(100, 150)]


def test_the_commands_join_say_so_and_leave(desk, folder, capsys):
    place = ["--place", str(desk.parent)]
    assert commands.main(["join", str(folder), "--name", "ada", *place]) == 0
    assert commands.main(["where", *place]) == 0
    assert f"passed on to {folder / 'ada.jsonl'}" in capsys.readouterr().out
    assert commands.main(["join", str(folder), "--name", "a/b", *place]) == 1
    assert capsys.readouterr().err.startswith("Error: name='a/b'")
    assert commands.main(["leave", *place]) == 0 and membership(desk) is None
    assert commands.main(["join", str(folder), "--name", "x", "--place", str(folder)]) == 1
    assert "There is no desk in" in capsys.readouterr().err


def test_a_desk_that_has_left_is_known(desk, folder):
    assert not class_folder.has_left(desk)
    join_as(desk, folder, "ada")
    assert not class_folder.has_left(desk)
    leave(desk)
    assert class_folder.has_left(desk) and json.loads((desk / ".class.json").read_text()).keys() == {"desk"}
