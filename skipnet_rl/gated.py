"""A backbone and its gate, or one route, in one file: what hybrid REINFORCE, REINFORCE and Gumbel leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skipnet_rl.checkpoint import load_weights, read_about
from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError
from skipnet_rl.gates import FeedForwardGate, RecurrentGate, make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import FixedRoute
from skipnet_rl.resnet import ResNet

HEADER = {"depth", "dataset", "gate", "shortcut", "alpha", "cost"}
FIXED = "fixed"  # in the place of a gate's kind: one route for all images
StoredPolicy = RecurrentGate | FeedForwardGate | FixedRoute


def empty_policy(kind: str, net: ResNet, gain: float = 1.0) -> StoredPolicy:
    """What a file of that kind is to be loaded into: a new gate, or for "fixed" the route of every block.

    Raises:
        ValueError: see `make_gate`.
    """
    if kind == FIXED:
        return FixedRoute(torch.ones(len(net.blocks) - 1, device="cpu"))
    return make_gate(kind, net, gain)


def read_header(path: Path) -> dict[str, Any]:
    """What `save_weights` wrote about a file of ours: depth, data set, gate, …, and its number of classes.

    Raises:
        WeightsError: the file is missing or damaged, or carries no such header.
    """
    about = read_about(path)
    if missing := {*HEADER, "num_classes"} - about.keys():
        raise WeightsError(
            f"{path} does not name its {', '.join(sorted(missing))}; expected a gated network, as hybrid "
            "REINFORCE, REINFORCE and Gumbel leave one"
        )
    return about


@cpu_by_default()
def restore_checkpoint(
    path: Path, num_classes: int | None = None, alpha: float | None = None
) -> tuple[RoutingMDP, StoredPolicy]:
    """Decision process and gate, or fixed route, of a gated network's safetensors file, wherever it lies.

    Its header names depth, gate and shortcut, and the alpha and cost that it was trained for.

    Args:
        path: the file.
        num_classes: K of the data set that it is to be played on (default: the file's).
        alpha: another weight of the compute saving.

    Raises:
        WeightsError: the file is missing or damaged, does not fit, or is of something else.
    """
    about = read_header(path)
    net = ResNet(about["depth"], num_classes or about["num_classes"], about["shortcut"])
    gate = empty_policy(about["gate"], net)
    load_weights(path, net, prefix="net.")
    load_weights(path, gate, prefix="gate.")
    alpha = about["alpha"] if alpha is None else alpha
    return RoutingMDP(net.eval(), alpha, about["cost"]), gate.eval()
