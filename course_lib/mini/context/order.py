"""Who has which tokens of a sequence, and what a rank has to compute with whose.

Under a causal mask a late token looks at many keys and an early one at few. "contiguous" gives rank 0 the
early ones and the last rank the late ones: at every step of a ring most ranks wait for the last. "zigzag"
cuts the sequence into 2n pieces and gives rank i the pieces i and 2n-1-i, an early and a late one. With any
block that comes, every rank then computes two pairs of pieces (with its own, one and two halves).

    contiguous, 4 ranks   0 0 1 1 2 2 3 3
    zigzag, 4 ranks       0 1 2 3 3 2 1 0

Lengths that n or 2n does not divide: the first pieces are longer by one, as torch.tensor_split cuts.

Sources: Llama team 2024, "The Llama 3 Herd of Models", section 3.3.2; Zhu 2024, ring-flash-attention, issue
    2. Brandon et al. 2023, "Striped Attention", deal out token by token instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from course_lib.arguments import fits, process_group, takes, whole
from course_lib.mini.context import refusals as refuse

__all__ = ["positions", "Plan", "Group"]

Group = dist.ProcessGroup | None


@takes(time=partial(whole, most=2**31), order=refuse.other_orders, process_group=process_group)
@fits(refuse.too_short)
def positions(time: int, order: str = "zigzag", process_group: Group = None) -> Tensor:
    """Return where this rank's tokens stand in a sequence of `time` tokens: int64 [own tokens], ascending.

    So `tokens[:, positions(time)]` is this rank's part of tokens [batch, time].

    Args:
        order: "zigzag", or "contiguous".
        process_group: the ranks that share the sequence; None for all.

    Errors: ValueError if there are fewer tokens than ranks.
    """
    mine = _pieces(time, order, dist.get_world_size(process_group))[dist.get_rank(process_group)]
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in mine])


@dataclass(frozen=True)
class Plan:
    """What each rank of a group has of one sequence.

    Attributes:
        causal: whether a token sees those before it and itself alone.
        pieces: [rank], its tokens as ranges of positions, in the order in which they lie in its tensors.
        rank, size: this rank in the group, of how many.
    """

    causal: bool
    pieces: list[list[range]]
    group: Group
    rank: int
    size: int

    @classmethod
    def of(cls, q: Tensor, causal: bool, order: str, time: int | None, group: Group) -> "Plan":
        """The plan of `ring_attention` for these arguments."""
        size = dist.get_world_size(group)
        return cls(causal, _pieces(time or size * q.shape[2], order, size), group, dist.get_rank(group), size)

    def tokens(self, rank: int) -> int:
        """How many a rank has; numbers of ranks go round, so -1 is the last one."""
        return sum(map(len, self.pieces[rank % self.size]))

    def sources(self) -> list[int]:
        """Whose blocks pass by, the own one first."""
        return [(self.rank - step) % self.size for step in range(self.size)]

    @property
    def last(self) -> int:
        """Whose block comes last."""
        return self.sources()[-1]

    def pairs(self, source: int) -> Iterator[tuple[slice, slice, bool]]:
        """Which of this rank's tokens look at which of rank `source`'s; and whether they are the same ones,
        with a diagonal between what is seen and what is not.
        """
        for place, piece in _placed(self.pieces[self.rank]):
            for its_place, its_piece in _placed(self.pieces[source]):
                if not self.causal or its_piece.start <= piece.start:
                    yield place, its_place, self.causal and its_piece == piece

    def in_order(self, device: torch.device) -> Tensor:
        """Where the tokens of all ranks, one rank after the other, stand in the sequence: int64 [time]."""
        pieces = [piece for theirs in self.pieces for piece in theirs]
        return torch.cat([torch.arange(piece.start, piece.stop, device=device) for piece in pieces])


def _pieces(time: int, order: str, size: int) -> list[list[range]]:
    """For each rank, its pieces that are not empty."""
    number = 2 * size if order == "zigzag" else size
    lengths = [time // number + (piece < time % number) for piece in range(number)]
    pieces = [range(end - length, end) for end, length in zip(accumulate(lengths), lengths)]
    mine = [(rank, 2 * size - 1 - rank) if order == "zigzag" else (rank,) for rank in range(size)]
    return [[pieces[number] for number in numbers if pieces[number]] for numbers in mine]


def _placed(pieces: list[range]) -> Iterator[tuple[slice, range]]:
    """Each piece, and where it lies among this rank's tokens."""
    for end, piece in zip(accumulate(map(len, pieces)), pieces):
        yield slice(end - len(piece), end), piece
