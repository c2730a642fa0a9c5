"""Custom mean and standard deviation, and warnings where weights were trained with others."""

import shlex
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import load_first

import envs  # noqa: F401
from agents import evaluate, hybrid_reinforce, pretrain, static
from agents.common import setting, subjects
from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import load_images
from skipnet_rl.normalisation import check_statistics, normalised, stated
from skipnet_rl.resnet import ResNet
from skipnet_rl.stored import read_header

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
QUICK = {"dataset": "rendered-digits", "split": "test", "device": "cpu"}


def first_image(**given) -> torch.Tensor:
    env = gym.make("SkipResNet20-v0", **QUICK, weights=None, **given)
    images = env.unwrapped.lockstep.images
    return images.batch(torch.tensor([0]))[0]


@pytest.mark.parametrize(
    "given",
    [
        (MEAN, STD),
        ([0, 0, 0], [1, 1, 1]),
        (np.full(3, 0.5), torch.full((3,), 0.5)),
        (MEAN, None),
        (None, STD),
    ],
    ids=str,
)
def test_environments_normalise_images(given):
    mean, std = given
    own = load_images("rendered-digits", "test")
    pixels = own.images[:1].float() / 255
    shift, scale = (
        torch.tensor([float(value) for value in (usual if each is None else each)]).view(3, 1, 1)
        for each, usual in ((mean, own.mean), (std, own.std))
    )
    torch.testing.assert_close(first_image(mean=mean, std=std), (pixels - shift) / scale)
    torch.testing.assert_close(first_image(), own.batch(torch.tensor([0]))[0])  # which others do not change


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((125.3, 123.0, 113.9), STD),
        (MEAN, (0, 0.2, 0.2)),
        (MEAN, (63.0, 62.1, 66.7)),
        (MEAN[:2], STD),
        (0.5, STD),
        ("0.5", STD),
        ((float("nan"), 0.5, 0.5), None),
        (None, (0.2, 0.2, float("inf"))),
        ((-0.1, 0.5, 0.5), None),
        (None, (0.2, -0.2, 0.2)),
        (None, (None, 0.1, 0.1)),
    ],
)
def test_invalid_statistics(mean, std, record_property):
    with pytest.raises(
        ValueError, match="(mean|std) is .*; expected (three numbers|pixel values from 0 to 1)"
    ):
        check_statistics(mean, std)
    with pytest.raises(ValueError, match="expected"):
        gym.make("SkipResNet20-v0", **QUICK, weights=None, mean=mean, std=std)
    record_property("refused", 2)


def said(call) -> list[str]:
    """Warnings of a call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found if "was trained on images normalised" in str(each.message)]


@pytest.mark.parametrize(
    ("header", "given", "warned"),
    [
        ({"mean": MEAN, "std": STD}, {"mean": MEAN, "std": STD}, 0),
        ({"mean": MEAN, "std": STD}, {"mean": (0.491, 0.482, 0.447), "std": (0.202, 0.199, 0.201)}, 0),
        ({"mean": MEAN, "std": STD}, {}, 1),
        ({"mean": MEAN, "std": STD}, {"mean": MEAN}, 1),
        ({}, {"mean": MEAN, "std": STD}, 0),  # nothing tells
        ({"mean": "x", "std": None}, {}, 0),
        ({"mean": [0.376] * 3, "std": [0.202] * 3}, {}, 0),
    ],
)
def test_a_mismatch_with_the_files_header_is_one_line(tmp_path, header, given, warned):
    path = tmp_path / "w.safetensors"
    save_weights(path, ResNet(20), header)
    lines = said(lambda: gym.make("SkipResNet20-v0", **QUICK, weights=str(path), **given))
    assert len(lines) == warned
    for line in lines:
        assert line.startswith(
            f"{path} was trained on images normalised with mean 0.4914 0.4822 0.4465 and std"
        )
        assert line.endswith("give its own as mean and std") and "\n" not in line


@pytest.mark.parametrize("weights", ["auto", "resnet20-rendered-digits"])
def test_a_mismatch_with_shipped_weights(weights):
    assert not said(lambda: gym.make("SkipResNet20-v0", **QUICK, weights=weights))
    assert len(said(lambda: gym.make("SkipResNet20-v0", **QUICK, weights=weights, mean=MEAN))) == 1


def test_torchvisions_weights_were_trained_with_imagenets(tiny_images):
    assert len(said(lambda: normalised(tiny_images, MEAN, STD, ("torchvision", None, "none")))) == 1
    usual = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert not said(lambda: normalised(tiny_images, *usual, ("torchvision",)))


def run(monkeypatch, module, function, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *flags])
    main_with_named_errors(module.Args, function, defaults=getattr(module, "arguments", None))


@pytest.mark.filterwarnings("ignore:no shipped weights")
def test_a_run_keeps_its_statistics(tmp_path, monkeypatch, few_images):
    """Training, headers, resuming and evaluation use the same statistics."""
    monkeypatch.setattr(subjects, "load_images", load_first(32))
    numbers = ["--mean", *map(str, MEAN), "--std", *map(str, STD)]
    first, second = tmp_path / "first", tmp_path / "second"
    short = ["--dataset", "rendered-digits", "--batch-size", "16", "--device", "cpu", "--precision", "fp32"]
    plain = ["--depth", "14", "--epochs", "1", *short]
    run(monkeypatch, pretrain, pretrain.train, *plain, *numbers, "--run-dir", str(first))
    weights = first / "weights.safetensors"
    about = read_header(weights)
    assert stated(about) == (MEAN, STD) and (about["depth"], about["dataset"]) == (14, "rendered-digits")
    steps = shlex.split("--iterations 1 --sp-iterations 1 --tune-iterations 0 --preset quick")
    gated = ["--env", "SkipResNet14-v0", "--weights", str(weights), *steps, *short]
    train = hybrid_reinforce.train
    assert not said(lambda: run(monkeypatch, hybrid_reinforce, train, *gated, "--run-dir", str(second)))
    assert stated(read_header(second / "hrl.safetensors")) == (MEAN, STD)
    for path in (first, second, second / "hrl.safetensors"):
        args = evaluate.Args((path,), device="cpu")
        images = evaluate.restore(path, args).images
        assert (images.mean, images.std) == (MEAN, STD)
        assert not said(lambda path=path, args=args: evaluate.restore(path, args))
        other = evaluate.Args((path,), mean=(0.5, 0.5, 0.5), device="cpu")
        assert len(said(lambda path=path, other=other: evaluate.restore(path, other))) == 1
    assert FinishedRun.read(first).statistics == (list(MEAN), list(STD))
    other = hybrid_reinforce.Args(
        "SkipResNet14-v0", "rendered-digits", weights=str(weights), batch_size=16, device="cpu"
    )
    assert len(said(lambda: setting.Setting.of(other))) == 1


@pytest.mark.parametrize(
    "flags", [["--mean", "125", "123", "114"], ["--std", "0", "0.1", "0.1"], ["--mean", "nan", "0", "0"]]
)
def test_invalid_flags(flags, monkeypatch, capsys):
    for module in (pretrain, static):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, module, getattr(module, "train", None) or static.evaluate_all, *flags)
        assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
