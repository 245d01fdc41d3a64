"""MNIST and CIFAR-10 are read from files of their formats, which are made here; nothing is fetched."""

import gzip
import os
import pickle
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_lib.datasets import cifar10, digits, mnist


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder, pack=lambda content: content, end=""):
    """Small files as those of MNIST; what is in them, by split."""
    made, draw = {}, np.random.default_rng(0)
    for split, begin, count in (("train", "train", 7), ("test", "t10k", 3)):
        images = draw.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = draw.integers(10, size=count, dtype=np.uint8)
        (folder / f"{begin}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
        (folder / f"{begin}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels)))
        made[split] = images, labels
    return made


def write_cifar10(folder):
    made, draw = {"train": [], "test": []}, np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = draw.integers(256, size=(4, 3072), dtype=np.uint8)
        labels = draw.integers(10, size=4).tolist()
        # as Python 2 has written them: keys are bytes
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": images, b"filenames": [b"x.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        made["test" if name == "test_batch" else "train"].append((images, labels))
    return made


@pytest.mark.parametrize("end, pack", [("", bytes), (".gz", gzip.compress)])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_read_as_it_is_published(tmp_path, below, end, pack):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    made = write_mnist(tmp_path / below, pack, end)
    for split, (wanted, wanted_labels) in made.items():
        images, labels = mnist(tmp_path, split)
        assert images.shape == (len(wanted), 1, 28, 28) and images.dtype == digits()[0].dtype
        assert torch.equal((images[:, 0] * 255).round(), torch.tensor(wanted).float())
        assert labels.tolist() == wanted_labels.tolist() and labels.dtype == torch.int64
        assert images.max() <= 1


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_as_it_is_published(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    for split, batches in write_cifar10(tmp_path / below).items():
        images, labels = cifar10(str(tmp_path), split)
        wanted = np.concatenate([images for images, _ in batches])
        assert images.shape == (len(wanted), 3, 32, 32) and labels.dtype == torch.int64
        assert torch.equal((images.flatten(1) * 255).round(), torch.tensor(wanted).float())
        assert labels.tolist() == sum((labels for _, labels in batches), [])


@pytest.mark.parametrize("read, first", [(mnist, "train-images-idx3-ubyte"), (cifar10, "data_batch_1")])
def test_what_is_missing_is_told_with_where_it_comes_from(tmp_path, monkeypatch, read, first):
    with pytest.raises(FileNotFoundError, match=rf"has no \w+: put {first} .*course-lib\[vision\]"):
        read(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # not installed
    with pytest.raises(FileNotFoundError, match=rf"torchvision is not installed.*{first}"):
        read(tmp_path, download=True)


def test_torchvision_is_asked_once_and_only_if_a_download_is_wanted(tmp_path, monkeypatch):
    asked = []

    def fetch(root, train, download):
        asked.append((root, train, download))
        (tmp_path / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        write_mnist(tmp_path / "MNIST" / "raw")

    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(MNIST=fetch))
    with pytest.raises(FileNotFoundError):
        mnist(tmp_path)
    assert not asked
    assert len(mnist(tmp_path, download=True)[1]) == 7
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    mnist(tmp_path, "test", download=True)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: b"GIF" + c[3:], lambda c: b""])
def test_a_damaged_file_is_named(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not what it should be"):
        mnist(tmp_path)


def test_code_that_is_hidden_in_a_batch_does_not_run(tmp_path):
    class Hidden:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Hidden(), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match="data_batch_3 is not what it should be: it asks for"):
        cifar10(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_labels_of_other_images_are_refused(tmp_path):
    made = write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(made["train"][1][:3]))
    with pytest.raises(ValueError, match=r"\[7, 28, 28\] values, and .* \[3\]"):
        mnist(tmp_path)
