"""One way to choose by the image, and what it gains: a cascade of two plain networks.

    python -m scripts.cascade --data-dir data --out docs/results-cifar10
    python -m scripts.results --out docs/results-cifar10                    # draws it into the picture

Each image goes through the small network. Where that is not confident, the image is deferred to the large
one, whose answer then counts (IDK cascades, Wang et al. 2017, arXiv 1706.00885). Confidence is the largest
probability; for each budget its threshold is chosen on the validation images, so that the mean cost there is
the budget, up to ties.

No block is skipped here, and nothing is learned: it is a rival of gates that choose by the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.cli import main_with_named_errors
from agents.entries import over_images
from agents.evaluate import backbone_entry
from agents.loop import progress_bar
from scripts.tables import markdown, points, publish
from skipnet_rl.data import Images, load_images
from skipnet_rl.flops import network_macs
from skipnet_rl.inference import for_inference
from skipnet_rl.precision import pick_device
from skipnet_rl.resnet import ResNet
from skipnet_rl.statistics import accuracy_difference
from skipnet_rl.weights import build_backbone

FILE = "cascade.json"
RANDOM = "random deferral"


@dataclass(frozen=True)
class Options:
    """Evaluate a cascade of two shipped networks."""

    small: str = "resnet14-cifar10-distilled"
    """the network that sees every image, by its shipped name"""
    large: str = "resnet38-cifar10"
    """the one behind it"""
    beside: tuple[str, ...] = ("resnet20-cifar10-distilled",)
    """other shipped plain networks to compare it with"""
    budgets: tuple[float, ...] = (0.35, 0.4, 0.5)
    """mean FLOPs per image, as shares of the large network's"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/results/table")
    """folder of cascade.json (that of docs/results.md: docs/results-cifar10)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class Answers:
    """Of a network on M images: `confidence` [M], its largest probability, and `correct` [M] bool."""

    confidence: Tensor
    correct: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, net: ResNet, images: Images) -> Answers:
        """Those of a network, on the images' device."""
        parts = []
        batches = list(images.batches(250))
        for batch, labels in progress_bar(batches, desc=f"ResNet-{net.depth}, {images.split}", unit="batch"):
            highest = net(batch).softmax(dim=1).max(dim=1)
            parts.append((highest.values, highest.indices == labels))
        return cls(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def threshold_for(confidence: Tensor, share: float) -> float:
    """The confidence up to which that share of the images [M] is deferred; infinite for the share 1."""
    count = round(share * len(confidence))
    if count == len(confidence):
        return math.inf
    return confidence.sort().values[count - 1].item() if count else -math.inf


def cascade(small: Answers, large: Answers, threshold: float, cost: float) -> tuple[Tensor, dict[str, float]]:
    """Defer the images whose confidence is at most a threshold.

    Args:
        small, large: answers on the same M images.
        threshold: of the small network's confidence.
        cost: FLOPs of the small network as a share of the large one's.

    Returns:
        Whether each image is right, [M] bool; and the share that was `deferred`, `compute_flops` as a share
        of the large network's, the `accuracy` and its half width over images, and `random_accuracy`: what
        deferring as many images, whichever, comes to on average.
    """
    deferred = small.confidence <= threshold
    correct = torch.where(deferred, large.correct, small.correct)
    share, accuracy = deferred.double().mean().item(), correct.double().mean().item()
    return correct, {
        "deferred": share, "compute_flops": cost + share,
        "accuracy": accuracy, "accuracy_ci95": over_images(accuracy, len(correct)),
        "random_accuracy": at_random(small, large, share).mean().item(),
    }  # fmt: skip


def at_random(small: Answers, large: Answers, share: float) -> Tensor:
    """Chance that each image [M] is right where a share of them is deferred at random."""
    return (1 - share) * small.correct.double() + share * large.correct.double()


def entry_of(name: str) -> dict[str, Any]:
    """What the index says of a shipped plain network; another name is a ValueError."""
    entry = backbone_entry(name)
    if entry is None:
        raise ValueError(f"no plain network {name!r} is shipped; see skipnet_rl/weights/index.json")
    return entry


def main(options: Options) -> dict[str, Any]:
    """Evaluate every budget; returns what was written.

    Raises:
        ValueError: networks that are not shipped or of different data sets, or a budget that the cascade
            cannot have.
    """
    names = dict.fromkeys((options.small, options.large, *options.beside))
    entries = {name: entry_of(name) for name in names}
    dataset = entries[options.large]["dataset"]
    for name, entry in entries.items():
        if entry["dataset"] != dataset:
            raise ValueError(f"{name} is of {entry['dataset']}, {options.large} of {dataset}")
    device = pick_device(options.device)
    val, test = (load_images(dataset, split, options.data_dir).to(device) for split in ("val", "test"))
    nets = {
        name: build_backbone(entry["depth"], len(test.classes), dataset, entry["shortcut"], name)
        for name, entry in entries.items()
    }
    large = network_macs(nets[options.large]).total
    cost = network_macs(nets[options.small]).total / large
    for budget in options.budgets:
        if not cost <= budget <= 1 + cost:
            raise ValueError(f"a budget of {budget:g} is not between {cost:.4f} and {1 + cost:.4f}")
    nets = {name: for_inference(net.to(device)) for name, net in nets.items()}
    chosen_on = [Answers.of(nets[name], val) for name in (options.small, options.large)]
    answers = {name: Answers.of(net, test) for name, net in nets.items()}
    pair = (answers[options.small], answers[options.large])
    rows = []
    for budget in sorted(options.budgets):
        threshold = threshold_for(chosen_on[0].confidence, budget - cost)
        _, on_val = cascade(*chosen_on, threshold, cost)
        correct, row = cascade(*pair, threshold, cost)
        rivals = {RANDOM: at_random(*pair, row["deferred"])}
        rivals |= {name: rival.correct for name, rival in answers.items()}
        rows.append(
            {
                "budget": budget, "threshold": threshold if math.isfinite(threshold) else None, **row,
                "mega_flops": 2e-6 * large * row["compute_flops"],
                "over": {name: accuracy_difference(correct, rival) for name, rival in rivals.items()},
                "val_accuracy": on_val["accuracy"], "val_compute_flops": on_val["compute_flops"],
            }
        )  # fmt: skip
    found = {
        "small": options.small, "large": options.large, "dataset": dataset,
        "depths": [entries[name]["depth"] for name in (options.small, options.large)],
        "n_images": len(test), "precision": "fp32", "rows": rows,
    }  # fmt: skip
    return publish("scripts.cascade", options.out / FILE, found, table(found))


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, in percent; differences in points on the same images; ± 95 % over the images."""

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            f"{100 * row['compute_flops']:.1f}",
            f"{100 * row['deferred']:.1f}",
            points(row["accuracy"], row["accuracy_ci95"]),
            *(points(each["accuracy"], each["ci95"], "+") for each in row["over"].values()),
        ]

    over = (f"over {name}" for name in found["rows"][0]["over"])
    return markdown(["FLOPs", "deferred", "accuracy", *over], [cells(row) for row in found["rows"]])


if __name__ == "__main__":
    main_with_named_errors(Options, main)
