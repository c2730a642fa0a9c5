"""The agents learn where the best route is known, repeat themselves, resume, and refuse bad flags."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from agents import hybrid_reinforce, pretrain
from skipnet_rl.data import ImageSet
from skipnet_rl.policies import Replay
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import rollout
from skipnet_rl.runs import Run


def two_colours(size: int = 64) -> ImageSet:
    """Red and green noise: two classes that a block can learn to tell apart in seconds."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % 2
    images[torch.arange(size), labels] += 60
    return ImageSet("colours", "train", images, labels, ("red", "green"), (0.3,) * 3, (0.2,) * 3, flip=False)


def toy_learner(data: ImageSet, **flags) -> tuple[hybrid_reinforce.Learner, hybrid_reinforce.Args]:
    """ResNet-8 (N = 2) whose block 1 classifies and whose block 2 does nothing: the best route is [1, 0]."""
    args = hybrid_reinforce.Args(
        batch_size=32, routes=2, iterations=60, sp_iterations=0, lr=0.0, gate_lr=0.1, precision="fp32", **flags
    )
    torch.manual_seed(0)
    net = ResNet(8, 2)
    learner = hybrid_reinforce.Learner(args, net, torch.device("cpu"))
    for module in (net.blocks[2].bn2,):
        torch.nn.init.zeros_(module.weight)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    images, labels = data.batch(torch.arange(len(data)))
    route = Replay(torch.tensor([[1, 0]]).expand(len(data), 2))
    for _ in range(25):
        optimizer.zero_grad()
        rollout(learner.mdp, route, images, labels).loss.mean().backward()
        optimizer.step()
    return learner, args


def test_hybrid_reinforce_finds_the_best_route():
    data = two_colours()
    learner, args = toy_learner(data, alpha=0.2)
    images, labels = data.batch(torch.arange(len(data)))
    net = learner.mdp.net.eval()
    losses = {
        route: rollout(learner.mdp, Replay(torch.tensor([route]).expand(64, 2)), images, labels).returns.mean()
        for route in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert max(losses, key=losses.get) == (1, 0), "the toy's best route is not what it is built to be"
    for step in range(args.iterations):
        hybrid_reinforce.train_step(learner, data, step, "hrl", args)
    net.eval()
    greedy = rollout(learner.mdp, learner.gate, images, labels)
    assert greedy.actions.mean(dim=0).tolist() == [1.0, 0.0]
    assert greedy.correct.all()
