"""Every image once: accuracy, computation, return, routes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipnet_rl.data import Images
from skipnet_rl.flops import compute_blocks, network_macs
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Policy, policy_macs
from skipnet_rl.precision import autocast
from skipnet_rl.rollout import rollout


@dataclass(frozen=True)
class Evaluation:
    """What a policy did with each of M images; N decisions, K classes.

    Attributes:
        routes: [M, N] bool, True where the block was executed.
        predictions: [M] int64.
        correct: [M] bool.
        loss: [M] cross-entropy.
        returns: [M] episode returns.
        compute_flops: [M] FLOPs over those of the plain network, gates included.
    """

    routes: Tensor
    predictions: Tensor
    correct: Tensor
    loss: Tensor
    returns: Tensor
    compute_flops: Tensor

    @property
    def rate(self) -> float:
        """Share of the N decisions that were "execute"."""
        return self.routes.float().mean().item()

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return self.correct.double().mean().item()

    @property
    def accuracy_ci95(self) -> float:
        """Half width of the accuracy's 95 % interval over images (normal approximation)."""
        p = self.accuracy
        return 1.96 * math.sqrt(p * (1 - p) / len(self.correct))

    def summary(self, name: str) -> dict[str, Any]:
        """The policy's entry in result.json."""
        executed = self.routes.sum(dim=1).double()
        return {
            "name": name,
            "accuracy": self.accuracy,
            "accuracy_ci95": self.accuracy_ci95,
            "loss": self.loss.double().mean().item(),
            "return": self.returns.double().mean().item(),
            "executed_blocks_mean": executed.mean().item(),
            "executed_blocks_std": executed.std(correction=0).item(),
            "compute_blocks": compute_blocks(self.routes).mean().item(),
            "compute_flops": self.compute_flops.mean().item(),
            "unique_routes": len(torch.unique(self.routes, dim=0)),
            "executed_blocks_histogram": torch.bincount(
                self.routes.sum(dim=1), minlength=self.routes.shape[1] + 1
            ).tolist(),
            "execution_rate": self.routes.double().mean(dim=0).tolist(),
        }


@torch.no_grad()
def evaluate(
    mdp: RoutingMDP,
    policy: Policy,
    images: Images,
    *,
    mode: str = "greedy",
    generator: torch.Generator | None = None,
    batch_size: int = 250,
    precision: str = "fp32",
) -> Evaluation:
    """Play every image once, in evaluation mode.

    Args:
        mdp: the decision process; its network's mode is put back afterwards.
        policy: what decides; a module's gate MACs are counted where it has `macs()`.
        images: the split, on the network's device.
        mode: `"greedy"` or `"sample"`, see `rollout.choose`.
        generator: for `"sample"`, on the images' device.
        batch_size: images at a time; greedy results do not depend on it beyond rounding.
        precision: `"fp32"` or `"bf16"`.
    """
    parts = []
    with evaluation_mode(mdp.net, policy):
        for batch, labels in images.batches(batch_size):
            with autocast(precision, batch.device):
                episode = rollout(mdp, policy, batch, labels, mode, generator)
            routes = episode.actions > 0.5
            parts.append((routes, episode.predictions, episode.correct, episode.loss, episode.returns))
    routes, predictions, correct, loss, returns = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    macs = network_macs(mdp.net)
    compute = macs.of_routes(routes, policy_macs(policy)) / macs.total
    return Evaluation(routes, predictions, correct, loss, returns, compute)


@contextmanager
def evaluation_mode(*parts: Any) -> Iterator[None]:
    """Modules among `parts` in evaluation mode, then each submodule as it was."""
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
