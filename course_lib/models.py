"""Three small models that train within seconds on one CPU core, written to be taken apart.

None has dropout or batch normalisation by default: both make n ranks differ from one process, and the
chapters prove that they are equal. `MLP` and `CNN` return class scores; `TinyGPT` returns its loss.

A model says itself how it can be cut, and a model of your own can say the same:

    stages()                where a pipeline can cut it; read by mini.pipeline.split
    tensor_parallel_plan    what tensor parallelism does with each of its parts; read by
                            mini.tensor_parallel.parallelize
    attend(q, k, v)         what an attention layer calls, where tokens look at each other; replaced by
                            mini.context.attach
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.arguments import whole

__all__ = ["MLP", "CNN", "TinyGPT", "Block", "Attention", "GPTScores", "digit_mlp"]


class MLP(nn.Module):
    """Fully connected layers with ReLU between them, on flattened inputs.

    `layers` is an `nn.Sequential` of Linear and ReLU in turn, so a pipeline can cut it anywhere.

    Args:
        sizes: width of the input, of each hidden layer and of the output.
    """

    tensor_parallel_plan = {"layers": "parts"}

    def __init__(self, sizes: Sequence[int] = (64, 128, 10)) -> None:
        super().__init__()
        if not isinstance(sizes, Sequence) or len(sizes) < 2:
            raise ValueError(f"sizes={sizes!r}: it must be a list of at least two widths, input and output.")
        for size in sizes:
            whole("a width in sizes", size)
        layers: list[nn.Module] = []
        for size_in, size_out in zip(sizes[:-1], sizes[1:]):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])  # no ReLU after the last Linear

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores [batch, sizes[-1]] for inputs [batch, ...] of sizes[0] values each."""
        return self.layers(inputs.flatten(1))

    def stages(self) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
        """Return what stands before the layers, the layers between which a pipeline can cut, and what stands
        after them.
        """
        return [nn.Flatten()], list(self.layers), []


def digit_mlp() -> MLP:
    """Return the MLP of several chapters: 64 pixels, 512 hidden values, 10 digits; 38,410 parameters."""
    return MLP((64, 512, 10))


class CNN(nn.Module):
    """Two convolutions and one linear layer, for the 8x8 digits.

    The order convolution, ReLU, pooling is that of LeCun et al. 1998, "Gradient-Based Learning Applied to
    Document Recognition", section II, with ReLU in place of the sigmoid.

    Args:
        channels: feature maps of the first convolution; the second has twice as many.
        batch_norm: normalise over the batch after each convolution. Each rank then normalises over its own
            slice, so n ranks no longer equal one process (`nn.SyncBatchNorm` is the remedy).
    """

    def __init__(self, channels: int = 16, batch_norm: bool = False) -> None:
        super().__init__()
        whole("channels", channels, most=4096)

        def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(channels_out)] if batch_norm else []
            return [nn.Conv2d(channels_in, channels_out, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2)]

        self.features = nn.Sequential(*stage(1, channels), *stage(channels, 2 * channels))
        self.head = nn.Linear(2 * channels * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [batch, 10] for images [batch, 1, 8, 8]."""
        features = self.features(images)  # [batch, 2 * channels, 2, 2]: each pooling halves the sides
        return self.head(features.flatten(1))


class Attention(nn.Module):
    """Causal self-attention over several heads:
    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.

    Queries, keys and values have a Linear each, and the number of heads is read off their width. So tensor
    parallelism can give each rank some rows of `q`, `k` and `v` (whole heads) and the matching columns of
    `out`.
    """

    tensor_parallel_plan = {"q": "heads", "k": "heads", "v": "heads", "out": "row"}

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if whole("dim", dim, most=65536) % whole("heads", heads):
            raise ValueError(f"dim must be a multiple of heads, but {dim} is not a multiple of {heads}")
        self.head_dim = dim // heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, time, dim] for x [batch, time, dim]."""
        q, k, v = (self._split_heads(project(x)) for project in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what each token gets from those that it sees: [batch, heads, time, head_dim] in and out."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, time, head_dim]


class Block(nn.Module):
    """One transformer block: [batch, time, dim] in, [batch, time, dim] out.

    Normalisation comes before attention and before the MLP, as in GPT-2: Radford et al. 2019, "Language
    Models are Unsupervised Multitask Learners", section 2.3. It has 12 dim^2 + 13 dim parameters.
    """

    tensor_parallel_plan = {
        "attention_norm": "whole",
        "attention": "parts",
        "mlp_norm": "whole",
        "mlp": "parts",
    }

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        whole("dim", dim, most=65536)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what attention and the MLP add to it."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TinyGPT(nn.Module):
    """A language model over bytes, with the structure of GPT-2 (Radford et al. 2019, section 2.3).

    It has (vocab_size + context + 2) dim + layers (12 dim^2 + 13 dim) parameters, and vocab_size dim more if
    not `tied`; by default 120,576.

    Args:
        vocab_size: number of different tokens; 256 for bytes.
        context: most tokens the model sees at once.
        dim: width of the vectors between blocks.
        heads: attention heads per block; must divide `dim`.
        layers: number of blocks. `blocks` is an `nn.ModuleList` of equal `Block`s, for a pipeline to cut.
        tied: use one weight for embedding and head (Press and Wolf 2017, "Using the Output Embedding to
            Improve Language Models", section 3). A pipeline then has it on two stages.
    """

    tensor_parallel_plan = {
        "embedding": "vocab",
        "position": "whole",
        "blocks": "parts",
        "norm": "whole",
        "head": "column",  # each rank has the scores of its own tokens
        "loss": "vocab",  # and the loss puts together what it needs of them
    }

    def __init__(
        self,
        *,
        vocab_size: int = 256,
        context: int = 64,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        tied: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ("vocab_size", vocab_size),
            ("context", context),
            ("dim", dim),
            ("layers", layers),
        ):
            whole(name, value, most=65536)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.loss = nn.CrossEntropyLoss()
        if tied:
            self.head.weight = self.embedding.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # GPT-2's choice: the first loss is near log(vocab_size)
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return [batch, time, dim], what the first block receives, for tokens int64 [batch, time].

        Args:
            positions: int64 [time], where these tokens stand in their sequence; 0, 1, 2, ... unless given.
        """
        if tokens.shape[1] > self.position.num_embeddings:
            raise ValueError(
                f"{tokens.shape[1]} tokens in a row: this model sees at most {self.position.num_embeddings}"
                " at once. Make it with a larger context."
            )
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.embedding(tokens) + self.position(positions)

    def logits(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return scores [batch, time, vocab_size] of each next token, for tokens int64
        [batch, time <= context]; `positions` as in `embed`.
        """
        x = self.embed(tokens, positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss (nats per token) of predicting tokens[:, 1:] from tokens[:, :-1].

        Args:
            tokens: int64 [batch, time], where time is from 2 to context + 1.
        """
        logits = self.logits(tokens[:, :-1])
        return self.loss(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def stages(self) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
        """Return what stands before the blocks, the blocks, between which a pipeline can cut, and what stands
        after them: together, `logits`.
        """
        return [_Embed(self)], list(self.blocks), [self.norm, self.head]


class GPTScores(TinyGPT):
    """A TinyGPT that returns scores as `F.cross_entropy` takes them, like a model of images does."""

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return [batch, vocab_size, time] for tokens int64 [batch, time <= context], and their positions."""
        return self.logits(tokens, positions).mT


class _Embed(nn.Module):
    """`TinyGPT.embed` as a layer: int64 [batch, time] in, [batch, time, dim] out."""

    def __init__(self, model: TinyGPT) -> None:
        super().__init__()
        self.embedding, self.position = model.embedding, model.position

    forward = TinyGPT.embed
