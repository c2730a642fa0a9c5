"""Fixtures that need no file and no download: a few random images and a small network."""

import pytest
import torch

from skipnet_rl.data import ImageSet
from skipnet_rl.resnet import ResNet


@pytest.fixture
def tiny_images() -> ImageSet:
    """Twelve images of noise in ten classes."""
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet(20)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.0)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
