"""The one place where names become live objects.

Environments, agents and commands get their images, their network and their decision process here, from the
names that a user gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from skipnet_rl import catalogue
from skipnet_rl.data import Images, load_images, resolve_dataset
from skipnet_rl.device import cpu_by_default, pick_device, resolve_precision
from skipnet_rl.gates import GATES
from skipnet_rl.mdp import ALPHA, RoutingMDP
from skipnet_rl.normalisation import check_statistics, normalised
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.stored import trained_on, weights_name
from skipnet_rl.stored_networks import untrained
from skipnet_rl.weights import open_weights

Cost = Literal["blocks", "flops"]


@dataclass(frozen=True)
class Problem:
    """A network and the images that it is to classify, by their names.

    Attributes:
        depth: 34, 50 or 101 (for ImageNet), or 6n+2 (for CIFAR).
        dataset: one of `skipnet_rl.data.DATASETS`, or `"auto"`, see `resolve_dataset`.
        data_dir: folder of the data set's official files (else $SKIPNET_DATA, else ./data).
        download: fetch missing files through torchvision.
        mean, std: three numbers each, for pixel values in 0 … 1, that normalise the images (default: the data
            set's own).
        weights: path of a file, name of a shipped network, `"auto"` (the shipped one that fits, else
            untrained with a warning), `"torchvision"` (its ImageNet weights), None or `"none"` (untrained).
        shortcut: `"projection"`, `"pad"` or `"pool"` (default: that of the weights, else `"projection"`).
        alpha: weight of the compute saving (default: 1).
        cost: `"blocks"` (default) or `"flops"`.
        device: `"auto"` or None (a GPU if there is one), `"cpu"`, `"cuda"`, `"cuda:1"` or a
            `torch.device`.
        precision: precision of the convolutions: `"fp32"`, `"bf16"`, or `"auto"` (bf16 where the hardware
            has it).
        why: how `resolve` came to the data set and the weights, a line for each.
    """

    depth: int
    dataset: str = "auto"
    data_dir: str | Path | None = None
    download: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    weights: str | Path | None = "auto"
    shortcut: str | None = None
    alpha: float | None = None
    cost: Cost | None = None
    device: Any = "auto"
    precision: str = "fp32"
    why: tuple[str, str] = ("", "")

    @property
    def payment(self) -> tuple[float, Cost]:
        """Alpha and cost, as given or by default."""
        return ALPHA if self.alpha is None else self.alpha, self.cost or "blocks"

    @property
    def sources(self) -> tuple[str | Path | None, ...]:
        """Weights of every network."""
        return (self.weights,)

    def resolve(self, kinds: Sequence[str] = ("plain",)) -> Problem:
        """Return a copy with every `"auto"` replaced by what it stands for on this machine.

        Args:
            kinds: acceptable kinds of `"auto"` weights, see `catalogue.find_auto`. If none fits, they stay
                `"auto"`.

        Raises:
            ValueError, WeightsError, DataNotFoundError: an invalid name or number, or missing data.
        """
        if not isinstance(self.shortcut, str | None):
            raise ValueError(f"shortcut is {self.shortcut!r}; expected its name as text")
        check_statistics(self.mean, self.std)
        weights = None if self.weights is None else weights_name(self.weights)
        device = pick_device(self.device)
        precision = resolve_precision(self.precision, device)
        dataset, why_data = resolve_dataset(self.dataset, self.data_dir, trained_on(self.sources))
        weights, why_weights = self._weights(weights, dataset, kinds)
        alpha, cost = self.payment
        return replace(
            self,
            dataset=dataset,
            weights=weights,
            device=device,
            precision=precision,
            alpha=alpha,
            cost=cost,
            why=(why_data, why_weights),
        )

    def _weights(self, weights: str | None, dataset: str, kinds: Sequence[str]) -> tuple[str | None, str]:
        if weights != "auto":
            shipped = catalogue.find(weights)
            return weights, str(weights) if shipped is None else f"{weights} ({_described(shipped)})"
        entry = catalogue.find_auto(self.depth, dataset, self.shortcut, kinds, self.payment[0])
        if entry is None:
            return weights, f"none: no ResNet-{self.depth} for {dataset} is shipped"
        what = "that fits" if entry["kind"] == "plain" else "that was trained with skips"
        return entry["name"], f"{entry['name']} (the shipped network {what})"

    @property
    def image_size(self) -> int:
        """Side of the images that the network is made for."""
        return Architecture.of_depth(self.depth).image_size

    def images(
        self,
        split: str,
        load: Callable[..., Images] = load_images,
        networks: Sequence[str | Path | None] = (),
    ) -> Images:
        """A split of the data set, in the network's size, normalised, on the device.

        Args:
            split: one of `skipnet_rl.data.SPLITS`.
            load: the function that reads it, such as `progress.load_images`, which shows a bar.
            networks: weights of the networks that will see the images; warns about each that was trained on
                images normalised in another way.
        """
        images = load(self.dataset, split, self.data_dir, self.download, self.image_size)
        return normalised(images.to(self.device), self.mean, self.std, networks)

    def network(self, num_classes: int, weights: str | Path | None = None) -> ResNet:
        """The network in evaluation mode, on the device, in channels-last memory; it can be trained.

        Args:
            num_classes: K; a classifier for another number of classes is replaced by an untrained one, with a
                warning.
            weights: weights to use instead of the problem's.

        Raises:
            WeightsError: weights that are missing, damaged or of another architecture.
        """
        return load_network(weights or self.weights, self.depth, num_classes, self.dataset, self.shortcut).to(
            self.device
        )

    def mdp(self, net: ResNet) -> RoutingMDP:
        """The decision process over a network."""
        return RoutingMDP(net, *self.payment)


def _described(entry: Mapping[str, Any]) -> str:
    gates = f" with gates, trained at alpha {entry['alpha']:g}" if entry["kind"] in GATES else ""
    return f"a shipped network{gates}"


@cpu_by_default()
def load_network(
    weights: str | Path | None,
    depth: int,
    num_classes: int,
    dataset: str,
    shortcut: str | None = None,
    new_classifier: bool = True,
) -> ResNet:
    """Load the network that `weights` stands for, on the CPU; see `Problem.network` and `open_weights`."""
    if weights == "auto":
        entry = catalogue.find_auto(depth, dataset, shortcut)
        if entry is None:
            kind = f" with shortcut {shortcut!r}" if shortcut else ""
            warnings.warn(
                f"no shipped weights for ResNet-{depth} on {dataset}{kind}: the network is untrained; "
                "agents.pretrain trains one",
                stacklevel=3,
            )
        weights = entry["name"] if entry else None
    if weights in (None, "none"):
        return untrained(depth, num_classes, shortcut)
    return open_weights(
        weights, depth=depth, num_classes=num_classes, shortcut=shortcut, new_classifier=new_classifier
    ).network
