"""The network that pretraining starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from skipnet_rl.growth import grow
from skipnet_rl.model_problem import ModelProblem
from skipnet_rl.network import Network
from skipnet_rl.problem import Problem
from skipnet_rl.resnet import SHORTCUT, ResNet
from skipnet_rl.terminal import say
from skipnet_rl.weights import open_weights

if TYPE_CHECKING:
    from agents.pretrain import Args


def new_network(args: Args, problem: Problem, num_classes: int) -> Network:
    """Build a new network, or one that starts with the predictions of `--weights`, in training mode."""
    torch.manual_seed(args.seed)
    if isinstance(problem, ModelProblem):
        new = problem.named.build(num_classes, seed=args.seed) if args.weights == "none" else None
        return (new or problem.network(num_classes)).to(problem.device).train()
    net = ResNet(args.depth, num_classes, args.shortcut or SHORTCUT)
    if args.weights != "none":
        start = start_of(args, problem, num_classes)
        if start.shortcut != net.shortcut:  # none was asked for
            net = ResNet(args.depth, num_classes, start.shortcut)
        if start.depth < net.depth:
            say(f"weights: a ResNet-{start.depth}, which grows to a ResNet-{net.depth}")
        grow(start, net)
    elif args.zero_init_residual:
        for block in net.blocks:
            torch.nn.init.zeros_(block.last_norm.weight)
    net = net.to(problem.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.train()


def start_of(args: Args, problem: Problem, num_classes: int) -> ResNet:
    """Open the network of `--weights`, of any depth, with a new classifier for other classes."""
    weights = str(problem.weights)
    depth = args.depth if weights == "torchvision" else None
    return open_weights(
        weights, depth=depth, shortcut=args.shortcut, num_classes=num_classes, new_classifier=True, seed=None
    ).network
