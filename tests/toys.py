"""Toys whose best decisions are known.

`toy_net`: a ResNet-8 with one needed and one useless block, on images of two colours. `toy_chain`: two
networks with given answers. `spread`: halting scores that tell images apart. `load_first`: a data set cut to
its first images. `write_folder`: images of one colour per class. `Elsewhere`: a generator that says it is a
GPU's.
"""

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from agents import hybrid_reinforce
from skipnet_rl.chain import Chain
from skipnet_rl.data import ImageSet, load_images
from skipnet_rl.halting import HaltingGate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.recording import Records, Replayed
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout


class Elsewhere(torch.Generator):
    """A generator of a device that this machine need not have."""

    device = torch.device("cuda")


class Replay:
    """A policy that repeats given routes [B, N]."""

    def __init__(self, routes):
        self.routes = routes

    def __call__(self, mdp, state, hidden):
        """+∞ where the route executes, else -∞, [B]."""
        execute = self.routes[:, state.t].bool()
        return torch.where(execute, math.inf, -math.inf), None


def slow(*values):
    """A set of parameters that only `make slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def load_first(count: int) -> Callable[..., ImageSet]:
    """`load_images`, but only the first images of each split."""
    return lambda *args, **kwargs: load_images(*args, **kwargs).first(count)


def two_colours(size: int = 64) -> ImageSet:
    """Red and green noise: two classes that a block learns to separate in seconds."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % 2
    images[torch.arange(size), labels] += 60
    return ImageSet("colours", "train", images, labels, ("red", "green"), (0.3,) * 3, (0.2,) * 3, flip=False)


def toy_net(data: ImageSet) -> ResNet:
    """ResNet-8 (N = 2) whose block 1 is needed and whose block 2 does nothing: the best route is [1, 0].

    Args:
        data: of `two_colours`, on which it was trained.
    """
    net = copy.deepcopy(_trained(len(data)))
    torch.manual_seed(0)  # what follows does not depend on whether it was trained just now
    return net


@cache
def _trained(size: int) -> ResNet:
    data = two_colours(size)
    torch.manual_seed(0)
    net = ResNet(8, 2)
    for useless in (net.blocks[1].shortcut[1], net.blocks[2].bn2):  # block 1's shortcut loses the image
        torch.nn.init.zeros_(useless.weight)
        useless.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    images, labels = data.batch(torch.arange(len(data)))
    mdp, route = RoutingMDP(net), Replay(torch.tensor([[1, 0]]).expand(len(data), 2))
    for _ in range(25):
        optimizer.zero_grad()
        rollout(mdp, route, images, labels).loss.mean().backward()
        optimizer.step()
    return net


def toy_mdp(data: ImageSet, alpha: float = 0.2) -> RoutingMDP:
    """The decision process over it, in evaluation mode."""
    return RoutingMDP(toy_net(data).eval(), alpha)


def hybrid_learner(args: hybrid_reinforce.Args, net: ResNet, *more: Any, **others: Any):
    """The learner of hybrid REINFORCE over a network, in float32."""
    mdp = RoutingMDP(net, args.alpha, args.cost)
    return hybrid_reinforce.Learner(args, mdp, "fp32", *more, **others)


def greedy(mdp: RoutingMDP, policy: object, data: ImageSet):
    """Every image's thresholded episode."""
    mdp.net.eval()
    with torch.no_grad():
        return rollout(mdp, policy, *data.batch(torch.arange(len(data))))


def spread(net: ResNet, images: torch.Tensor) -> HaltingGate:
    """Halting scores that differ between these images [B, 3, H, W] as much as numbers from 0 to 1 can."""
    generator = torch.Generator().manual_seed(3)
    gate = HaltingGate(net).to(images.dtype)

    def adjusted(mdp, state, hidden):
        if not gate.begins[state.t]:
            head = gate.scores[gate.numbers[state.t]]
            torch.nn.init.normal_(head.weight, generator=generator)
            logits = state.x.mean(dim=(2, 3)) @ head.weight.T
            head.weight.mul_(4 / logits.std())
            head.bias.copy_(1 - 4 * logits.mean() / logits.std())
        return gate(mdp, state, hidden)

    with torch.no_grad():
        rollout(RoutingMDP(net), adjusted, images, torch.zeros(len(images)).long())
    return gate.eval()


def spoken(name: str, macs: int, classes: int = 2, number: int = 0) -> Replayed:
    """A network whose answers are written down, at place `number` of a chain's records."""
    about = SimpleNamespace(
        name=name, num_classes=classes, image_size=32, depth=8, macs=macs, whole_macs=macs
    )
    return Replayed(number, about)


def written(data: ImageSet, probabilities: torch.Tensor, macs: list[int]) -> Records:
    """Records of networks that say what they are told: [M, n, K] probabilities, n costs."""
    log_probs = probabilities.double().log()
    spent = torch.tensor(macs).double().expand(len(data), -1).unsqueeze(2)
    return Records(data, torch.cat([log_probs, spent], dim=2))


def toy_chain(size: int = 64) -> tuple[Chain, Records]:
    """Two networks of 10 and 100 MACs; the second is worth asking about every other pair of images.

    About images 0, 1, 4, 5, 8, 9, … the first is sure and right; about the others it has no idea. The second
    is always right.
    """
    data = two_colours(size)
    right = torch.nn.functional.one_hot(data.labels, 2).double()
    sure = (torch.arange(size) // 2 % 2 == 0)[:, None]
    knows, guesses = 0.98 * right + 0.01, 0.5 + 0.1 * (0.5 - right)  # a guess is as often wrong as it can be
    records = written(data, torch.stack([torch.where(sure, knows, guesses), knows], dim=1), [10, 100])
    return Chain([spoken("quick", 10), spoken("slow", 100, number=1)], mix=0.0), records


COLOURS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


def write_folder(
    folder: Path,
    classes: dict[str, tuple[int, int, int]],
    count: int,
    size: tuple[int, int] = (300, 260),
    ext: str = "png",
) -> None:
    """Images of one colour per class, with a white left edge so that a mirror shows."""
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", size, colour)
            image.paste((255, 255, 255), (0, 0, size[0] // 5, size[1]))
            image.save(folder / name / f"{number}.{ext}")
