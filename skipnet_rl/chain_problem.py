"""Build a chain from names: its networks, how their answers are mixed, and the images that they see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from skipnet_rl import catalogue
from skipnet_rl.chain import MIX, Chain, ChainMDP
from skipnet_rl.member import Member
from skipnet_rl.models import ModelName
from skipnet_rl.problem import Cost, Problem, load_network
from skipnet_rl.resnet import Architecture
from skipnet_rl.stored_networks import shape_of
from skipnet_rl.weights import open_weights

ALPHA = 0.05  # per decision: about a quarter of the images are worth asking a second network about
TEMPERATURE = 2.0


@dataclass(frozen=True)
class ChainProblem(Problem):
    """Networks in a row and the images that they are to classify, by their names.

    Attributes:
        networks: two or more, in the order in which they are asked: names of shipped networks, paths of
            weights files, or depths, for the shipped network without gates that fits the data set.
        mix: weight of the answer so far when a network is asked: one for all, or one for each but the first.
        temperature: divisor of each network's logits, one for all or one for each; fully trained networks are
            overconfident, those shipped for CIFAR-10 by a factor of 1.6 to 2.3.
        weights: weights of the networks that are given by depth: `"auto"`, or None or `"none"` (untrained).
        alpha: weight of the compute saving (default: 0.05 per decision).
        cost: `"flops"` (default) or `"blocks"`.
        depth: of the last network, once resolved; 0 for a model of another library.
    """

    depth: int = 0
    networks: Sequence[int | str] = ()
    mix: float | Sequence[float] = MIX
    temperature: float | Sequence[float] = TEMPERATURE

    @property
    def payment(self) -> tuple[float, Cost]:
        """Alpha and cost, as given or by default."""
        usual = ALPHA * (len(self.networks) - 1)
        return usual if self.alpha is None else self.alpha, self.cost or "flops"

    def resolve(self, kinds: Sequence[str] = ("plain",)) -> ChainProblem:
        """Return a copy with every `"auto"` replaced, see `Problem`; depths become names if one is shipped.

        Raises:
            ValueError: networks that are not a list of names and depths; a name or path as weights; a mix
                or temperature that is not made of numbers; not one temperature for each network; and what
                `Problem.resolve` raises.
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
        mix, temperature = real_numbers("mix", self.mix), real_numbers("temperature", self.temperature)
        if isinstance(temperature, tuple) and len(temperature) != len(named):
            raise ValueError(f"temperature is {temperature}; expected one number, or {len(named)} of them")
        shape = shape_in_chain(named[-1])
        why = problem.why[0], " → ".join(str(each) for each in named)
        return replace(
            problem,
            networks=named,
            mix=mix,
            temperature=temperature,
            depth=shape.depth if isinstance(shape, Architecture) else 0,
            why=why,
        )

    @property
    def image_size(self) -> int:
        """Side of the images that the last network is made for."""
        return shape_in_chain(self.networks[-1]).image_size

    def named(self, network: int | str) -> int | str:
        """The name of the shipped network of a depth, if there is one; anything else unchanged."""
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
        count = len(self.networks)
        temperatures = self.temperature if isinstance(self.temperature, tuple) else [self.temperature] * count
        members = [
            self._member(each, temperature, num_classes)
            for each, temperature in zip(self.networks, temperatures, strict=True)
        ]
        return Chain(members, self.mix).eval().to(self.device)

    def _member(self, network: int | str, temperature: float, num_classes: int) -> Member:
        if isinstance(network, int):
            net = load_network(self.weights, network, num_classes, self.dataset, self.shortcut)
            return Member(net, temperature=temperature)
        opened = open_weights(network, num_classes=num_classes)
        return Member(opened.network, opened.policy, temperature=temperature)

    def mdp(self, net: Any) -> Any:
        """The decision process over a chain."""
        return ChainMDP(net, *self.payment)


def real_numbers(name: str, given: Any) -> Any:
    """A number as it is, or several as a tuple.

    Raises:
        ValueError: anything else.
    """
    values = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(each, Real) for each in values):
        raise ValueError(f"{name} is {given!r}; expected a number, or a list of numbers")
    return given if isinstance(given, Real) else values


def shape_in_chain(network: int | str) -> Architecture | ModelName:
    """The architecture of a network of a chain, or the name of a model of another library.

    Raises:
        WeightsError: there is no such network.
    """
    if isinstance(network, int):
        return Architecture.of_depth(network)
    entry = catalogue.find(network) or {}  # without reading it
    return Architecture.of_depth(entry["depth"]) if entry.get("depth") else shape_of(network)
