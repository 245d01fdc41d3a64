"""`takes` and `fits`: arguments are checked before the body, by the words of the check itself."""

import inspect
from functools import partial

import pytest

from course_lib.arguments import fits, takes, whole


@takes(count=partial(whole, most=8), name=str)
def body(count: int, name: str = None, **options) -> tuple:
    """What it does."""
    return count, name, options


def at_home(rank, size):
    if rank >= size:
        raise ValueError(f"rank={rank}: there are {size}.")


@takes(size=whole)
@fits(at_home)
def place(size: int, names=(), rank: int = 0, **options) -> tuple:
    """Where it is."""
    return size, names, rank, options


class Kept:
    @takes(count=whole)
    def __init__(self, count):
        self.count = count


def test_what_is_good_passes_by_position_and_by_name_and_a_default_is_not_looked_at():
    assert body(3) == (3, None, {}) and body(name="x", count=8, lr=1) == (8, "x", {"lr": 1})
    assert Kept(2).count == 2
    assert place(2, rank=1, lr=1) == (2, (), 1, {"lr": 1}) and place(1) == (1, (), 0, {})


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: body(9), ValueError, "count=9: it must be a whole number from 1 to 8."),
        (lambda: body(name=1, count=9), ValueError, "count=9: it must be a whole number from 1 to 8."),
        (lambda: body(1, None), TypeError, "name=None: it must be a str."),
        (lambda: Kept("x"), ValueError, "count='x': it must be a whole number of at least 1."),
        (lambda: place(2, "x", 2), ValueError, "rank=2: there are 2."),
        (lambda: place(rank=3, size=2), ValueError, "rank=3: there are 2."),
        (lambda: place("x", rank=3), ValueError, "size='x': it must be a whole number of at least 1."),
        (lambda: place(rank=3), TypeError, "place() missing 1 required positional argument: 'size'"),
        (lambda: body(), TypeError, "body() missing 1 required positional argument: 'count'"),
    ],
)
def test_what_is_not_is_refused_in_the_words_of_its_check(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == words


def test_name_text_and_signature_stay():
    assert body.__name__ == "body" and body.__doc__ == "What it does."
    assert list(inspect.signature(body).parameters) == ["count", "name", "options"]
    assert place.__doc__ == "Where it is."
    assert list(inspect.signature(place).parameters) == ["size", "names", "rank", "options"]
