"""A call of torch.distributed in the notebook's own process."""

import pytest
import torch  # noqa: F401 (cells use it)
import torch.distributed as dist

from course_lib.ranks.outside import advice


def train(steps=1, lr=0.1):
    return dist.get_rank()


def run(*args, **kwargs):
    raise AssertionError("it never begins")


ENDS_SO = [
    "dist.get_rank()",
    "dist.get_world_size()",
    "dist.all_reduce(torch.ones(1))",
    "dist.barrier()",
    "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))",
    "dist.new_group([0])",
    "dist.init_process_group('gloo')",
    "train()",
    "run(len, train())",
]


def said_of(cell, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception) as caught:
        exec(cell, globals())
    return advice(caught.value, cell)


@pytest.mark.parametrize("cell", ENDS_SO)
def test_who_calls_it_in_the_notebook_is_told_in_one_sentence_what_to_do(cell, monkeypatch):
    assert said_of(cell, monkeypatch) == (
        "This ran in the notebook itself, which is no rank: only what `run` starts has a process group. Put"
        " the call into a function, and give the function to run: run(train, ranks=2)"
    )


@pytest.mark.parametrize(
    "cell, meant",
    [
        ("run(train(), ranks=2)", "run(train, ranks=2)"),
        (
            "x = 1\njob = run(train(3, lr=x), x, ranks=2, label='a')",
            "run(train, 3, x, lr=x, ranks=2, label='a')",
        ),
    ],
)
def test_brackets_too_many_are_told_with_what_is_meant(cell, meant, monkeypatch):
    assert said_of(cell, monkeypatch) == (
        "run never began: train(...) was called here in the notebook, which is no rank. Give run the function"
        f" itself, without its brackets: {meant}"
    )


@pytest.mark.parametrize("cell", ["run(train(1 / 0))", "int('x')", "torch.zeros(2) @ torch.zeros(3)"])
def test_other_errors_are_left_as_they_are(cell, monkeypatch):
    assert said_of(cell, monkeypatch) == ""


def test_a_cell_that_is_not_plain_python_is_no_obstacle():
    assert advice(ValueError("Default process group has not been initialized, ..."), "%time run(train())")
