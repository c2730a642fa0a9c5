"""Networks in training: weights, optimizers, and their state for checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agents.common.optimizers import resume
from skipnet_rl.distributed import average_gradients

if TYPE_CHECKING:
    from agents.common.preparation import Preparation


class ModelLearner:
    """The networks and optimizers of one run.

    Args:
        mdp: the decision process over the backbone.
        model: every network, under the names of a weights file.
        precision: of the convolutions, `"bf16"` or `"fp32"`.
        preparation: the steps that prepare the backbone for skips, if any.

    Attributes:
        optimizers: by the name of the weights that they train.
        policy: the policy that is evaluated, if one is learned.
    """

    policy: Any

    def __init__(
        self, mdp: Any, model: nn.ModuleDict, precision: str, preparation: Preparation | None = None
    ) -> None:
        self.mdp, self.model, self.precision, self.preparation = mdp, model, precision, preparation
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def descend(self, loss: Tensor, rates: Mapping[str, float]) -> None:
        """Take one step down a loss, with each optimizer whose learning rate is given."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        average_gradients(
            weight
            for name in rates
            for group in self.optimizers[name].param_groups
            for weight in group["params"]
        )
        for name, rate in rates.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate
            self.optimizers[name].step()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        optimizers = {name: each.state_dict() for name, each in self.optimizers.items()}
        costs = self.preparation and self.preparation.costs
        return {"model": self.model.state_dict(), "optimizers": optimizers, "costs": costs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            resume(optimizer, state["optimizers"][name])
        if self.preparation:
            self.preparation.costs = state["costs"]


class GatedLearner(ModelLearner):
    """Networks, gates and optimizers of a run that keeps its best weights.

    Args:
        mdp: the decision process; its backbone, or the networks of its chain, are trained in place.
        gate: the policy; moved to the networks' device.
        precision: of the convolutions, `"bf16"` or `"fp32"`.

    Attributes:
        model: both, under the names `net` and `gate` of a weights file.
        best: validation summary of the weights kept so far, with their step, 0 for the start.
        critic: a learned baseline, if any.
    """

    critic: nn.Module | None = None

    def __init__(self, mdp: Any, gate: nn.Module, precision: str) -> None:
        super().__init__(mdp, nn.ModuleDict({"net": mdp.net, "gate": gate.to(mdp.device)}), precision)
        self.gate: Any = gate
        self.policy = gate
        self.best: dict[str, Any] = {}

    def snapshot(self) -> GatedLearner:
        """Return a learner with a copy of network and gates, which may be changed."""
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        found.policy = found.gate = found.model["gate"]
        _ = self.mdp.whole_macs  # counted once for all copies: half a second for a ResNet-110
        found.mdp = copy.copy(self.mdp)
        found.mdp.net = found.model["net"]
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        critic = self.critic.state_dict() if self.critic else {}
        return {**super().state_dict(), "best": self.best, "critic": critic}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self.best = state["best"]
        if self.critic:
            self.critic.load_state_dict(state["critic"])
