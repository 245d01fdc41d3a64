"""What ranks and their roles are called."""

from functools import partial

from course_lib.roles import label_of, rank_name, ranks_in_words, roles_of


class Trainer:
    def __call__(self):
        """Nothing."""


def serve():
    """Nothing."""


def work(x=1):
    """Nothing."""


def test_a_job_is_named_after_its_functions_each_once():
    assert [label_of(fn) for fn in (serve, partial(partial(work, 1)), Trainer())] == [
        "serve",
        "work",
        "Trainer",
    ]
    assert label_of([serve, work, work]) == "serve and work"
    assert label_of((serve, work, Trainer(), len)) == "serve, work, Trainer and len"


def test_roles_are_those_of_a_list_alone():
    assert roles_of(serve) == [] and roles_of([serve, partial(work, 2)]) == ["serve", "work"]


def test_ranks_within_a_sentence():
    assert [ranks_in_words(ranks) for ranks in ([1], [0, 2], [3, 0, 1])] == [
        "rank 1",
        "ranks 0 and 2",
        "ranks 0, 1 and 3",
    ]
    roles = ["Serve", "work", "work", "work"]
    assert [ranks_in_words(ranks, roles) for ranks in ([0], {3, 1}, (0, 1), iter([0, 1, 2]), [])] == [
        "rank 0 (Serve)",
        "ranks 1 and 3 (work)",
        "ranks 0 (Serve) and 1 (work)",
        "ranks 0 (Serve), 1 (work) and 2 (work)",
        "rank ",
    ]


def test_a_rank_at_the_beginning_of_a_line():
    assert rank_name(2) == "rank 2" and rank_name(1, ["serve", "work"]) == "rank 1, work"
