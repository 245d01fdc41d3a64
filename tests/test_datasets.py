"""The data are the published ones, and n ranks together see what one process sees."""

import hashlib

import pytest
import torch

from course_lib import datasets
from course_lib.datasets import digit_batches, digits, rank_slice, stdlib_text, text_batches

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def forget_the_file():
    """Let each test read the file afresh."""
    datasets._digit_arrays.cache_clear()


def test_the_file_is_the_published_one_and_the_card_says_so():
    checksum = hashlib.sha256(datasets.DIGITS_FILE.read_bytes()).hexdigest()
    card = (datasets.DIGITS_FILE.parent / "README.md").read_text()
    assert checksum == datasets.DIGITS_SHA256
    assert checksum in card


def test_digits_have_the_documented_shapes_and_values():
    for split, number in (("train", 1442), ("test", 355)):
        images, labels = digits(split)
        assert images.shape == (number, 1, 8, 8) and images.dtype == torch.float32
        assert labels.shape == (number,) and labels.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1
        assert torch.equal(images * 16, (images * 16).round())
    with pytest.raises(ValueError, match="train"):
        digits("validation")


def test_the_split_is_disjoint_complete_and_stratified():
    (train_images, train_labels), (test_images, test_labels) = digits("train"), digits("test")
    # No two of the 1,797 images are equal, so images can stand for themselves.
    rows = [tuple(row) for row in torch.cat([train_images, test_images]).flatten(1).tolist()]
    assert len(set(rows)) == 1797
    train, test = torch.bincount(train_labels), torch.bincount(test_labels)
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(test, (train + test) // 5)


def test_changing_what_came_back_does_not_change_the_data():
    images, labels = digits()
    images.zero_(), labels.zero_()
    assert digits()[0].sum() > 0 and digits()[1].sum() > 0


def test_a_missing_file_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DIGITS_FILE", tmp_path / "data" / "digits.npz")
    with pytest.raises(FileNotFoundError, match=r"is missing.*git -C .* checkout -- data/digits\.npz"):
        digits()


def test_one_wrong_bit_is_noticed(tmp_path, monkeypatch):
    content = bytearray(datasets.DIGITS_FILE.read_bytes())
    content[5000] ^= 1
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.npz").write_bytes(content)
    monkeypatch.setattr(datasets, "DIGITS_FILE", tmp_path / "data" / "digits.npz")
    with pytest.raises(ValueError, match=r"is damaged.*git -C .* checkout -- data/digits\.npz"):
        digits()


@pytest.mark.parametrize("size", [0, 1, 3, 10, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_rank_slices_cover_everything_once_and_evenly(size, world_size):
    parts = [list(range(size))[rank_slice(size, rank, world_size)] for rank in range(world_size)]
    assert sum(parts, []) == list(range(size))
    assert [len(part) for part in parts] == [
        len(part) for part in torch.arange(size).tensor_split(world_size)
    ]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [64, 45])  # 45 is uneven on 2 and 4 ranks; 1,442 leaves 34 or 2 over
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_digit_slices_of_all_ranks_are_the_batch_of_one_process(world_size, batch_size, drop_last):
    whole = list(digit_batches(batch_size, epoch=3, drop_last=drop_last))
    ranks = [
        list(digit_batches(batch_size, rank, world_size, epoch=3, drop_last=drop_last))
        for rank in range(world_size)
    ]
    assert len(whole) == 1442 // batch_size + (not drop_last)
    assert {len(batches) for batches in ranks} == {len(whole)}
    for step, (images, labels) in enumerate(whole):
        sizes = [len(batches[step][1]) for batches in ranks]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([batches[step][0] for batches in ranks]), images)
        assert torch.equal(torch.cat([batches[step][1] for batches in ranks]), labels)


def test_an_epoch_holds_every_image_once_and_each_epoch_has_its_own_order():
    def labels_of(**options) -> torch.Tensor:
        return torch.cat([labels for _, labels in digit_batches(100, drop_last=False, **options)])

    images = torch.cat([images for images, _ in digit_batches(100, drop_last=False)])
    everything = digits()[0]
    assert sorted(images.flatten(1).tolist()) == sorted(everything.flatten(1).tolist())
    first = labels_of()
    assert torch.equal(first, labels_of())
    for other in (labels_of(epoch=1), labels_of(seed=1), labels_of(epoch=1, seed=1)):
        assert not torch.equal(first, other)
    assert not torch.equal(labels_of(epoch=1), labels_of(seed=1))


def test_images_keep_their_labels():
    by_image = {
        tuple(image): label for image, label in zip(digits()[0].flatten(1).tolist(), digits()[1].tolist())
    }
    images, labels = next(digit_batches(200, 1, 3))
    assert [by_image[tuple(image)] for image in images.flatten(1).tolist()] == labels.tolist()


@pytest.mark.parametrize("batch_size", [12, 10])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_text_slices_of_all_ranks_are_the_batch_of_one_process(world_size, batch_size):
    whole = list(text_batches(batch_size, 16, 5, seed=7))
    ranks = [list(text_batches(batch_size, 16, 5, rank, world_size, seed=7)) for rank in range(world_size)]
    assert len(whole) == 5 and {len(batches) for batches in ranks} == {5}
    for step, tokens in enumerate(whole):
        assert tokens.shape == (batch_size, 17) and tokens.dtype == torch.int64
        assert torch.equal(torch.cat([batches[step] for batches in ranks]), tokens)


def test_text_pieces_come_from_the_text_and_differ():
    text = bytes(stdlib_text(5000).tolist())
    first, second = text_batches(8, 32, 2, num_bytes=5000)
    pieces = [bytes(piece) for piece in torch.cat([first, second]).tolist()]
    assert all(piece in text for piece in pieces)
    assert len(set(pieces)) > 8
    assert not torch.equal(next(text_batches(8, 32, 1)), next(text_batches(8, 32, 1, seed=1)))


def test_the_longest_context_is_the_whole_text():
    assert bytes(next(text_batches(1, 99, 1, num_bytes=100))[0].tolist()) == bytes(stdlib_text(100).tolist())


def test_stdlib_text_is_source_code_and_the_same_each_time():
    text = stdlib_text(100_000)
    assert text.shape == (100_000,) and text.dtype == torch.uint8
    assert b"def " in bytes(text.tolist()) and torch.equal(text, stdlib_text(100_000))
    assert torch.equal(text[:1000], stdlib_text(1000))
    with pytest.raises(ValueError, match="bytes of text"):
        stdlib_text(10**9)


def test_the_data_do_not_touch_torchs_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(digit_batches(8)), next(text_batches(8, 8, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_everything_is_created_on_the_default_device():
    with torch.device("meta"):
        tensors = [*digits(), *next(digit_batches(8)), next(text_batches(8, 8, 1)), stdlib_text(10)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("make", [digit_batches, lambda *sizes: text_batches(sizes[0], 8, 1, *sizes[1:])])
@pytest.mark.parametrize(
    "sizes, message",
    [((8, 2, 2), "rank=.*must be"), ((8, -1, 2), "rank=.*must be"), ((3, 0, 4), "all ranks together")],
)
def test_sizes_that_make_no_sense_are_refused_at_once(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(*sizes)


@pytest.mark.parametrize("context", [0, 100])
def test_a_context_that_does_not_fit_is_refused(context):
    with pytest.raises(ValueError, match="context=.*must be"):
        text_batches(1, context, 1, num_bytes=100)


def test_pairs_are_the_batches_in_the_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pairs = list(datasets.digit_pairs(48, 2))
    finally:
        torch.set_default_dtype(before)
    for (images, labels), (same_images, same_labels) in zip(pairs, datasets.digit_batches(48)):
        assert images.dtype == torch.float64 and torch.equal(images.float(), same_images)
        assert torch.equal(labels, same_labels)


def test_digit_accuracy():
    labels = datasets.digits("test")[1]

    class Knows(torch.nn.Module):
        def forward(self, images):
            scores = torch.nn.functional.one_hot(labels, 10)
            scores[:100] = scores[:100].roll(1, dims=1)
            return scores

    assert datasets.digit_accuracy(Knows()) == pytest.approx(1 - 100 / 355)


def test_digit_accuracy_asks_without_dropout_and_leaves_every_mode_as_it_was():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(1.0), torch.nn.Linear(64, 10))
    model[2].eval()
    torch.nn.init.zeros_(model[2].bias)
    zeros = (datasets.digits("test")[1] == 0).float().mean().item()
    assert datasets.digit_accuracy(model) != pytest.approx(zeros), "with dropout all scores are 0"
    assert [module.training for module in model] == [True, True, False] and model.training
