"""Which experts a token goes to, and with which weights.

One matrix gives each token a score for each expert; softmax makes probabilities of them. The k largest are
chosen, and they weigh the outputs of their experts: so the router learns, though the choice itself has no
gradient.

`bias` moves the choice and not the weights: DeepSeek-V3's way to balance without a loss (`rebalance`).

Source: Shazeer et al. 2017, section 2.1 (without its noise); Jiang et al. 2024, "Mixtral of experts", section
    2.1 (weights that sum to 1); DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from course_lib.arguments import number, takes, whole
from course_lib.mini.experts import refusals as refuse

__all__ = ["Router", "Routing"]


@dataclass(frozen=True)
class Routing:
    """What a router says of T tokens.

    Attributes:
        chosen: int64 [T, k], experts by their number, the best first.
        weights: [T, k], what their outputs are multiplied with.
        scores: [T, E], the probabilities of all experts.
    """

    chosen: Tensor
    weights: Tensor
    scores: Tensor


class Router(nn.Module):
    """Choose k of E experts for each token: [T, dim] in, a `Routing` out.

    Args:
        dim: width of a token.
        top_k: how many experts a token goes to.
        normalize: make the weights of a token sum to 1. Not for k = 1: the weight would always be 1, and the
            router would learn nothing.
    """

    @takes(dim=whole, num_experts=whole, top_k=whole)
    def __init__(self, dim: int, num_experts: int, top_k: int = 1, normalize: bool | None = None) -> None:
        super().__init__()
        refuse.more_than_there_are(top_k, num_experts)
        self.top_k, self.normalize = top_k, top_k > 1 if normalize is None else normalize
        self.linear = nn.Linear(dim, num_experts, bias=False)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x: Tensor) -> Routing:
        scores = self.linear(x).softmax(-1)
        chosen = (scores + self.bias).topk(self.top_k).indices
        weights = scores.gather(-1, chosen)
        return Routing(chosen, weights / weights.sum(-1, keepdim=True) if self.normalize else weights, scores)

    @takes(load=Tensor, speed=partial(number, above=True))
    @torch.no_grad()
    def rebalance(self, load: Tensor, speed: float = 0.001) -> None:
        """Make experts with more than their share a little less likely to be chosen, and the others more.

        Args:
            load: [E], choices of each expert, of all ranks (`load_of`): every rank must make the same step.
            speed: by how much a bias changes in one step.
        """
        self.bias += speed * (load.mean(dtype=self.bias.dtype) - load).sign()
