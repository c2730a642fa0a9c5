"""Data folders as users name and organise them: recognised or refused."""

import io
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import gymnasium as gym
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import write_cifar10
from test_sources import write_cifar100

import envs  # noqa: F401
from agents import compare, evaluate, hybrid_reinforce, pretrain, static
from agents.common.cli import main_with_named_errors
from envs import factory
from skipnet_rl.data import DATASETS, load_images, places, resolve_dataset
from skipnet_rl.errors import DataDamagedError, DataNotFoundError

TALLY: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def tally(record_property, monkeypatch):
    """Report counts to the summary, see conftest.py; use only the test's own folder."""
    monkeypatch.delenv("SKIPNET_DATA", raising=False)
    TALLY.clear()
    yield
    for kind, count in TALLY.items():
        record_property(kind, count)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


def fill(folder: Path, *names: str, count: int = 10) -> Path:
    """Folders of classes with pictures."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(PICTURE)
    return folder


def nowhere(tmp_path: Path) -> list[str]:
    """Paths that are not a folder."""
    (tmp_path / "file").write_text("in the way")
    return [str(tmp_path / "missing"), f"{tmp_path}/missing/", str(tmp_path / "file"), "~nobody-here/data"]


@pytest.mark.parametrize("dataset", ["auto", *DATASETS])
def test_a_missing_folder_is_refused(tmp_path, monkeypatch, dataset):
    for place in nowhere(tmp_path):
        for data_dir, variable in ((place, None), (Path(place), None), (None, place)):
            if variable:
                monkeypatch.setenv("SKIPNET_DATA", variable)
            by = "SKIPNET_DATA" if variable else "data_dir"
            with pytest.raises(DataNotFoundError, match=f"(is missing|is not a folder); correct .?{by}"):
                load_images(dataset, "test", data_dir)
            with pytest.raises(DataNotFoundError, match=by):
                gym.make("SkipResNet20-v0", dataset=dataset, data_dir=data_dir, weights=None)
            TALLY["refused"] += 2
            monkeypatch.delenv("SKIPNET_DATA", raising=False)


@pytest.mark.parametrize("data_dir", ["", 5, ["data"], b"data"])
def test_invalid_paths_are_refused(data_dir):
    with pytest.raises(ValueError, match="data_dir is .*; expected the path of a folder"):
        load_images("rendered-digits", "test", data_dir)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (pretrain, ["--depth", "14"]),
        (hybrid_reinforce, ["--env", "SkipResNet20-v0"]),
        (static, ["--env", "SkipResNet20-v0", "--dataset", "rendered-digits"]),
        (evaluate, ["resnet20-rendered-digits"]),
        (compare, ["runs"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_command_refuses_a_missing_folder(tmp_path, monkeypatch, capsys, command, flags):
    run = getattr(command, {static: "evaluate_all", evaluate: "main", compare: "main"}.get(command, "train"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *flags, "--data-dir", "mistyped"])
    with pytest.raises(SystemExit) as stop:
        main_with_named_errors(command.Args, run)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert said[-1].startswith("error: ") and "mistyped is missing; correct data_dir" in said[-1]
    assert list(tmp_path.iterdir()) == []


def test_auto_plays_what_the_named_folder_has(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataNotFoundError, match="empty holds no cifar-10-batches-py and no other data set"):
        resolve_dataset("auto", empty)
    (tmp_path / "one" / "cifar-100-python").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "test_32x32.mat").write_bytes(b"")
    fill(tmp_path / "three" / "train", "cat", "dog", count=1)
    (tmp_path / "four" / "train").mkdir(parents=True)
    (tmp_path / "four" / "meta.bin").write_bytes(b"")
    for folder, name in zip(("one", "two", "three", "four"), DATASETS[2:4] + DATASETS[:3:-1], strict=True):
        assert resolve_dataset("auto", tmp_path / folder)[0] == name
        TALLY["accepted"] += 1
    (tmp_path / "one" / "train_32x32.mat").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match="holds cifar100 and svhn; name the one that you mean"):
        resolve_dataset("auto", tmp_path / "one")
    (tmp_path / "one" / "cifar-10-batches-py").mkdir()
    assert resolve_dataset("auto", tmp_path / "one")[0] == "cifar10"


def test_auto_takes_what_the_weights_were_trained_on_if_it_is_there(tmp_path, monkeypatch):
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
    assert resolve_dataset("auto", tmp_path, "cifar100") == ("cifar100", "cifar100 (that of the weights)")
    assert resolve_dataset("auto", tmp_path, "rendered-digits")[0] == "rendered-digits"  # needs no files
    for elsewhere in ("svhn", "unheard of"):  # the folder that is named counts more
        assert resolve_dataset("auto", tmp_path, elsewhere)[0] == "cifar10"
    assert resolve_dataset("cifar10", tmp_path, "cifar100")[0] == "cifar10"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIPNET_DATA", raising=False)
    for name in ("rendered-digits", "svhn", "imagefolder"):  # reading it says what is missing
        assert resolve_dataset("auto", trained_on=name) == (name, f"{name} (that of the weights)")
    fill(tmp_path / "photos" / "train", "cat", "dog", count=1)
    fill(tmp_path / "photos" / "test", "cat", "dog", count=1)
    name, reason = resolve_dataset("auto", tmp_path / "photos", "imagefolder")
    assert name == "imagefolder" and "that of the weights; " in reason and "test from test/" in reason


def test_without_a_name_and_without_data_auto_draws_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKIPNET_DATA", "")  # as good as none
    assert resolve_dataset("auto")[0] == "rendered-digits"
    fill(tmp_path / "data" / "train", "cat", count=1)
    assert resolve_dataset("auto")[0] == "rendered-digits"


def test_cifars_folder_or_its_parent(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    inner = tmp_path / "cifar-10-batches-py"
    expected = load_images("cifar10", "test", tmp_path).images
    (tmp_path / "link").symlink_to(inner)
    assert resolve_dataset("auto", inner)[0] == "cifar10"
    for folder in (inner, f"{inner}/", tmp_path / "link"):
        assert load_images("cifar10", "test", folder).images.equal(expected)
    monkeypatch.chdir(inner)
    assert load_images("cifar10", "test", ".").images.equal(expected)
    os.rename(inner, tmp_path / "another name")
    assert load_images("cifar10", "test", tmp_path / "another name").images.equal(expected)


def test_cifar100s_folder_itself(tmp_path, monkeypatch):
    write_cifar100(tmp_path, monkeypatch)
    inner = tmp_path / "cifar-100-python"
    assert resolve_dataset("auto", inner)[0] == "cifar100"
    assert len(load_images("cifar100", "test", inner)) == 4


def test_folders_of_other_sets(tmp_path):
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "test_32x32.mat").write_bytes(b"x")
    with pytest.raises(DataDamagedError, match="test_32x32.mat is damaged"):
        load_images("svhn", "test", tmp_path)
    fill(tmp_path / "photos" / "train", "cat", "dog")
    for folder in ("photos", "photos/train"):
        assert load_images("imagefolder", "train", tmp_path / folder).classes == ("cat", "dog")


LAYOUTS = {  # folders of images → the folder of each split
    "train val test": {"train": "train", "val": "val", "test": "test"},
    "train valid test": {"train": "train", "val": "valid", "test": "test"},
    "train validation test": {"train": "train", "val": "validation", "test": "test"},
    "train test": {"train": "train", "val": "train", "test": "test"},
    "train val": {"train": "train", "val": "train", "test": "val"},
    "train validation": {"train": "train", "val": "train", "test": "validation"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_split_has_its_folder(tmp_path, layout):
    for folder in layout.split():
        fill(tmp_path / folder, "cat", "dog")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        found = {split: load_images("imagefolder", split, tmp_path) for split in ("train", "val", "test")}
    assert {
        split: {Path(path).relative_to(tmp_path).parts[0] for path in images.paths}
        for split, images in found.items()
    } == {split: {folder} for split, folder in LAYOUTS[layout].items()}
    own = LAYOUTS[layout]["val"] != "train"
    assert [len(images) for images in found.values()] == ([20, 20, 20] if own else [18, 2, 20])
    assert not {*found["train"].paths} & {*found["val"].paths}
    reason = resolve_dataset("imagefolder", tmp_path)[1]
    assert f"test from {LAYOUTS[layout]['test']}/" in reason
    assert (f"val from {LAYOUTS[layout]['val']}/" if own else "train and val from train/") in reason
    taken = LAYOUTS[layout]["test"] in places.VALIDATION  # the one surprise is said
    assert ["so" in str(w.message) and "is its test split" in str(w.message) for w in said] == [True] * taken


def test_an_unlabelled_test_folder_is_ignored(tmp_path):
    fill(tmp_path / "train", "cat", "dog")
    fill(tmp_path / "val", "cat", "dog", count=3)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.jpg").write_bytes(PICTURE)
    assert len(load_images("imagefolder", "test", tmp_path)) == 6
    fill(tmp_path / "valid", "cat", count=1)
    with pytest.raises(DataDamagedError, match="val and .*valid may both be the validation images"):
        load_images("imagefolder", "test", tmp_path)


JUNK = (
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/cat/._0.png",
    "@eaDir/0.png",
    "empty/",
    "unfinished/notes.txt",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "cat/._0.png",
    "cat/.ipynb_checkpoints/1.png",
    "cat/Thumbs.db",
    "dog/desktop.ini",
    "dog/__MACOSX/0.png",
    "dog/.hidden.png",
    "README.txt",
    "empty/.keep",
    "stray.png",
)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    junk=st.sets(st.sampled_from(JUNK), min_size=1),
    hidden=st.booleans(),
    extra=st.sets(st.sampled_from(JUNK)),
)
def test_system_files_are_ignored(tmp_path_factory, junk, hidden, extra):
    place = tmp_path_factory.mktemp("set") / (".cache" if hidden else "set")  # the user's own may be hidden
    for split, some in (("train", junk), ("test", extra)):
        fill(place / split, "cat", "dog", count=5)
        for name in some:
            path = place / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if name.endswith("/") else path.write_bytes(PICTURE)
    for split in ("train", "val", "test"):
        images = load_images("imagefolder", split, place, size=8)
        assert images.classes == ("cat", "dog")
        found = {str(Path(path).relative_to(place)) for path in images.paths}
        assert found <= {
            f"{part}/{name}/{k}.png"
            for part in ("train", "test")
            for name in ("cat", "dog")
            for k in range(5)
        }
        TALLY["accepted"] += 1
    assert len(load_images("imagefolder", "test", place)) == 10


def test_imagenets_classes_keep_their_numbers(tmp_path):
    import torch

    names = {"n01440764": ("tench",), "n01443537": ("goldfish",), "n02119789": ("fox",)}
    torch.save((names, list(names)), tmp_path / "meta.bin")
    fill(tmp_path / "train", *names)
    fill(tmp_path / "val", "n01440764", "n02119789", count=1)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / ".ipynb_checkpoints" / "0.png").write_bytes(PICTURE)
    assert sorted(load_images("imagenet", "test", tmp_path).labels.tolist()) == [0, 2]
    assert load_images("imagenet", "train", tmp_path).classes == ("tench", "goldfish", "fox")
    fill(tmp_path / "train", "n99999999")
    with pytest.raises(DataDamagedError, match="class 'n99999999', which its meta.bin lacks"):
        load_images("imagenet", "train", tmp_path)


def loaded(place: Path) -> tuple:
    """Images that an environment plays."""
    env = gym.make("SkipResNet20-v0", dataset="imagefolder", data_dir=str(place), split="test", weights=None)
    images = env.unwrapped.lockstep.images
    return images.classes, len(images)


def test_changed_folders_are_noticed(tmp_path, monkeypatch):
    """A file added or removed, a new class, another folder of the same name."""
    for split in ("train", "test"):
        fill(tmp_path / "one" / split, "a", "b", count=2)
    assert loaded(tmp_path / "one") == (("a", "b"), 4)
    fill(tmp_path / "one" / "test", "a", count=3)
    assert loaded(tmp_path / "one") == (("a", "b"), 5)
    (tmp_path / "one" / "test" / "b" / "0.png").unlink()
    assert loaded(tmp_path / "one") == (("a", "b"), 4)
    for split in ("train", "test"):
        fill(tmp_path / "one" / split, "c", count=1)
        fill(tmp_path / "two" / "set" / split, "x", "y", count=1)
    assert loaded(tmp_path / "one") == (("a", "b", "c"), 5)
    monkeypatch.chdir(tmp_path)
    assert loaded("one") == (("a", "b", "c"), 5)
    (tmp_path / "one").rename(tmp_path / "gone")
    (tmp_path / "two" / "set").rename(tmp_path / "one")
    assert loaded("one") == (("x", "y"), 2)
    before = factory._images.cache_info().hits
    assert loaded("one") == (("x", "y"), 2)
    assert factory._images.cache_info().hits == before + 1  # and only read again where they changed


def test_changed_files_are_reread(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    make = {"dataset": "cifar10", "data_dir": str(tmp_path), "split": "test", "weights": None}
    gym.make("SkipResNet20-v0", **make)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataDamagedError, match="test_batch is damaged"):
        gym.make("SkipResNet20-v0", **make)
    path.unlink()
    with pytest.raises(DataNotFoundError, match="test_batch is missing"):
        gym.make("SkipResNet20-v0", **make)
