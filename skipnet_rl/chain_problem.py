"""A chain from strings: which networks, how their answers are mixed, and the images that they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipnet_rl import catalogue
from skipnet_rl.chain import MIX, Chain, ChainMDP
from skipnet_rl.errors import WeightsError
from skipnet_rl.member import Member
from skipnet_rl.problem import Problem, load_network
from skipnet_rl.weights import open_weights, read_weights

ALPHA = 0.05  # per decision; at 0.1 sure networks earn more by skipping than any error costs them


@dataclass(frozen=True)
class ChainProblem(Problem):
    """Networks in a row and the images that they are to classify, by their names.

    Attributes:
        networks: two or more, in the order in which they are asked: names of shipped networks, paths of
            weights files, or depths, for the shipped network without gates that fits the data set.
        mix: weight of the answer so far where a network is asked: one for all, or one for each but the first.
        weights: of the networks that are given by their depth: `"auto"`, or None or `"none"` (untrained).
        alpha: weight of the compute saving (default: 0.05 per decision).
        cost: `"flops"` (default) or `"blocks"`.
        depth: of the last network, once resolved.
    """

    depth: int = 0
    networks: Sequence[int | str] = ()
    mix: float | Sequence[float] = MIX

    @property
    def payment(self) -> tuple[float, str]:
        """Alpha and cost, as given or as usual."""
        usual = ALPHA * (len(self.networks) - 1)
        return usual if self.alpha is None else self.alpha, self.cost or "flops"

    def resolve(self, kinds: Sequence[str] = ("plain",)) -> ChainProblem:
        """The same with every `"auto"` replaced, see `Problem`; depths become names where one is shipped.

        Raises:
            ValueError: networks that are not a list of names and depths, and what `Problem.resolve` raises.
        """
        networks = list(self.networks) if isinstance(self.networks, (list, tuple)) else []
        if not networks or not all(isinstance(each, (int, str)) and each is not True for each in networks):
            raise ValueError(
                f"networks is {self.networks!r}; expected a list of two or more: names of shipped networks, "
                "paths of weights files, or depths"
            )
        if self.weights not in ("auto", "none", None):
            raise ValueError(f"weights is {self.weights!r}; a chain's networks are named in networks")
        problem: Any = super().resolve(kinds)
        named = tuple(problem.named(each) for each in networks)
        mix = self.mix if isinstance(self.mix, (int, float)) else tuple(self.mix)
        why = problem.why[0], " → ".join(str(each) for each in named)
        return replace(problem, networks=named, mix=mix, depth=depth_of_network(named[-1]), why=why)

    def named(self, network: int | str) -> int | str:
        """The shipped network of a depth, where there is one; a name as it is."""
        if not isinstance(network, int) or self.weights != "auto":
            return network
        entry = catalogue.find_auto(network, self.dataset, self.shortcut)
        return entry["name"] if entry else network

    @property
    def sources(self) -> tuple[str | Path | None, ...]:
        """Names and paths of the networks that have weights."""
        return tuple(each for each in self.networks if isinstance(each, str))

    def network(self, num_classes: int, weights: str | Path | None = None) -> Any:
        """The chain in evaluation mode, on the device.

        Raises:
            WeightsError: weights that are missing, damaged or of another number of classes.
        """
        members = [self._member(each, num_classes) for each in self.networks]
        return Chain(members, self.mix).eval().to(self.device)

    def _member(self, network: int | str, num_classes: int) -> Member:
        if isinstance(network, int):
            return Member(load_network(self.weights, network, num_classes, self.dataset, self.shortcut))
        opened = open_weights(network, num_classes=num_classes)
        kind = opened.header["kind"]
        name = f"ResNet-{opened.network.depth}" + ("" if kind == "plain" else " with gates")
        return Member(opened.network, opened.policy, name)

    def mdp(self, net: Any) -> Any:
        """The decision process over a chain."""
        return ChainMDP(net, *self.payment)


def depth_of_network(network: int | str) -> int:
    """Depth of a network by its name.

    Raises:
        WeightsError: there is no such network.
    """
    if isinstance(network, int):
        return network
    entry = catalogue.find(network)
    depth = entry["depth"] if entry else read_weights(network).header.get("depth")
    if depth is None:
        raise WeightsError(f"{network} does not say its depth; give weights that open_weights can open")
    return depth
