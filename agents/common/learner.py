"""A backbone with gates in training: weights, optimizers, and what a checkpoint holds of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.optimizers import resume
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.resnet import ResNet


class GatedLearner:
    """Backbone, gates and optimizers of one run.

    Args:
        net: the backbone, which is trained in place.
        gate: what chooses its blocks.
        alpha: weight of the compute saving.
        cost: `"blocks"` or `"flops"`.
        device: where they are trained.
        precision: of the convolutions, `"bf16"` or `"fp32"`.

    Attributes:
        model: both, under the names `net` and `gate` of a weights file.
        optimizers: by what they move.
        best: summary of what is kept so far, on validation images, with its step, 0 for the start.
    """

    def __init__(
        self, net: ResNet, gate: nn.Module, alpha: float, cost: str, device: torch.device, precision: str
    ) -> None:
        self.gate: Any = gate
        self.model = nn.ModuleDict({"net": net, "gate": gate}).to(device)
        self.mdp = RoutingMDP(net, alpha, cost)
        self.precision = precision
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.best: dict[str, Any] = {}

    @property
    def policy(self) -> Any:
        """What is evaluated: the gates."""
        return self.gate

    def descend(self, loss: Tensor, rates: Mapping[str, float]) -> None:
        """One step down a loss, at the learning rate of each optimizer."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def snapshot(self) -> GatedLearner:
        """The same with a copy of network and gates, which may be changed."""
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        found.gate = found.model["gate"]
        _ = self.mdp.macs  # counted once for all copies: half a second for a ResNet-110
        found.mdp = copy.copy(self.mdp)
        found.mdp.net = found.model["net"]  # type: ignore[assignment]
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        optimizers = {name: each.state_dict() for name, each in self.optimizers.items()}
        return {"model": self.model.state_dict(), "optimizers": optimizers, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            resume(optimizer, state["optimizers"][name])
        self.best = state["best"]
