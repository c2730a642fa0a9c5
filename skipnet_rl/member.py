"""One network of a chain: its answers to images, and what they cost."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skipnet_rl.folding import for_inference
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.network import Network
from skipnet_rl.policies import AlwaysExecute, FixedRoute, Policy, policy_macs
from skipnet_rl.rollout import rollout


class Answer(NamedTuple):
    """Log-probabilities [B, K] float64, and the MACs spent on each of them, [B] float64."""

    log_probs: Tensor
    macs: Tensor


class Member(nn.Module):
    """One network of a chain, with the policy that chooses its blocks.

    Args:
        net: the network.
        policy: its policy, played greedily (default: execute every block).
        name: for tables and pictures (default: the network's, and whether it has gates).
        temperature: divisor of the logits (Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
            Networks", ICML 2017). It keeps the predicted class, and makes the gain from correcting an answer
            independent of how overconfident a network is.

    Raises:
        ValueError: a temperature that is not a positive number.
    """

    def __init__(
        self, net: Network, policy: Policy | None = None, name: str = "", temperature: float = 1.0
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; expected a positive number, such as 2.0")
        super().__init__()
        self.temperature = temperature
        self.net, self.policy = net, AlwaysExecute() if policy is None else policy
        self.mdp = RoutingMDP(net)
        gated = "" if isinstance(self.policy, AlwaysExecute) else " with gates"
        self.name = name or f"{net.name}{gated}"
        self.num_classes, self.image_size, self.depth = net.num_classes, net.image_size, net.depth

    def forward(self, images: Tensor) -> Answer:
        """Answers to images [B, 3, H, W], and the MACs of blocks and gates for each."""
        images = images.contiguous(memory_format=torch.channels_last)
        nobody = torch.zeros(len(images), dtype=torch.int64, device=images.device)  # an answer has no label
        episode = rollout(self.mdp, self.policy, images, nobody)
        macs = self.mdp.macs.of_routes(episode.actions.detach() > 0.5, self.policy_macs)
        return Answer((episode.logits.double() / self.temperature).log_softmax(dim=1), macs)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of its logits."""
        return self.mdp.dtype

    @property
    def whole_macs(self) -> int:
        """MACs of the network with every block executed, without gates."""
        return self.mdp.macs.total

    @cached_property
    def policy_macs(self) -> int:
        """MACs of the policy for one image, counted at the first use, since counting takes long."""
        return policy_macs(self.policy)

    @property
    def macs(self) -> int:
        """The most MACs that an image can cost: of the fixed route or else every block, and of the gates."""
        blocks = self.whole_macs
        if isinstance(self.policy, FixedRoute):
            blocks = int(self.mdp.macs.of_routes(self.policy.route[None]).item())
        return blocks + self.policy_macs

    def for_inference(self, precision: str = "fp32") -> Member:
        """A copy that cannot be trained, see `folding.for_inference`."""
        policy = copy.deepcopy(self.policy)
        if isinstance(policy, nn.Module):
            policy.eval().requires_grad_(False)
        member = Member(for_inference(self.net, precision), policy, self.name, self.temperature)
        member.mdp.macs, member.policy_macs = self.mdp.macs, self.policy_macs  # counted once for all copies
        return member
