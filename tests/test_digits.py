"""rendered-digits: the same bytes in any order, balanced, cached safely, as hard as its factors say."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from skipnet_rl.data import digits, drawing
from skipnet_rl.data.digits import FACTORS, RANGES, SIZES, load_digits, render_digits


@pytest.fixture(scope="module")
def sample():
    return render_digits("train", np.arange(1500))


@pytest.fixture
def small(monkeypatch):
    """Splits of 30 images, so that drawing one takes no time."""
    monkeypatch.setattr(digits, "SIZES", {"train": 30, "test": 30})
    digits._labels.cache_clear()
    yield
    digits._labels.cache_clear()


def test_an_image_depends_on_its_index_alone(sample):
    images, labels, factors = sample
    chosen = np.array([777, 3, 1499, 3])
    again, same_labels, same_factors = render_digits("train", chosen)
    np.testing.assert_array_equal(again, images[chosen])
    np.testing.assert_array_equal(same_labels, labels[chosen])
    for name in FACTORS:
        np.testing.assert_array_equal(same_factors[name], factors[name][chosen])


def test_shapes_and_types(sample):
    images, labels, factors = sample
    assert images.shape == (1500, 3, 32, 32) and images.dtype == np.uint8
    assert labels.shape == (1500,) and labels.dtype == np.int64
    assert tuple(factors) == FACTORS
    assert all(values.shape == (1500,) and values.dtype == np.float32 for values in factors.values())


def test_splits_share_no_image(sample):
    test = render_digits("test", np.arange(1500))[0]
    seen = {hashlib.sha256(image.tobytes()).digest() for image in sample[0]}
    assert len(seen) == 1500
    assert not seen & {hashlib.sha256(image.tobytes()).digest() for image in test}


@pytest.mark.parametrize("split", SIZES)
def test_classes_are_balanced_and_unordered(split):
    labels = digits._labels(split)
    assert np.bincount(labels).tolist() == [SIZES[split] // 10] * 10
    following = np.mean(labels[1:] == (labels[:-1] + 1) % 10)
    assert abs(following - 0.1) < 0.03  # as often as chance has it


def test_factors_fill_their_ranges_independently(sample):
    _, labels, factors = sample
    for name, (easiest, hardest, _) in RANGES.items():
        low, high = sorted((easiest, hardest))
        values = factors[name]
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    table = np.corrcoef(np.stack([labels, *factors.values()]))
    assert np.abs(table - np.eye(len(table))).max() < 0.1  # 4 standard errors of 1,500 pairs


def test_brightness_contrast_noise_and_blur_show_in_the_pixels(sample):
    images, _, factors = sample
    pixels = images.astype(np.float64).mean(axis=1) / 255  # [M, 32, 32]
    assert np.corrcoef(factors["brightness"], pixels.mean(axis=(1, 2)))[0, 1] > 0.5
    assert np.corrcoef(factors["contrast"], pixels.std(axis=(1, 2)))[0, 1] > 0.3
    rough = np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2))
    assert np.corrcoef(factors["noise"], rough)[0, 1] > 0.5
    quiet = factors["noise"] < 0.003
    steepest = np.abs(np.diff(pixels[quiet], axis=2)).max(axis=(1, 2)) / pixels[quiet].std(axis=(1, 2))
    assert np.corrcoef(factors["blur"][quiet], steepest)[0, 1] < -0.5


def test_larger_digits_cover_more(sample):
    _, labels, factors = sample
    alone = np.flatnonzero(factors["distractors"] == 0)
    draws = digits._draws("train", alone)
    columns = {name: values[alone, None, None] for name, values in factors.items()}
    ink = drawing.ink_of(draws, labels[alone], columns).sum(axis=(1, 2))
    assert np.corrcoef(factors["scale"][alone], ink)[0, 1] > 0.5


def test_cache_is_written_once_and_read(small, tmp_path, monkeypatch):
    first = load_digits("train", tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    monkeypatch.setattr(digits, "render_digits", lambda *rest, **more: pytest.fail("drawn again"))
    second = load_digits("train", tmp_path)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert {name: values.tolist() for name, values in first[2].items()} == {
        name: values.tolist() for name, values in second[2].items()
    }


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "nonsense", "cut short"])
def test_damaged_cache_is_redrawn(small, tmp_path, damage):
    expected = load_digits("test", tmp_path)[0]
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    np.testing.assert_array_equal(load_digits("test", tmp_path)[0], expected)
    assert len(path.read_bytes()) == len(whole)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_cache_permissions_follow_the_umask(small, tmp_path, mask):
    before = os.umask(mask)
    try:
        load_digits("train", tmp_path / "cache")
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert path.parent.stat().st_mode & 0o777 == 0o777 & ~mask


def test_cache_of_other_images_is_redrawn(small, tmp_path):
    """Another split, fewer images, other labels, a missing array: recognised by content."""
    expected = load_digits("test", tmp_path)
    path = tmp_path / "rendered-digits-v1-test.npz"
    train = render_digits("train")
    images, labels, factors = expected
    some = {name: values[:5] for name, values in factors.items()}
    for wrong in (
        {"images": train[0], "labels": train[1], **train[2]},
        {"images": images[:5], "labels": labels[:5], **some},
        {"images": images, "labels": labels[::-1], **factors},
        {"images": images, "labels": labels},
        {"images": images.astype(np.float32), "labels": labels, **factors},
        {"images": images, "labels": labels, **some},
    ):
        np.savez(path, **wrong)
        again = load_digits("test", tmp_path)
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], labels)


def test_concurrent_processes_share_the_cache(small, tmp_path):
    """Each writes its own temporary file and moves it into place."""
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: load_digits("train", tmp_path)[0], range(8)))
    assert all(np.array_equal(images, found[0]) for images in found)
    assert [path.name for path in tmp_path.iterdir()] == ["rendered-digits-v1-train.npz"]


def test_cache_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot cache the rendered digits in .*file"):
        images, _, _ = load_digits("train", tmp_path / "file")
    np.testing.assert_array_equal(images, render_digits("train")[0])


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SKIPNET_CACHE", raising=False)
    assert digits.default_cache() == tmp_path / "xdg" / "skipnet-rl"
    monkeypatch.setenv("SKIPNET_CACHE", str(tmp_path / "own"))
    assert digits.default_cache() == tmp_path / "own"


@pytest.mark.parametrize("call", [render_digits, load_digits])
def test_unknown_split(call):
    with pytest.raises(ValueError, match="unknown split 'val'.*train, test"):
        call("val")


@pytest.mark.parametrize("index", [-1, 4000])
def test_index_outside(index):
    with pytest.raises(ValueError, match="0 … 3999; got"):
        render_digits("test", np.array([index]))


# of the first 200 test images, by what NumPy's float32 exponentials and powers are computed with
TRAIN_BYTES = {"0d1856a1d5f4cb52": "NumPy 2", "d4efe866270af65b": "NumPy 1.26"}
TEST_BYTES = {"fc88d24d4e6d3b31": "AVX-512", "d7e3dd2f714c9c00": "AVX2", "16b0f4a8fea86753": "SSE"}


def test_the_same_bytes_on_every_run():
    """Hash of the first 200 images of each split; results change wherever these differ."""
    found = {
        split: hashlib.sha256(render_digits(split, np.arange(200))[0].tobytes()).hexdigest()[:16]
        for split in SIZES
    }
    assert found["train"] in TRAIN_BYTES
    assert found["test"] in TEST_BYTES
