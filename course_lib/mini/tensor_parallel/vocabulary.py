"""A vocabulary that is cut: each rank holds the rows of its own tokens, and their scores."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import process_group, takes
from course_lib.mini import tensor_parallel as plain  # for g, when it is called
from course_lib.mini.tensor_parallel import refusals as refuse
from course_lib.mini.tensor_parallel.operators import Group, Region, share
from course_lib.mini.tensor_parallel.slices import slice_of

__all__ = ["VocabParallelEmbedding", "VocabParallelLoss", "vocab_parallel_cross_entropy", "cut"]


def cut(part: nn.Module, region: Region) -> nn.Module:
    """What becomes of an embedding, and of the loss of the scores of its tokens."""
    kind = VocabParallelLoss if isinstance(part, nn.CrossEntropyLoss) else VocabParallelEmbedding
    return kind(part, region)


class VocabParallelEmbedding(nn.Module):
    """An embedding of which each rank holds the rows of its own tokens: [batch, time] in, [batch, time, dim]
    out.

    A rank that has not got a token's row adds zeros, and g sums.
    """

    cut_dims = {"weight": 0}

    @takes(region=Region)
    def __init__(self, embedding: nn.Embedding, region: Region = Region()) -> None:
        super().__init__()
        refuse.other_than_plain("embedding", embedding, nn.Embedding)
        share(embedding.num_embeddings, "tokens of the vocabulary", region.group)
        self.region, self.weight = region, slice_of(embedding.weight, 0, region.group)  # [vocab / n, dim]

    def forward(self, tokens: Tensor) -> Tensor:
        rows, elsewhere = _own_rows(tokens, len(self.weight), self.region.group)
        return self.region.leave(F.embedding(rows, self.weight).masked_fill(elsewhere[..., None], 0.0))


class VocabParallelLoss(nn.Module):
    """nn.CrossEntropyLoss of scores of which each rank has those of its own tokens."""

    def __init__(self, loss: nn.CrossEntropyLoss, region: Region) -> None:
        super().__init__()
        refuse.other_losses(loss)
        self.region = region

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy(logits, targets, self.region.group)


@takes(logits=Tensor, targets=Tensor, group=process_group)
def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, group: Group = None) -> Tensor:
    """Return the mean cross-entropy loss, the same on every rank, from logits that stay where they are.

    Three numbers per token travel, not vocab_size: the largest logit, the sum of exponentials, and the
    target's logit. Every rank must call this.

    Args:
        logits: this rank's scores [..., vocab_size / n], rank r's being tokens r vocab_size / n and up.
        targets: int64 [...], tokens of the whole vocabulary, the same on every rank. Those that are -100 do
            not count, as in F.cross_entropy.

    Errors: torch's own, for any other target outside of the vocabulary.
    """
    refuse.other_scores(logits, targets)
    largest = logits.detach().amax(-1)  # [...]; it cancels out, but keeps exp from overflowing
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    shifted, ignored = logits - largest[..., None], targets == -100
    rows, elsewhere = _own_rows(targets.masked_fill(ignored, 0), logits.shape[-1], group)
    of_target = shifted.gather(-1, rows[..., None]).squeeze(-1).masked_fill(elsewhere, 0.0)
    sum_dtype = torch.promote_types(logits.dtype, torch.float32)  # float16 ends at 65504
    exp_sum, of_target = plain.reduce_from_group(
        torch.stack([shifted.exp().sum(-1, dtype=sum_dtype), of_target.to(sum_dtype)]), group
    )
    return (exp_sum.log() - of_target).masked_fill(ignored, 0.0).sum() / (~ignored).sum()


def _own_rows(tokens: Tensor, width: int, group: Group) -> tuple[Tensor, Tensor]:
    """Each token's row in this rank's slice of the vocabulary (0 where another rank has it), and where
    another rank has it.

    A token that no rank has keeps a row that does not exist: so the lookup fails on every rank, as it would
    in one process.
    """
    rows = tokens - dist.get_rank(group) * width
    exists = (tokens >= 0) & (tokens < dist.get_world_size(group) * width)
    elsewhere = exists & ((rows < 0) | (rows >= width))
    return rows.masked_fill(elsewhere, 0), elsewhere
