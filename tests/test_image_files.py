"""MNIST and CIFAR-10 are read from files of their formats, which are made here; nothing is fetched."""

import os
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_lib.datasets import cifar10, digits, made_up_cifar10, made_up_mnist, mnist

# The files' first bytes, written out by hand from the descriptions of the formats
IDX3 = bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 28, 0, 0, 0, 28])
IDX1 = bytes([0, 0, 8, 1, 0, 0, 0, 3])


def test_files_that_are_made_up_have_the_published_format(tmp_path):
    made = made_up_mnist(tmp_path)
    images, labels = (
        (tmp_path / f"{name}-ubyte").read_bytes() for name in ("train-images-idx3", "t10k-labels-idx1")
    )
    assert images == IDX3 + made["train"][0].tobytes() and labels == IDX1 + made["test"][1].tobytes()
    made = made_up_cifar10(tmp_path)
    batch = pickle.loads((tmp_path / "data_batch_2").read_bytes(), encoding="bytes")
    assert (
        sorted(batch) == [b"batch_label", b"data", b"filenames", b"labels"] and type(batch[b"labels"]) is list
    )
    assert np.array_equal(batch[b"data"], made["train"][0][4:8]) and batch[b"data"].dtype == np.uint8
    assert batch[b"labels"] == made["train"][1][4:8].tolist()
    with pytest.raises(ValueError, match="there is no such folder"):
        made_up_cifar10(tmp_path / "elsewhere")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_read_as_it_is_published(tmp_path, below, packed):
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    made = made_up_mnist(tmp_path / below, packed=packed)
    assert all((path.suffix == ".gz") == packed for path in (tmp_path / below).glob("*ubyte*"))
    for split, (wanted, wanted_labels) in made.items():
        images, labels = mnist(tmp_path, split)
        assert images.shape == (len(wanted), 1, 28, 28) and images.dtype == digits()[0].dtype
        assert torch.equal((images[:, 0] * 255).round(), torch.tensor(wanted).float())
        assert labels.tolist() == wanted_labels.tolist() and labels.dtype == torch.int64
        assert images.max() <= 1


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_as_it_is_published(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    for split, (wanted, wanted_labels) in made_up_cifar10(tmp_path / below).items():
        images, labels = cifar10(str(tmp_path), split)
        assert images.shape == (len(wanted), 3, 32, 32) and labels.dtype == torch.int64
        assert torch.equal((images.flatten(1) * 255).round(), torch.tensor(wanted).float())
        assert labels.tolist() == wanted_labels.tolist()


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
        made_up_mnist(tmp_path / "MNIST" / "raw")

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
    made_up_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not what it should be"):
        mnist(tmp_path)


def test_code_that_is_hidden_in_a_batch_does_not_run(tmp_path):
    class Hidden:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    made_up_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Hidden(), b"labels": []}, protocol=2))
    with pytest.raises(ValueError, match="data_batch_3 is not what it should be: it asks for"):
        cifar10(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_labels_of_other_images_are_refused(tmp_path):
    made = made_up_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(IDX1 + made["train"][1][:3].tobytes())
    with pytest.raises(ValueError, match=r"\[7, 28, 28\] values, and .* \[3\]"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    "make, name", [(made_up_mnist, "t10k-labels-idx1-ubyte"), (made_up_cifar10, "test_batch")]
)
def test_real_files_are_not_written_over(tmp_path, make, name):
    make(tmp_path)
    make(tmp_path)
    (tmp_path / name).write_bytes(b"a real one")
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        make(tmp_path)
    assert (tmp_path / name).read_bytes() == b"a real one"
