"""Image sets, augmentation, the order of epochs, and data sets that are missing or damaged."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from skipnet_rl.data import ImageSet, load_images, resolve_dataset
from skipnet_rl.data.imageset import augment, training_index
from skipnet_rl.data.sources import HALVES
from skipnet_rl.errors import DataDamagedError, DataNotFoundError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, size: int = 8) -> torch.Tensor:
    """Images whose pixels are all different and never black: [B, 3, size, size] uint8."""
    pixels = torch.arange(count * 3 * size * size) % 255 + 1
    return pixels.view(count, 3, size, size).to(torch.uint8)


def origins(image: torch.Tensor, result: torch.Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """Every (row, column, mirrored) whose crop of the padded image is the result."""
    size = image.shape[1]
    padded = torch.zeros(3, size + 2 * padding, size + 2 * padding, dtype=torch.uint8)
    padded[:, padding : padding + size, padding : padding + size] = image
    found = []
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[:, row : row + size, column : column + size]
            found += [(row, column, False)] if torch.equal(crop, result) else []
            found += [(row, column, True)] if torch.equal(crop.flip(2), result) else []
    return found


@pytest.mark.parametrize("flip", [True, False])
def test_each_image_is_a_crop_of_itself(flip):
    images = numbered(200)
    results = augment(images, generator(), flip=flip, padding=2)
    assert results.dtype == torch.uint8
    found = [origins(image, result, 2) for image, result in zip(images, results, strict=True)]
    assert all(len(origin) == 1 for origin in found)
    rows, columns, mirrored = zip(*(origin[0] for origin in found), strict=True)
    # 200 draws from 5 x 5 offsets: each axis sees all five, independently of the other and of the coin
    assert set(rows) == set(columns) == set(range(5))
    assert len(set(zip(rows, columns, strict=True))) == 25
    if flip:
        assert 60 < sum(mirrored) < 140  # 100 ± 5.7 standard deviations
        assert len(set(zip(columns, mirrored, strict=True))) == 10
    else:
        assert not any(mirrored)


def test_augmentation_repeats_with_its_generator():
    images = numbered(20)
    first, again, other = (augment(images, generator(seed), flip=True) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_padding_and_no_flip_is_the_identity():
    assert torch.equal(augment(numbered(4), generator(), flip=False, padding=0), numbered(4))


def small_set(count: int = 6, flip: bool = True) -> ImageSet:
    return ImageSet(
        name="numbers",
        split="train",
        images=numbered(count),
        labels=torch.arange(count) % 3,
        classes=("a", "b", "c"),
        mean=(0.5, 0.25, 0.0),
        std=(0.25, 0.5, 1.0),
        flip=flip,
        padding=2,
        factors={"contrast": torch.arange(count) * 0.5},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"images": s.images / 255}, r"images are float32 \[6, 3, .*; expected .* from 0 to 255"),
        (lambda s: {"images": s.images[:, :1]}, r"images are uint8 \[6, 1, .*; expected a tensor \[M, 3, H"),
        (lambda s: {"images": s.images.numpy()}, "images are a ndarray"),
        (lambda s: {"labels": s.labels[:3]}, r"labels are int64 \[3\]; .* one for each of the 6 images"),
        (lambda s: {"labels": s.labels.int()}, r"labels are int32 \[6\]; expected a tensor of int64"),
        (lambda s: {"labels": s.labels.tolist()}, "labels are a list"),
        (lambda s: {"labels": s.labels + 1}, "labels go from 1 to 3; expected 0 to 2 for 3 classes"),
    ],
)
def test_images_of_ones_own_are_checked(change, message):
    """Pixels in 0 … 1, for example, would be divided by 255 once more, and everything would look black."""
    with pytest.raises(ValueError, match=message):
        replace(small_set(), **change(small_set()))


def test_normalise_by_hand():
    # 51 / 255 = 0.2: (0.2 - 0.5) / 0.25 = -1.2, (0.2 - 0.25) / 0.5 = -0.1, 0.2
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    result = small_set().normalise(images)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result[1, :, 2, 3], torch.tensor([-1.2, -0.1, 0.2]))


def test_batches_cover_every_image_once_in_order():
    data = small_set(7)
    parts = list(data.batches(3))
    assert [len(labels) for _, labels in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([images for images, _ in parts]), data.normalise(data.images))
    assert torch.equal(torch.cat([labels for _, labels in parts]), data.labels)


def test_another_size_is_an_average_over_what_falls_together():
    # every fourth column is white, so where four columns become one, a quarter of the light is left
    stripes = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::4] = 255
    black, white = (0.0,) * 3, (1.0,) * 3
    data = replace(small_set(2, flip=False), images=stripes, mean=black, std=white, padding=0)
    small = data.sized(8)
    for images, labels in (small.batch(torch.arange(2)), small.training_batch(torch.arange(2), generator())):
        assert images.shape == (2, 3, 8, 8) and labels.tolist() == [0, 1]
        torch.testing.assert_close(images[..., 2:-2], torch.full((2, 3, 8, 4), 0.25))
    assert torch.equal(small.sized(32).batch(torch.arange(2))[0], stripes / 255)


@pytest.mark.parametrize("shape", [(20, 32), (32, 20)])
def test_images_that_are_not_square_become_squares(shape):
    data = replace(small_set(2), images=torch.zeros(2, 3, *shape, dtype=torch.uint8))
    for size in shape:
        assert data.sized(size).batch(torch.arange(2))[0].shape == (2, 3, size, size)


@pytest.mark.parametrize("flip", [True, False])
def test_training_batch_is_the_normalised_augmentation(flip):
    data = small_set(flip=flip)
    index = torch.tensor([4, 0, 4])
    images, labels = data.training_batch(index, generator(3))
    expected = augment(data.images[index], generator(3), flip=flip, padding=2)
    assert torch.equal(images, data.normalise(expected))
    assert labels.tolist() == [1, 0, 1]


def test_subset_keeps_order_and_factors():
    data = small_set()
    part = data.subset(torch.tensor([5, 1]), "val")
    assert torch.equal(part.images, data.images[[5, 1]])
    assert part.labels.tolist() == [2, 1]
    assert part.factors["contrast"].tolist() == [2.5, 0.5]
    assert (part.split, part.padding, part.classes, len(part)) == ("val", 2, ("a", "b", "c"), 2)
    assert len(data) == 6
    assert data.subset(torch.tensor([0])).split == "train"


def test_the_first_images_and_names_of_classes():
    data = small_set(4)
    assert data.first(3).labels.tolist() == [0, 1, 2] and len(data.first(9)) == 4
    assert [data.class_name(number) for number in (0, 2, 3)] == ["a", "c", "3"]


def test_an_epoch_covers_images_without_repeats():
    # 100 images in batches of 32: three steps, 96 different images, four left out
    for epoch in range(3):
        steps = [training_index(3 * epoch + k, 32, 100, seed=5) for k in range(3)]
        seen = torch.cat(steps)
        assert len(seen) == len(set(seen.tolist())) == 96
        assert set(seen.tolist()) <= set(range(100))


def test_a_divisible_epoch_covers_every_image():
    seen = torch.cat([training_index(k, 20, 100, seed=1) for k in range(5)])
    assert sorted(seen.tolist()) == list(range(100))


def test_order_depends_on_epoch_and_seed_alone():
    def epoch(number, seed):
        return torch.cat([training_index(5 * number + k, 20, 100, seed) for k in range(5)]).tolist()

    orders = [epoch(number, seed) for number in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    torch.manual_seed(99)  # nothing else moves it, in whatever order it is asked
    assert training_index(7, 20, 100, 2).tolist() == epoch(1, 2)[40:60]


def test_a_changed_batch_of_numbers_changes_no_other():
    before = training_index(7, 20, 100, 2)
    expected = before.tolist()
    before.zero_()
    assert training_index(7, 20, 100, 2).tolist() == expected


def test_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch size 101 is larger than the 100 training images"):
        training_index(0, 101, 100, 0)


def write_cifar10(folder: Path, monkeypatch) -> tuple[torch.Tensor, list[int]]:
    """Files in the official format, 4 images each, accepted in place of the official ones."""
    base = folder / CIFAR10.base_folder
    base.mkdir()
    pixels = torch.randint(0, 256, (24, 3072), generator=generator(), dtype=torch.uint8)
    labels = [(7 * k + 3) % 10 for k in range(24)]
    sums = []
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for number, name in enumerate(names):
        rows = slice(4 * number, 4 * number + 4)
        content = pickle.dumps({"data": pixels[rows].numpy(), "labels": labels[rows]})
        (base / name).write_bytes(content)
        sums.append([name, hashlib.md5(content).hexdigest()])
    content = pickle.dumps({"label_names": list(CIFAR10_CLASSES)})
    (base / "batches.meta").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    meta = {**CIFAR10.meta, "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return pixels.view(24, 3, 32, 32), labels


def test_cifar10_files_are_read_as_they_are(tmp_path, monkeypatch):
    pixels, labels = write_cifar10(tmp_path, monkeypatch)
    train, val, test = (load_images("cifar10", split, tmp_path) for split in ("train", "val", "test"))
    assert torch.equal(test.images, pixels[20:])  # a row of a file is 3 x 32 x 32, in this order
    assert test.labels.tolist() == labels[20:]
    assert test.labels.dtype == torch.int64
    assert test.classes[3] == "cat"
    assert test.flip
    assert (len(train), len(val)) == (18, 2)  # one in ten of 20 is held out
    assert [data.split for data in (train, val, test)] == ["train", "val", "test"]
    together = {row.numpy().tobytes(): y for row, y in zip(pixels[:20], labels[:20], strict=True)}
    found = [*zip(train.images, train.labels, strict=True), *zip(val.images, val.labels, strict=True)]
    assert {row.numpy().tobytes(): y.item() for row, y in found} == together  # disjoint and complete
    again = load_images("cifar10", "val", str(tmp_path))
    assert torch.equal(again.images, val.images)


def test_cifar10_folder_is_missing(tmp_path):
    with pytest.raises(DataNotFoundError, match="no cifar10: .*fetch it with download, or name .* data_dir"):
        load_images("cifar10", "test", tmp_path)


def test_cifar10_file_is_missing(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / CIFAR10.base_folder / "data_batch_3").unlink()
    with pytest.raises(DataNotFoundError, match="data_batch_3 is missing; fetch it with download"):
        load_images("cifar10", "train", tmp_path)


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_cifar10_file_is_damaged(tmp_path, monkeypatch, name):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataDamagedError, match=f"{name} is damaged: .*MD5.*delete it and fetch it with download"
    ):
        load_images("cifar10", "test", tmp_path)


def test_unofficial_files_are_never_unpickled(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        write_cifar10(tmp_path, patch)
    with pytest.raises(DataDamagedError, match="data_batch_1 is damaged: .*c99cafc152244af753f735de768cd75f"):
        load_images("cifar10", "test", tmp_path)


def test_auto_reports_its_choice_and_reason(tmp_path, monkeypatch):
    monkeypatch.delenv("SKIPNET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    name, reason = resolve_dataset("auto")
    assert name == "rendered-digits"
    assert "no cifar-10-batches-py in data" in reason
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert resolve_dataset("auto", tmp_path) == ("cifar10", f"cifar10 (found in {tmp_path})")
    monkeypatch.setenv("SKIPNET_DATA", str(tmp_path))
    assert resolve_dataset("auto")[0] == "cifar10"
    with pytest.raises(
        DataNotFoundError, match="elsewhere is missing; correct data_dir"
    ):  # the argument wins
        resolve_dataset("auto", tmp_path / "elsewhere")


def test_a_data_set_asked_for_by_name_is_not_replaced(tmp_path):
    assert resolve_dataset("cifar10", tmp_path) == ("cifar10", "cifar10 (asked for by name)")


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'cifar'; did you mean 'cifar10'"):
        resolve_dataset("cifar")
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean 'test'"):
        load_images("cifar10", "tests", tmp_path)


@pytest.mark.slow
def test_official_cifar10(cifar10_folder):
    train, val, test = (load_images("cifar10", split, cifar10_folder) for split in ("train", "val", "test"))
    assert [len(data) for data in (train, val, test)] == [45_000, 5_000, 10_000]
    labels = torch.cat([train.labels, val.labels])
    assert labels.bincount().tolist() == [5_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert test.labels[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog
    # the well-known mean of the 50,000 training images
    pixels = torch.cat([train.images, val.images]).permute(1, 0, 2, 3).flatten(1)
    means = torch.stack([channel.double().mean() for channel in pixels]) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), rtol=0, atol=1e-4)


def test_calibration_and_selection_are_the_halves_of_the_validation_images():
    val, first, second = (load_images("rendered-digits", split) for split in ("val", *HALVES))
    assert len(first) == len(second) == len(val) // 2
    assert torch.equal(torch.cat([first.images, second.images]), val.images)
    assert {first.split, second.split} == set(HALVES)
    assert not val.flip and val.padding < 3  # a mirrored digit is none, and a neighbour must stay at the edge


def test_images_in_files_to_evaluate_on_are_shuffled(tmp_path):
    """Otherwise halves, and the first images, would lack classes."""
    for split, count in (("train", 100), ("test", 20)):
        for number in range(count):
            for name in "ab":
                file = tmp_path / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    for split in HALVES:
        labels = load_images("imagefolder", split, tmp_path).labels
        assert len(labels) == 10 and labels.unique().tolist() == [0, 1]
    test = load_images("imagefolder", "test", tmp_path)
    assert len(test) == 40 and len(set(test.paths)) == 40 and test.split == "test"
    assert test.first(10).labels.unique().tolist() == [0, 1]
    assert load_images("imagefolder", "test", tmp_path).paths == test.paths
