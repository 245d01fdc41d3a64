"""MNIST and CIFAR-10 as they are published: read from files in a folder, which torchvision can fetch.

Where there are none, small files in their formats, with pictures that are made up: for tests, and to try it.
"""

import gzip
import importlib
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from course_lib.arguments import instance, one_of

__all__ = ["mnist", "cifar10", "made_up_mnist", "made_up_cifar10", "MissingFiles"]

# what a batch of CIFAR-10 is made of; a pickle could call anything else as well
PLAIN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class MissingFiles(FileNotFoundError, ValueError):
    """There are no such files; the text says where they can come from."""


def mnist(
    folder: str | Path, split: str = "train", *, download: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the handwritten digits of MNIST: 60,000 images to train on or 10,000 to test on.

    Args:
        folder: where the files of the split are, such as train-images-idx3-ubyte and train-labels-idx1-ubyte,
            as they are or with .gz; or in MNIST/raw below it, where torchvision puts them.
        split: "train" or "test".
        download: fetch them by torchvision if they are not there. Do this once, before ranks start.

    Returns:
        images float32 [n, 1, 28, 28] with values 0 to 1, and labels int64 [n]; the same on every rank.

    Errors: MissingFiles if they are not there, ValueError if they are of another format; what torchvision
        raises if it cannot fetch them.

    Source: LeCun, Cortes and Burges 1998; the format is described with the data.
    """
    begin = one_of("split", split, {"train": "train", "test": "t10k"})
    names = [f"{begin}-images-idx3-ubyte", f"{begin}-labels-idx1-ubyte"]
    paths = _found("MNIST", folder, "MNIST/raw", names, download)
    images, labels = (_read(path, _idx) for path in paths)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[0]} has {list(images.shape)} values, and {paths[1]} {list(labels.shape)}.")
    return torch.tensor(images[:, None] / np.float32(255)), torch.tensor(labels.astype(np.int64))


def cifar10(
    folder: str | Path, split: str = "train", *, download: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the small photographs of CIFAR-10: 50,000 to train on or 10,000 to test on.

    Args:
        folder: where the batches of the "python version" are, data_batch_1 to data_batch_5 and test_batch; or
            in cifar-10-batches-py below it. They are pickles, and nothing in them is run.
        split, download: as for `mnist`.

    Returns:
        images float32 [n, 3, 32, 32] with values 0 to 1, and labels int64 [n]; the same on every rank.

    Errors: as for `mnist`.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    train = [f"data_batch_{i}" for i in range(1, 6)]
    names = one_of("split", split, {"train": train, "test": ["test_batch"]})
    batches = [
        _read(path, _batch) for path in _found("CIFAR10", folder, "cifar-10-batches-py", names, download)
    ]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    return torch.tensor(images.reshape(-1, 3, 32, 32) / np.float32(255)), torch.tensor(labels)


def made_up_mnist(folder: str | Path, *, packed: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write small files in the format of MNIST. Their pictures are made up: noise, with any label.

    Args:
        folder: one that is there.
        packed: with gzip, as they are published.

    Returns:
        images uint8 [n, 28, 28] and labels uint8 [n] in them, by split: 7 to train on, 3 to test on.

    Errors: ValueError if there is no such folder; FileExistsError if there are other files of these names.
    """
    home, ending = _path(folder, there=True), ".gz" * instance("packed", packed, bool)
    made, draw = {}, np.random.default_rng(0)
    for split, begin, n in (("train", "train", 7), ("test", "t10k", 3)):
        images = draw.integers(256, size=(n, 28, 28), dtype=np.uint8)
        made[split] = images, draw.integers(10, size=n, dtype=np.uint8)
        for name, values in zip(("images-idx3", "labels-idx1"), made[split]):
            path = home / f"{begin}-{name}-ubyte{ending}"
            _write(path, gzip.compress(_as_idx(values), mtime=0) if packed else _as_idx(values))
    return made


def made_up_cifar10(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write small files in the format of CIFAR-10, its "python version". Their pictures are made up: noise.

    Args:
        folder: one that is there.

    Returns:
        images uint8 [n, 3072] and labels int64 [n] in them, by split: 20 to train on, 4 to test on.

    Errors: ValueError if there is no such folder; FileExistsError if there are other files of these names.
    """
    home, parts, draw = _path(folder, there=True), {}, np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images, labels = draw.integers(256, size=(4, 3072), dtype=np.uint8), draw.integers(10, size=4)
        # as Python 2 has written them: keys are bytes
        batch = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": images}
        _write(home / name, pickle.dumps(batch | {b"filenames": [b"x.png"] * 4}, protocol=2))
        parts.setdefault("test" if name == "test_batch" else "train", []).append((images, labels))
    return {split: tuple(map(np.concatenate, zip(*its))) for split, its in parts.items()}


def _found(name: str, folder: str | Path, below: str, files: list[str], download: bool) -> list[Path]:
    """The paths of these files; torchvision fetches them if it is asked to."""
    home = _path(folder)
    instance("download", download, bool)
    for turn in range(2):
        for place in (home, home / below):
            paths = [next((p for p in _spellings(place / file) if p.is_file()), None) for file in files]
            if None not in paths:
                return paths
        if turn or not download:
            break
        try:
            torchvision = importlib.import_module("torchvision.datasets")
        except ImportError:
            raise MissingFiles(
                "torchvision is not installed, and it fetches the files: pip install 'course-lib[vision]', or"
                f" put {_listed(files)} into {home} yourself."
            ) from None
        for train in (True, False):
            getattr(torchvision, name)(str(home), train=train, download=True)
    raise MissingFiles(
        f"{home} has no {name}: put {_listed(files)} there, or, with a"
        " network, pip install 'course-lib[vision]' and say download=True once."
    )


def _path(folder: str | Path, there: bool = False) -> Path:
    """Errors: TypeError if it is no path, ValueError if it must be there, and is not."""
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise TypeError(f"folder={folder!r:.60}: it must be the path of a folder.")
    if there and not Path(folder).is_dir():
        raise ValueError(f"folder={str(folder)!r:.60}: there is no such folder; make it first.")
    return Path(folder)


def _listed(files: list[str]) -> str:
    return " and ".join(files) if len(files) < 3 else f"{files[0]} to {files[-1]}"


def _spellings(path: Path) -> list[Path]:
    """As it is, packed, and as some copies have it: train-images.idx3-ubyte."""
    other = path.with_name(path.name.replace("-idx", ".idx"))
    return [p for one in (path, other) for p in (one, one.with_name(one.name + ".gz"))]


def _read(path: Path, parse: Callable[[bytes], object]):
    try:
        content = path.read_bytes()
        return parse(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (EOFError, OSError, zlib.error, struct.error, ValueError, KeyError, pickle.UnpicklingError) as why:
        raise ValueError(f"{path} is not what it should be: {why}") from None


def _idx(content: bytes) -> np.ndarray:
    """An array of bytes: two zeros, 8 for the type, the number of dims, each size in 4 bytes, big end first;
    then the values.
    """
    zeros, kind, ndim = struct.unpack(">HBB", content[:4])
    if (zeros, kind) != (0, 8):
        raise ValueError("it does not begin as a file of bytes in the idx format")
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _write(path: Path, content: bytes) -> None:
    """Somebody's real files are not written over."""
    if path.exists() and path.read_bytes() != content:
        raise FileExistsError(
            f"{str(path)!r:.90} is there, and holds something else: choose an empty folder."
        )
    path.write_bytes(content)


def _as_idx(values: np.ndarray) -> bytes:
    """The bytes of a file with these values uint8."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module, name)


def _batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 3072], red, green and blue one after the other, and labels int64 [n]."""
    batch = _Plain(io.BytesIO(content), encoding="bytes").load()
    images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], dtype=np.int64)
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise ValueError(f"data is {images.dtype} {list(images.shape)}, with {len(labels)} labels")
    return images, labels
