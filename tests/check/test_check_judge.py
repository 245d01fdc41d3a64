"""The judge: answers that are called without ranks cannot leave the check or hold it, and what they raise is
told with their own line.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from course_lib import check
from course_lib.check import exercise
from course_lib.check.judge import RUNS
from course_lib.check.on_rank import plain, whole
from course_lib.check.rubric import Demand
from course_lib.ranks import folder


@exercise(doubled="every number is doubled")
def double(judge, answer):
    """`answer(number)` is asked in a process of its own, with little patience."""
    for number, found in zip((1, 2), judge.call(answer, [(1,), (2,)], timeout=PATIENCE_S)):
        why = f"{number}: you say {found}" if found != 2 * number else ""
        judge.demand("doubled", why, f"{number} is doubled")


def called_here(answer):
    """Calls the answer in this process, and looks into what it returns. Its own lines are in no file, as a
    check's are in none of the learner's.
    """
    names = {}
    code = "def called_here(judge, answer):\n    judge.demand('one', '' if answer(1)['x'] == 1 else 'wrong')"
    exec(code, names)
    return exercise(one="it is one")(names["called_here"])(answer)


PATIENCE_S = 60.0


def right(number):
    return 2 * number


def stub(number):
    raise NotImplementedError


def fails_at_2(number):
    return [2, 4][2 * number - 2]


def leaves(number):
    sys.exit("I am done")


def ends_its_process(number):
    os._exit(3)


def interrupts(number):
    raise KeyboardInterrupt


def never_ends(number):
    while True:
        time.sleep(0.01)


def changes_what_is_around(number):
    os.environ["CHANGED_BY_AN_ANSWER"] = "1"
    return 2 * number


def speaks(number):
    print("I was given", number)
    return 2 * number


def test_a_right_answer_is_accepted_and_the_stub_is_left_in_peace():
    assert double(right) and called_here(stub).untouched and double(stub).untouched


@pytest.mark.parametrize(
    "answer, reason",
    [
        (
            fails_at_2,
            "your function raised IndexError: list index out of range\n      test_check_judge.py, line",
        ),
        (fails_at_2, "return [2, 4][2 * number - 2]"),
        (leaves, "your function raised SystemExit: I am done\n      test_check_judge.py, line"),
        (ends_its_process, "your function ended its process with exit code 3"),
        (interrupts, "your function raised KeyboardInterrupt"),
    ],
)
def test_an_answer_that_ends_in_its_own_process_is_told_with_its_line(answer, reason):
    verdict = double(answer)
    assert not verdict and reason in repr(verdict), verdict


def test_an_answer_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE_S", 1.5)
    verdict = double(never_ends)
    assert not verdict and "your function had not finished after 1.5 s" in repr(verdict)


def test_an_answer_that_cannot_be_sent_is_told_so():
    lock = threading.Lock()
    assert "your function cannot be sent to the ranks" in repr(double(lambda number: lock and 2 * number))
    assert "returned a list that cannot be sent back to the notebook" in repr(
        double(lambda number: (n for n in ()))
    )


def test_an_answer_changes_nothing_here_and_its_words_are_shown(capsys):
    assert double(changes_what_is_around) and "CHANGED_BY_AN_ANSWER" not in os.environ
    assert double(speaks) and capsys.readouterr().out == "I was given 1\nI was given 2\n"


def says_much(number=1):
    print("x" * 500_000)
    return 2 * number


def says_much_and_fails(number=1):
    says_much()
    raise ValueError("enough")


@pytest.mark.parametrize("answer", [says_much, says_much_and_fails])
def test_an_answer_that_prints_a_lot_leaves_no_file(answer, tmp_path, monkeypatch):
    """A job keeps long output in a file, and says where. Of a check's jobs nobody would be told."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert bool(double(answer)) == (answer is says_much)
    assert not count_ranks(answer), "it returns no number of ranks"
    assert not list(tmp_path.glob("course_lib-output*"))


@pytest.mark.parametrize(
    "answer, reason",
    [
        (fails_at_2, "the check cannot judge what your function returned, or was given (TypeError"),
        (leaves, "your code raised SystemExit: I am done\n      test_check_judge.py, line"),
        (lambda number: {}[number], "your code raised KeyError: 1\n      test_check_judge.py, line"),
    ],
)
def test_what_is_raised_in_the_notebooks_own_process_is_told_as_whose_it_is(answer, reason):
    verdict = called_here(answer)
    assert not verdict and reason in repr(verdict), verdict


def all_take_part(answer):
    """The check has a barrier of its own after the answer; its lines are in no file."""
    names = {}
    exec(
        """
def all_take_part(judge, answer):
    def trial():
        import torch
        answer()
        torch.distributed.barrier()

    judge.run(trial, ranks=3)
""",
        names,
    )
    return exercise(takes_part="all take part")(names["all_take_part"])(answer)


def rank_1_does_not():
    if torch.distributed.get_rank() != 1:
        torch.distributed.all_reduce(torch.zeros(2))


def test_a_mistake_of_one_rank_is_told_as_that_and_not_by_the_checks_own_calls():
    said = repr(all_take_part(rank_1_does_not))
    assert (
        "On rank 1 it is done, and ranks 0 and 2 still wait in it." in said
        and "rank 1: was done" in said
        and "barrier" not in said
    ), said
    assert "rank 0: waits in all_reduce of float32[2]\n      test_check_judge.py, line" in said


@exercise(
    number=Demand(
        "the number of ranks", lambda job: "" if job.results == [job.ranks] * job.ranks else "wrong"
    ),
    quiet=Demand("and nothing is said of this", lambda job: "" if job.ranks > 1 else "too few", quiet=True),
    later=Demand("of {n} ranks", lambda job: None if job.ranks == 2 else ""),
    then=Demand("and then", lambda job: "", after=("number",)),
    by_hand="judged by the check itself",
)
def count_ranks(judge, answer):
    def trial(answer):
        return answer() if answer() is not None else {"problem": "the answer returns nothing"}

    for ranks in (2, 3):
        judge.tried(f"{ranks} ranks", trial, answer, ranks=ranks, label="your count")
    judge.case = ""
    judge.demand("by_hand", "" if judge.met else "not here", "judged, and met")


def test_demands_are_made_of_a_trial_case_by_case_and_each_note_has_its_key():
    right = count_ranks(torch.distributed.get_world_size)
    assert right and right.exercise == "count_ranks"
    assert repr(right).splitlines() == [
        "count ranks: solved",
        "  yes  2 ranks: the number of ranks",
        "  yes  2 ranks: and then",
        "  yes  3 ranks: the number of ranks",
        "  yes  3 ranks: of 3 ranks",
        "  yes  3 ranks: and then",
        "  yes  judged, and met",
    ]
    keys = ["number", "quiet", "then", "number", "quiet", "later", "then", "by_hand"]
    assert [note.key for note in right.notes] == keys and all(note.met for note in right.notes)
    wrong = count_ranks(lambda: 2)
    assert [note.met for note in wrong.notes] == [True, True, True, False, True, True, False]
    assert wrong.lines[2:] == ("no   3 ranks: wrong", "yes  3 ranks: of 3 ranks", "no   not here")


def test_an_answer_that_cannot_be_judged_is_refused_and_nothing_else_is_said():
    refused = count_ranks(lambda: None)
    assert refused.lines == ("no   2 ranks: the answer returns nothing.",)
    assert [(note.key, note.met) for note in refused.notes] == [(RUNS, False)]
    fails = count_ranks(lambda: 1 / 0)
    assert "your count failed on rank" in repr(fails) and fails.notes[-1].key == RUNS


def test_what_is_asked_for_can_be_read_before_the_first_try():
    asked = check.demands("ring_reduce_scatter")
    assert asked == check.demands(check.ring_reduce_scatter) and len(asked) == 3
    assert repr(asked).splitlines()[0] == "ring reduce scatter asks for:"
    assert repr(asked).splitlines()[2] == "  -  only sends and receives were used"
    assert check.demands(count_ranks)[2] == "of n ranks"
    with pytest.raises(ValueError, match="it must be one of 'ping_pong'"):
        check.demands("ring")
    with pytest.raises(TypeError, match="give it a check"):
        check.demands(len)


@pytest.mark.parametrize("name", check.EXERCISES)
def test_every_exercise_says_what_it_asks_for_in_a_few_short_sentences(name):
    asked = check.demands(name)
    assert 2 <= len(asked) <= 8 and len(set(asked)) == len(asked)
    assert all(sentence and len(sentence) <= 110 and "{" not in sentence for sentence in asked), asked
    known = set()
    for key, demand in getattr(check, name).demands.items():
        assert key.isidentifier() and key != RUNS and known.issuperset(demand.after)
        known.add(key)


def test_where_no_rank_can_be_started_nothing_is_said_of_the_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "new_path", lambda: Path(f"{tmp_path}/a\0b"))
    monkeypatch.setattr(folder, "remove", lambda path: None)
    with pytest.raises(RuntimeError, match="supervisor of its ranks failed .*nothing of your answer"):
        check.average(lambda tensor: tensor)


def test_an_interrupt_of_a_check_is_heard():
    with pytest.raises(KeyboardInterrupt):
        called_here(interrupts)


def test_numbers_and_lists_of_any_library():
    assert plain({"a": numpy.int64(1), "b": [torch.tensor(2), (numpy.float64(0.5),)]}) == {
        "a": 1,
        "b": [2, [0.5]],
    }
    assert plain(numpy.arange(4).reshape(2, 2)) == plain(torch.arange(4).view(2, 2)) == [[0, 1], [2, 3]]
    assert plain([numpy.array(3), torch.tensor([1.0], requires_grad=True)]) == [3, [1.0]]
    odd = object()
    assert plain(odd) is odd and plain(torch.empty(2, device="meta")).device.type == "meta"
    assert [
        whole(value) for value in (3, numpy.int64(3), numpy.uint8(3), torch.tensor(3), numpy.array(3))
    ] == [3] * 5
    assert [
        whole(value)
        for value in (
            True,
            numpy.bool_(True),
            torch.tensor(True),
            2.0,
            torch.tensor(2.0),
            "2",
            None,
            [2],
            torch.empty(2, device="meta"),
        )
    ] == [None] * 9
