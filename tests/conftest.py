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
    labels = torch.arange(12) % 10
    classes = tuple(f"class {k}" for k in range(10))
    return ImageSet("noise", "train", images, labels, classes, (0.5,) * 3, (0.25,) * 3, flip=True)


@pytest.fixture
def tiny_net() -> ResNet:
    """ResNet-20 (N = 8) in evaluation mode, whose batch norms have seen something.

    Fresh running statistics would make every normalisation the identity, and a test blind to it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResNet(20)
        with torch.no_grad():
            for _ in range(3):
                net(torch.randn(16, 3, 32, 32))
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
