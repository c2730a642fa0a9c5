"""Data sets through torchvision, on small files in the official formats."""

import hashlib
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, SVHN
from toys import COLOURS, Elsewhere, write_folder

from skipnet_rl.data import DATASETS, load_images
from skipnet_rl.data.files import ImageFiles
from skipnet_rl.data.official import LOADERS
from skipnet_rl.data.sources import CIFAR10_FOLDER
from skipnet_rl.errors import DataDamagedError, DataNotFoundError
from skipnet_rl.randomness import step_generator


def test_names_that_are_known_without_torchvision():
    assert ("rendered-digits", *LOADERS) == DATASETS
    assert CIFAR10.base_folder == CIFAR10_FOLDER


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_cifar100(folder, monkeypatch) -> tuple[np.ndarray, list[int]]:
    base = folder / CIFAR100.base_folder
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3072), dtype=np.uint8)
    labels = [(37 * k) % 100 for k in range(24)]
    for name, rows in (("train", slice(0, 20)), ("test", slice(20, 24))):
        content = {
            "data": pixels[rows],
            "fine_labels": labels[rows],
            "coarse_labels": [0] * len(labels[rows]),
        }
        (base / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5((base / name).read_bytes())]])
    names = pickle.dumps({"fine_label_names": [f"class {k}" for k in range(100)]})
    (base / "meta").write_bytes(names)
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(names)})
    return pixels.reshape(24, 3, 32, 32), labels


def test_cifar100(tmp_path, monkeypatch):
    pixels, labels = write_cifar100(tmp_path, monkeypatch)
    train, val, test = (load_images("cifar100", split, tmp_path) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 4)
    assert np.array_equal(test.images.numpy(), pixels[20:])
    assert test.labels.tolist() == labels[20:]
    assert len(test.classes) == 100 and test.classes[42] == "class 42"
    assert test.flip
    (tmp_path / CIFAR100.base_folder / "test").write_bytes(b"x")
    with pytest.raises(DataDamagedError, match="test is damaged: its MD5"):
        load_images("cifar100", "test", tmp_path)


def test_svhn(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.arange(20).reshape(20, 1) % 10 + 1  # the files call the digit 0 "10"
    files = dict(SVHN.split_list)
    for split, (url, name, _) in SVHN.split_list.items():
        if split != "extra":
            scipy_io.savemat(tmp_path / name, {"X": pixels, "y": labels})
            files[split] = [url, name, md5((tmp_path / name).read_bytes())]
    monkeypatch.setattr(SVHN, "split_list", files)
    train, val, test = (load_images("svhn", split, tmp_path) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 20)
    assert np.array_equal(test.images[7].numpy(), pixels[:, :, :, 7].transpose(2, 0, 1))
    assert test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert not test.flip  # a mirrored digit is none
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(DataNotFoundError, match="test_32x32.mat is missing; fetch it with download"):
        load_images("svhn", "test", tmp_path)


def test_svhn_without_scipy(tmp_path, monkeypatch):
    (tmp_path / "test_32x32.mat").write_bytes(b"anything")
    url, name, _ = SVHN.split_list["test"]
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, "test": [url, name, md5(b"anything")]})
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataNotFoundError, match="svhn needs scipy.*: pip install scipy"):
        load_images("svhn", "test", tmp_path)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_imagefolder(tmp_path, held_out):
    write_folder(tmp_path / "train", COLOURS, 10)
    write_folder(tmp_path / held_out, COLOURS, 2)
    train, val, test = (load_images("imagefolder", split, tmp_path) for split in ("train", "val", "test"))
    assert isinstance(test, ImageFiles)
    assert (len(train), len(val), len(test)) == (18, 2, 4)
    assert not set(train.paths) & set(val.paths) and list(train.paths) == sorted(train.paths)
    assert test.classes == ("blue", "red") and sorted(test.labels.tolist()) == [0, 0, 1, 1]
    assert [Path(path).parent.name for path in test.paths] == [test.classes[k] for k in test.labels]
    images, labels = test.batch(test.labels.argsort(descending=True)[[0, 3]])
    assert images.shape == (2, 3, 224, 224) and labels.tolist() == [1, 0]
    red = images[0, :, 112, 200] * torch.tensor(test.std) + torch.tensor(test.mean)
    torch.testing.assert_close(red, torch.tensor([200, 0, 0]) / 255, atol=1e-5, rtol=0)


def test_central_crop_is_torchvisions(tmp_path):
    """Equal to the transforms that torchvision gives with its weights."""
    from torchvision.models import ResNet50_Weights

    pixels = np.random.default_rng(0).integers(0, 256, (301, 411, 3), dtype=np.uint8)
    for split in ("train", "test"):
        for name in ("noise", "the same"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    images, _ = load_images("imagefolder", "test", tmp_path).batch(torch.tensor([0]))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = ResNet50_Weights.IMAGENET1K_V1.transforms()(tensor)
    torch.testing.assert_close(images[0], expected, atol=0.03, rtol=0)  # they interpolate before rounding
    assert load_images("imagefolder", "test", tmp_path, size=64).batch(torch.tensor([0]))[0].shape[2:] == (
        64,
        64,
    )


def test_training_batch_crops_and_mirrors_each_image_on_its_own(tmp_path):
    write_folder(tmp_path / "train", COLOURS, 20)
    train = load_images("imagefolder", "train", tmp_path, size=32)
    index = torch.arange(32)
    first, _ = train.training_batch(index, step_generator(0, 0, "cpu"))
    again, _ = train.training_batch(index, step_generator(0, 0, "cpu"))
    other, _ = train.training_batch(index, step_generator(0, 1, "cpu"))
    assert torch.equal(first, again) and not torch.equal(first, other)
    white = first[:, 1] > 2  # green is bright in the white edge alone
    left, right = white[:, :, 0].any(dim=1), white[:, :, -1].any(dim=1)
    assert (left & ~right).sum() >= 4 and (right & ~left).sum() >= 4  # mirrored by each image's own coin
    assert len({int(w.sum()) for w in white}) > 5  # and cropped on its own


def test_a_seed_draws_the_same_crops_for_each_device(tmp_path):
    write_folder(tmp_path / "train", COLOURS, 4)
    train, index = load_images("imagefolder", "train", tmp_path, size=32), torch.arange(8)
    draws = step_generator(0, 3, "cpu")
    other = Elsewhere("cpu").manual_seed(draws.initial_seed())
    expected, _ = train.training_batch(index, draws)
    assert torch.equal(train.training_batch(index, other)[0], expected)
    assert not torch.equal(train.training_batch(index, other)[0], expected)


def test_drawing_crops_leaves_the_global_generator_alone(tmp_path):
    write_folder(tmp_path / "train", COLOURS, 4)
    train = load_images("imagefolder", "train", tmp_path, size=32)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train.training_batch(torch.arange(4), step_generator(0, 0, "cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_imagefolder_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(DataNotFoundError, match="train is missing; expected one folder per class"):
        load_images("imagefolder", "train", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataNotFoundError, match="no images: .*train has none"):
        load_images("imagefolder", "train", tmp_path)
    (tmp_path / "train").rmdir()
    write_folder(tmp_path / "test", COLOURS, 1)
    broken = tmp_path / "test" / "red" / "0.png"
    test = load_images("imagefolder", "test", tmp_path)
    whole = broken.read_bytes()
    truncated_header = whole[:8] + b"\x00\x00\x00\x05" + whole[12:]  # PIL: ValueError
    another_chunk = whole[:33] + b"\x00\x00\x00\x00!!!!" + whole[41:]  # PIL: SyntaxError
    for content in (b"no image", whole[:300], truncated_header, another_chunk):
        broken.write_bytes(content)
        with pytest.raises(DataDamagedError, match="0.png is not a readable image"):
            test.batch(test.labels.argmax(keepdim=True))


def test_a_label_means_the_same_class_in_every_split(tmp_path):
    colours = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
    write_folder(tmp_path / "train", colours, 10)
    write_folder(tmp_path / "test", COLOURS, 1)  # without green
    test = load_images("imagefolder", "test", tmp_path)
    assert test.classes == ("blue", "green", "red") and sorted(test.labels.tolist()) == [0, 2]
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataNotFoundError, match="no images: .*test has none"):
        load_images("imagefolder", "test", tmp_path)
    write_folder(tmp_path / "test", {"white": (255, 255, 255)}, 1)
    with pytest.raises(DataDamagedError, match="test/white is a class that .*train does not have"):
        load_images("imagefolder", "test", tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_class_is_refused(tmp_path, split):
    """As in train/photos/<class>/<file>, where `photos` is taken for the class."""
    for name in ("train", "test"):
        write_folder(tmp_path / name / "photos", COLOURS, 2)
    with pytest.raises(DataDamagedError, match=r"train has one class, 'photos', .*; expected one folder for"):
        load_images("imagefolder", split, tmp_path)


def read_in_a_fork(images, answer) -> None:
    answer.put(images.batch(torch.tensor([0]))[0].shape[2:] == (32, 32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_process_decodes_images_too(tmp_path):
    write_folder(tmp_path / "train", COLOURS, 10)
    images = load_images("imagefolder", "train", tmp_path, size=32)
    images.batch(torch.tensor([0]))  # the parent's threads exist, and are not forked
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=read_in_a_fork, args=(images, answer), daemon=True)
    child.start()
    assert answer.get(timeout=60)
    child.join()


def test_imagenet(tmp_path):
    """The folders that torchvision unpacks: train/<wnid>, val/<wnid>, and meta.bin with names."""
    names = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish", "Carassius auratus")}
    colours = dict(zip(names, COLOURS.values(), strict=True))
    write_folder(tmp_path / "train", colours, 5, ext="JPEG")
    write_folder(tmp_path / "val", colours, 3, ext="JPEG")
    torch.save((names, ["n01440764", "n01443537"]), tmp_path / "meta.bin")
    train, val, test = (load_images("imagenet", split, tmp_path) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (9, 1, 6)
    assert test.classes == ("tench", "goldfish")
    assert sorted(test.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert test.picture(4).shape == (224, 224, 3)
    with pytest.raises(DataNotFoundError, match="no imagenet: .*elsewhere is missing"):
        load_images("imagenet", "test", tmp_path / "elsewhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataDamagedError, match="imagenet in .*bare could not be read"):
        load_images("imagenet", "test", tmp_path / "bare")


def test_an_environment_plays_image_files(tmp_path):
    import gymnasium as gym

    import envs  # noqa: F401

    write_folder(tmp_path / "train", COLOURS, 2, size=(40, 40))
    write_folder(tmp_path / "test", COLOURS, 2, size=(40, 40))
    env = gym.make(
        "SkipResNet20-v0",
        dataset="imagefolder",
        data_dir=str(tmp_path),
        split="test",
        weights=None,
        device="cpu",
        augment=True,
        render_mode="rgb_array",
    )
    red = int(env.unwrapped.lockstep.images.labels.argmax())
    env.reset(seed=0, options={"index": red})
    ended = False
    while not ended:
        *_, ended, _, info = env.step(1)
    assert info["label"] == 1
    assert env.render().ndim == 3
