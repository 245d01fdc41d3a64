"""A permutation that is found place by place, without a list."""

from functools import partial

from course_lib.arguments import fits, takes, whole
from course_lib.mini.reading.refusals import beyond_the_samples

__all__ = ["sample_at"]

ROUNDS = 4  # as few as look drawn


@takes(
    place=partial(whole, least=0), samples=whole, seed=partial(whole, least=0), epoch=partial(whole, least=0)
)
@fits(beyond_the_samples)
def sample_at(place: int, samples: int, seed: int, epoch: int) -> int:
    """Return which of `samples` samples stands at a place of an epoch's order, 0 to samples - 1: the same in
    every process. It takes no memory, and a few rounds: less than 4 tries, each of 4 rounds, on average.

    The number is cut into halves, and (left, right) becomes (right, left xor f(right)) again and again, which
    can be undone whatever f is: a Feistel network, a bijection of all numbers with so many bits. Where it
    leads out of the samples, it is gone on from there ("cycle walking"), and so is one of the samples alone.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 3 and 4.
    """
    half = max(1, (samples - 1).bit_length() + 1 >> 1)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for turn in range(ROUNDS):
            left, right = right, left ^ _mixed(right, turn, seed, epoch) & low
        place = left << half | right
        if place < samples:
            return place


def _mixed(*keys: int) -> int:
    """64 bits that look drawn. (Not for secrets.)"""
    value = 0
    for key in keys:
        value = ((value ^ key) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & (1 << 64) - 1
        value ^= value >> 29
    return value * 0xBF58476D1CE4E5B9 >> 17 & (1 << 64) - 1
