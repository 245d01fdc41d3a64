"""Give every rank its part of the same real data.

Two kinds of batches, one rule: `batch_size` is the size of the **global** batch, and each rank gets its
contiguous slice of it. Put the slices of all ranks together, in rank order, and you have exactly the batch
that one process sees. That is what lets a chapter prove that n ranks equal one process.

Which samples form a batch depends on `seed` (and `epoch`) alone: not on the number of ranks, and not on
`torch.manual_seed`, which a chapter may call with another value on each rank. All tensors are created on
`torch.get_default_device()`.

MNIST and CIFAR-10, which are not in the repository, come from a folder of yours: see `image_files.py`.
"""

import hashlib
import io
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from course_lib.arguments import instance, one_of, whole
from course_lib.image_files import cifar10, made_up_cifar10, made_up_mnist, mnist

__all__ = [
    "digits",
    "digit_batches",
    "digit_pairs",
    "digit_accuracy",
    "mnist",
    "cifar10",
    "made_up_mnist",
    "made_up_cifar10",
    "stdlib_text",
    "text_batches",
    "rank_slice",
]

DIGITS_FILE = Path(__file__).resolve().parents[1] / "data" / "digits.npz"
DIGITS_SHA256 = "0c2aff3ad3efa4c983d74435f40847c3f2dea3c33f362c61616f7b067d84c8fe"


def digits(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the handwritten digits: 1,442 images to train on or 355 to test on.

    The split is fixed. Of the images of each digit, in the order of the file, every fifth is for testing
    (the 5th, 10th, 15th and so on). So both parts hold every digit in the same proportions, about 80/20.

    Args:
        split: "train" or "test".

    Returns:
        images float32 [n, 1, 8, 8] with values 0 to 1, and labels int64 [n] with values 0 to 9; the same on
        every rank, and a fresh copy at each call.

    Errors: FileNotFoundError, ValueError if data/digits.npz is missing or damaged.

    Source: UCI Optical Recognition of Handwritten Digits, test part, CC BY 4.0; see data/README.md.
    """
    images, labels = _digit_arrays(DIGITS_FILE, one_of("split", split, ("train", "test")))
    return torch.tensor(images), torch.tensor(labels)


def digit_batches(
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    epoch: int = 0,
    seed: int = 0,
    split: str = "train",
    drop_last: bool = True,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield this rank's slice of every global batch of one epoch over the digits.

    Every epoch has its own order, and every image comes at most once. All ranks get the same number of
    batches. Where `batch_size` does not divide by `world_size`, the first ranks get one sample more
    (see `rank_slice`), so the average over ranks of their mean losses is not quite the mean over the batch.

    Args:
        batch_size: samples in the global batch, all ranks together; at least `world_size`.
        rank: which slice to yield.
        world_size: how many slices each batch is cut into.
        epoch: chooses the order; count it up as you would with `DistributedSampler.set_epoch`.
        seed: chooses another family of orders; must be the same on every rank.
        split: "train" or "test".
        drop_last: leave out the last, smaller batch. If False, it is yielded too, and if it has fewer samples
            than there are ranks, the slices of the last ranks are empty.

    Returns:
        An iterator of (images float32 [slice, 1, 8, 8], labels int64 [slice]), per rank.

    Errors: ValueError if a rank or a size is out of range, here and not at the first batch.
    """
    _check_sizes(batch_size, rank, world_size)
    whole("epoch", epoch, least=0)
    whole("seed", seed, least=0)
    images, labels = _digit_arrays(DIGITS_FILE, one_of("split", split, ("train", "test")))
    order = np.random.default_rng([seed, epoch]).permutation(len(labels))
    end = len(order) - len(order) % batch_size if drop_last else len(order)
    batches = (order[start : start + batch_size] for start in range(0, end, batch_size))
    slices = (batch[rank_slice(len(batch), rank, world_size)] for batch in batches)
    return ((torch.tensor(images[part]), torch.tensor(labels[part])) for part in slices)


def digit_pairs(batch_size: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` whole batches of digits for `F.cross_entropy`, in torch's default dtype: in float64, say,
    to compare ranks with one process.

    Returns:
        An iterator of (images [batch, 1, 8, 8], labels int64 [batch]), the same on every rank.

    Errors: ValueError if a size is out of range.
    """
    batches = islice(digit_batches(batch_size), whole("steps", steps, least=0, most=sys.maxsize))
    return ((images.to(torch.get_default_dtype()), labels) for images, labels in batches)


@torch.no_grad()
def digit_accuracy(model: torch.nn.Module) -> float:
    """Return which part of the test images the model gets right: 0 to 1. It is asked in the mode of
    evaluation (no dropout, say), and left in the mode in which it was.
    """
    images, labels = digits("test")
    modes = [(module, module.training) for module in instance("model", model, torch.nn.Module).modules()]
    model.eval()
    try:
        return (model(images).argmax(dim=1) == labels).float().mean().item()
    finally:
        for module, training in modes:
            module.training = training


def stdlib_text(num_bytes: int = 1_000_000) -> torch.Tensor:
    """Return source code of the Python standard library, as it is on this machine, byte by byte.

    A text that everybody already has. The modules are joined in alphabetical order and cut after `num_bytes`,
    so the result is always the same for one version of Python, but it **differs between
    versions**: compare losses only between runs of the same Python.

    Args:
        num_bytes: how much text; a Python has about 4 to 6 million bytes of it.

    Returns:
        A tensor uint8 [num_bytes]; call `.long()` on it to get tokens. The same on every rank.

    Errors: ValueError if this Python has less text than that.
    """
    return torch.tensor(_stdlib_array(whole("num_bytes", num_bytes)))


def text_batches(
    batch_size: int,
    context: int,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    *,
    num_bytes: int = 1_000_000,
) -> Iterator[torch.Tensor]:
    """Yield this rank's slice of every global batch of random pieces of `stdlib_text`.

    One token is one byte. A piece has one token more than `context`, because a language model predicts tokens
    1 to `context` from tokens 0 to `context` - 1. Pieces may overlap.

    Args:
        batch_size: samples in the global batch, all ranks together; at least `world_size`.
        context: tokens that the model sees at once.
        steps: number of batches.
        rank: which slice to yield.
        world_size: how many slices each batch is cut into.
        seed: chooses the pieces; must be the same on every rank.
        num_bytes: size of the text that the pieces come from.

    Returns:
        An iterator of `steps` tensors int64 [slice, context + 1], per rank; with one rank
        [batch_size, context + 1].

    Errors: ValueError if a rank or a size is out of range, here and not at the first batch.
    """
    _check_sizes(batch_size, rank, world_size)
    whole("steps", steps, least=0)
    whole("seed", seed, least=0)
    whole("context", context, most=whole("num_bytes", num_bytes, least=2) - 1)
    pieces = np.lib.stride_tricks.sliding_window_view(_stdlib_array(num_bytes), context + 1)
    random = np.random.default_rng(seed)
    # Every rank draws the starts of the whole batch: that costs nothing, and the ranks need not talk.
    starts = (random.integers(len(pieces), size=batch_size) for _ in range(steps))
    mine = rank_slice(batch_size, rank, world_size)
    return (torch.tensor(pieces[start[mine]].astype(np.int64)) for start in starts)


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Return which of `size` items belong to a rank: contiguous, in rank order, sizes at most one apart.

    If `size` does not divide by `world_size`, the first ranks get one item more, as with
    `torch.tensor_split`: 10 items on 4 ranks are 3, 3, 2 and 2.
    """
    whole("size", size, least=0)
    whole("rank", rank, least=0, most=whole("world_size", world_size) - 1)
    share, rest = divmod(size, world_size)
    start = rank * share + min(rank, rest)
    return slice(start, start + share + (rank < rest))


def _check_sizes(batch_size: int, rank: int, world_size: int) -> None:
    whole("rank", rank, least=0, most=whole("world_size", world_size) - 1)
    if whole("batch_size", batch_size) < world_size:
        raise ValueError(
            f"batch_size counts the samples of all ranks together, so with {world_size} ranks it must be "
            f"at least {world_size}, not {batch_size}"
        )


@lru_cache(maxsize=4)
def _digit_arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 [n, 1, 8, 8] and labels int64 [n] of one split, after checking the file."""
    repair = f"Get it back with: git -C {path.parents[1]} checkout -- data/{path.name}"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing. It comes with the repository, so course_lib must be installed from a "
            f"clone (make env does it). {repair}"
        ) from None
    if hashlib.sha256(content).hexdigest() != DIGITS_SHA256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one it was published with. {repair}")
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    # Within the images of one digit, count 0, 1, 2, ... in file order; numbers 4, 9, 14, ... are for testing.
    number = np.empty_like(labels)
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        number[of_digit] = np.arange(len(of_digit))
    chosen = (number % 5 == 4) == (split == "test")
    return (images[chosen, None] / 16).astype(np.float32), labels[chosen]


@lru_cache(maxsize=4)
def _stdlib_array(num_bytes: int) -> np.ndarray:
    """Return the first `num_bytes` bytes of the standard library's top-level modules, uint8."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        # Not sitecustomize or _sysconfigdata_*: these belong to a machine and can hold its paths.
        if path.stem in sys.stdlib_module_names and len(text) < num_bytes:
            text += path.read_bytes()
    if len(text) < num_bytes:
        raise ValueError(f"this Python's standard library has {len(text):,} bytes of text, not {num_bytes:,}")
    return np.frombuffer(bytes(text[:num_bytes]), dtype=np.uint8)
