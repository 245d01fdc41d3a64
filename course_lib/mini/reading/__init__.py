"""Reading: which rank reads which sample, so that all ranks together read each once, and a job can go on
anywhere, on another number of ranks:

    place     a count: the samples that all ranks have trained since the beginning
    order     another one for each epoch; what stands at a place is found without a list
    step      batch_size places, of which each rank takes its even slice, over the end of an epoch too
    stream    the same for samples that lie in files: a reader is one worker of one rank
    loss      the mean over the samples of all ranks, however many each has

Beside: `order` (a permutation without a list), `refusals`. Source: torch.utils.data's documentation, to which
a place is added that knows no number of ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from course_lib.arguments import fits, function, process_group, takes, whole
from course_lib.datasets import rank_slice
from course_lib.mini.reading import refusals as refuse
from course_lib.mini.reading.order import sample_at

__all__ = ["Steps", "Shards", "mean_over_ranks", "sample_at"]


class Steps(Sampler[list[int]]):
    """What this rank reads, step by step and without an end: a batch sampler for a DataLoader.

        steps = Steps(len(data), batch_size=64, seed=0, rank=rank, ranks=ranks)
        for batch in DataLoader(data, batch_sampler=steps, num_workers=2):
            ...
            steps.done()    # when the step is trained; workers have read ahead

    Args:
        samples, batch_size: how many there are, and how many a step has on all ranks together.
        seed: chooses the orders; the same on every rank.
        rank, ranks: which slice of each step, of how many.

    Attributes:
        trained: samples that all ranks together have trained, in all epochs; the whole state.
    """

    @takes(samples=whole, batch_size=whole, seed=partial(whole, least=0), ranks=whole)
    @fits(refuse.no_such_rank)
    def __init__(self, samples: int, batch_size: int, seed: int, rank: int, ranks: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.ranks, self.trained = rank, ranks, 0

    def __iter__(self) -> Iterator[list[int]]:
        start = self.trained
        while True:
            step = range(start, start + self.batch_size)[rank_slice(self.batch_size, self.rank, self.ranks)]
            yield [sample_at(i % self.samples, self.samples, self.seed, i // self.samples) for i in step]
            start += self.batch_size

    def done(self) -> None:
        """One step more has been trained."""
        self.trained += self.batch_size

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint; the same on every rank."""
        return {"trained": self.trained}

    @takes(state=refuse.other_states)
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there, on any number of ranks and with any batch_size, in the next loop over a loader."""
        self.trained = state["trained"]


class Shards(IterableDataset):
    """Samples of files that are read from one place to another, for a DataLoader with any number of workers:
    each sample once, over all ranks and workers.

    Args:
        sizes: samples in each file.
        read: read(shard, start, stop) returns these samples of a file, one after the other.
        rank, ranks: which part of all samples, of how many. (A worker is told here; it is no rank.)
    """

    @takes(sizes=refuse.no_sizes, read=function, ranks=whole)
    @fits(refuse.no_such_rank)
    def __init__(self, sizes: Sequence[int], read: Callable, rank: int, ranks: int) -> None:
        super().__init__()
        self.sizes, self.read, self.rank, self.ranks = sizes, read, rank, ranks

    def __iter__(self) -> Iterator:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        own = range(sum(self.sizes))[rank_slice(sum(self.sizes), self.rank, self.ranks)]
        own = own[rank_slice(len(own), worker, workers)]
        first = 0  # of this shard
        for shard, size in enumerate(self.sizes):
            start, stop = max(own.start - first, 0), min(own.stop - first, size)
            if start < stop:
                yield from self.read(shard, start, stop)
            first += size


@takes(losses=refuse.no_losses, group=process_group)
@fits(refuse.other_weights)
def mean_over_ranks(
    losses: Tensor, weights: Tensor | None = None, group: dist.ProcessGroup | None = None
) -> Tensor:
    """This rank's part of the weighted mean over the losses of all ranks: where gradients are averaged over
    the ranks, as DDP does, they are those of this mean. Every rank of the group must call this.

    Args:
        losses: of this rank's samples, any shape; none are fine, if other ranks have some.
        weights: of the same shape; all 1 if None.

    Returns: a number; nan where all weights of all ranks sum to 0.
    """
    weights = torch.ones_like(losses) if weights is None else weights
    total = weights.detach().sum()
    dist.all_reduce(total, group=group)  # one number
    return (losses * weights).sum() * dist.get_world_size(group) / total
