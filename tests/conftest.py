"""A few random images and a small network; the official CIFAR files where the machine has them.

The library is imported by the fixtures: the process that hands tests to workers needs none of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from skipnet_rl.data import ImageSet
    from skipnet_rl.resnet import ResNet

COUNTING = ("test_properties", "test_pixels", "test_places", "test_normalisation", "test_text")  # inputs
SHARED = Path(__file__).parent.parent.parent / "shared"  # files too large for the repository, beside it


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests of the CPU, which compare to the bit and fork; `-m gpu` sees them."""
    if config.getoption("-m") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def runs_without_pictures():
    """Disable pictures of runs, a third of the time of a short one, unless a test asks for `pictures`."""
    from agents.common import outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "write_plots", lambda *args: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def digits_are_read_once():
    """Keep the rendered digits in memory, unless a test has a cache folder of its own."""
    from skipnet_rl.data import digits

    read, usual = digits.load_digits, digits.default_cache()
    kept = cache(read)

    def load_digits(split, cache_dir=None, progress=None):
        if cache_dir or digits.default_cache() != usual:
            return read(split, cache_dir, progress)
        return kept(split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", load_digits)
        yield


@pytest.fixture
def pictures(monkeypatch) -> None:
    """Runs draw their pictures."""
    from agents.common import outcome
    from skipnet_rl.plots import write_plots

    monkeypatch.setattr(outcome, "write_plots", write_plots)


@pytest.fixture
def few_images(monkeypatch) -> None:
    """The agents see 32 images of each split instead of thousands."""
    from toys import load_first

    from agents.common import setting

    monkeypatch.setattr(setting, "load_images", load_first(32))


@pytest.fixture
def tiny_images() -> ImageSet:
    """Twelve images of noise in ten classes."""
    import torch

    from skipnet_rl.data import ImageSet

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    classes = tuple(f"class {k}" for k in range(10))
    return ImageSet(
        "noise", "train", images, torch.arange(12) % 10, classes, (0.5,) * 3, (0.25,) * 3, flip=True
    )


@pytest.fixture
def tiny_net() -> ResNet:
    """ResNet-20 (N = 8) in evaluation mode, in which every block and every batch norm does something.

    As initialised a batch norm in evaluation mode is the identity (and a weight may be zero, so that a
    block is its shortcut): a test would not see whether it is applied.
    """
    import torch

    from skipnet_rl.resnet import ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet(20)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return net.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the official files of `"cifar10"` or `"cifar100"`, where the machine has them."""
    from skipnet_rl.data.places import CIFAR

    @cache
    def folder_of(name: str) -> Path:
        folder, (usual, _) = Path(os.environ.get("SKIPNET_DATA") or "data"), CIFAR[name]
        if (folder / usual).is_dir():
            return folder
        unpack = SHARED / "data" / name / "unpack.py"
        if not unpack.is_file():
            pytest.skip(f"no {name}: set $SKIPNET_DATA to the folder of {usual}")
        folder = tmp_path_factory.mktemp(name)
        subprocess.run([sys.executable, unpack, folder], check=True, capture_output=True)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def cifar10_folder(official_folder) -> Path:
    """The official CIFAR-10 files, where the machine has them."""
    return official_folder("cifar10")


def pytest_terminal_summary(terminalreporter) -> None:
    """Sum injected faults and tried inputs over the tests that record them."""
    counts: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", []) if report_is_final(report) else []:
                counts[key] = counts.get(key, 0) + int(value)
    failed = [report.nodeid for report in terminalreporter.stats.get("failed", [])]
    crashed = sum(any(file in name for file in COUNTING) for name in failed)
    if "kills" in counts:
        terminalreporter.write_line(f"kill -9: {counts['kills']} injected, {counts['kills']} survived")
    if "refused" in counts:
        accepted, refused = counts.get("accepted", 0), counts["refused"]
        terminalreporter.write_line(
            f"inputs: {accepted + refused} tried, {accepted} accepted, {refused} refused, {crashed} crashed"
        )


def report_is_final(report: object) -> bool:
    """Whether a report is a test's last one: it has all of its properties, earlier ones have some again."""
    return getattr(report, "when", None) == "teardown"
