"""Desks for a class: laid and joined from a list, as often as one likes, and nothing of a learner's is
lost.
"""

import json
import os
import pwd
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from course_lib.classroom import __main__ as commands
from course_lib.classroom.desks import CLASS, lay_class
from course_lib.learner import class_folder, record


@pytest.fixture
def project(tmp_path):
    """A project of one chapter."""
    return make_project(tmp_path / "p")


def make_project(folder: Path) -> Path:
    (folder / "notebooks").mkdir(parents=True)
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Begin"}]
    text = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (folder / "notebooks" / "10_begin.ipynb").write_text(text)
    return folder


def test_each_name_gets_a_desk_that_passes_on_to_the_class(project, tmp_path):
    told, refused = lay_class(["ada", "Ben K."], tmp_path / "all", project)
    assert refused == [] and told == [
        f"ada: {sys.executable} -m course_lib.learner lab --place {tmp_path}/all/ada",
        f"Ben K.: {sys.executable} -m course_lib.learner lab --place '{tmp_path}/all/Ben K.'",
    ]
    desk = tmp_path / "all" / "ada" / "desk"
    assert (desk / "10_begin.ipynb").is_file()
    record.keep("guess", desk, name="ring", guess=1, unit="", known=False)
    assert '"ring"' in (tmp_path / "all" / CLASS / "ada.jsonl").read_text()
    mode = stat.S_IMODE((tmp_path / "all" / CLASS).stat().st_mode)
    assert mode & 0o003 == 0o003 and not mode & 0o004, "all may add a file, none may list the others"
    assert stat.S_IMODE((tmp_path / "all" / "ada").stat().st_mode) == 0o700


def test_a_second_time_keeps_what_is_there_and_who_has_left_stays_away(project, tmp_path):
    lay_class(["ada", "ben"], tmp_path / "all", project)
    mine = tmp_path / "all" / "ada" / "desk" / "10_begin.ipynb"
    mine.write_text(mine.read_text().replace("# Begin", "# My note"))
    before, ben = mine.read_text(), tmp_path / "all" / "ben" / "desk"
    class_folder.leave(ben)
    told, refused = lay_class(["ada", "ben", "cleo"], tmp_path / "all", project)
    assert len(told) == 3 and not refused and mine.read_text() == before
    assert class_folder.membership(ben) is None
    assert class_folder.membership(mine.parent).name == "ada"
    lines = (tmp_path / "all" / CLASS / "ada.jsonl").read_text().splitlines()
    assert len(lines) == 1, "it has joined once"


def test_names_that_cannot_be_are_refused_with_the_reason_and_the_others_are_laid(project, tmp_path):
    (tmp_path / "all" / CLASS).mkdir(parents=True)
    (tmp_path / "all" / CLASS / "dora.jsonl").write_text('{"kind": "joined", "desk": "of another"}\n')
    (tmp_path / "all" / "emil").write_text("a file")
    names = ["ada", "ada", "../ben", CLASS, "dora", "emil", "fay"]
    told, refused = lay_class(names, tmp_path / "all", project)
    assert [sentence.partition(":")[0] for sentence in told] == ["ada", "fay"]
    assert [sentence.partition(":")[0] for sentence in refused] == names[1:-1]
    for sentence, words in zip(refused, ("twice", "letters", "all join", "Another desk", "emil")):
        assert words in sentence.partition(":")[2]
    assert not (tmp_path / "ben").exists()


def test_the_command_reads_a_list_and_says_what_to_type_and_what_was_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.kernel, "make_known", lambda: None)
    monkeypatch.setattr(commands.desks, "lay_class", lambda names, where: (names, ["x: no."]))
    (tmp_path / "names.txt").write_text("# room 3\nada\n\n  Ben K. \n")
    assert commands.main(["lay", str(tmp_path / "names.txt"), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (
        out.startswith("ada\nBen K.\n\n2 desks;")
        and str(tmp_path / CLASS) in out
        and err == "Refused: x: no.\n"
    )
    assert commands.main(["lay", str(tmp_path / "no.txt"), str(tmp_path)]) == 1
    assert "Error: " in capsys.readouterr().err


def test_a_list_may_come_from_windows_or_a_mac(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.kernel, "make_known", lambda: None)
    monkeypatch.setattr(commands.desks, "lay_class", lambda names, where: (names, []))
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfAnna\r\n")
    assert commands.main(["lay", str(names), str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Anna\n\n1 desk;")
    names.write_text("Zoe\u0308\n", encoding="utf-8")  # the accent is a letter of its own
    assert commands.main(["lay", str(names), str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("Zo\u00eb\n")
    names.write_text("Anna\n", encoding="utf-16")
    assert commands.main(["lay", str(names), str(tmp_path)]) == 1
    assert f"{names} is no text in UTF-8" in capsys.readouterr().err


def test_by_root_a_users_desk_is_the_users(project):
    """With a user that every Linux has, in a folder that this user can enter."""
    try:
        user = pwd.getpwnam("daemon")
    except KeyError:
        pytest.skip("there is no user daemon here")
    if os.geteuid() != 0:
        pytest.skip("only root can work for another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        readable = Path(shutil.copytree(project, Path(folder) / "p"))
        told, refused = lay_class(["daemon"], Path(folder) / "all", readable)
        assert not refused and len(told) == 1
        for path in (Path(folder) / "all" / "daemon").rglob("*"):
            assert path.lstat().st_uid == user.pw_uid, path
        its = Path(folder) / "all" / CLASS / "daemon.jsonl"
        assert its.stat().st_uid == user.pw_uid and its.stat().st_gid == os.getegid()
        assert stat.S_IMODE(its.stat().st_mode) == 0o640, "the teacher's group reads it, and no other learner"
        os.chown(Path(folder) / "all" / "daemon", 0, 0)
        assert "belongs to another user" in lay_class(["daemon"], Path(folder) / "all", readable)[1][0]
