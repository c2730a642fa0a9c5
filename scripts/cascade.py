"""What choosing by the image can be worth at all: two plain networks, the second only for some images.

    python -m scripts.cascade --data-dir data --out docs/results-cifar10

Each image goes through the small network. If that is not sure, the image goes through the large one, too,
whose answer then counts (an IDK cascade, Wang et al. 2017, arXiv 1706.00885). Sure means that its largest
probability is above a threshold. For each budget the threshold is taken from the validation images, so that
the mean cost there is the budget; the test set is read once.

No block is skipped here and nothing is learned: this is a rival of gates that choose by the image, and shows
how much there is to gain for them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from agents.cli import main_with_named_errors
from agents.entries import over_images
from agents.evaluate import backbone_entry
from agents.loop import progress_bar
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data import Images, load_images
from skipnet_rl.flops import network_macs
from skipnet_rl.inference import for_inference
from skipnet_rl.precision import pick_device
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import provenance, without_places
from skipnet_rl.statistics import mean_interval
from skipnet_rl.weights import build_backbone

FILE = "cascade.json"


@dataclass(frozen=True)
class Options:
    """Evaluate a cascade of two shipped networks."""

    small: str = "resnet14-cifar10-distilled"
    """the network that sees every image, by its shipped name"""
    large: str = "resnet38-cifar10"
    """the one behind it"""
    budgets: tuple[float, ...] = (0.35, 0.4, 0.5)
    """mean FLOPs per image, as shares of the large network's"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/results/table")
    """folder of cascade.json (that of the README: docs/results-cifar10)"""
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


def threshold(confidence: Tensor, share: float) -> float:
    """The confidence up to which a share of the images [M] is passed on; -1 for none."""
    count = round(share * len(confidence))
    return confidence.sort().values[count - 1].item() if count else -1.0


def cascade(small: Answers, large: Answers, limit: float, cost: float) -> dict[str, float]:
    """Accuracy and cost of passing on the images whose confidence is at most a limit.

    Args:
        small, large: answers on the same images.
        limit: see `threshold`.
        cost: FLOPs of the small network as a share of the large one's.

    Returns:
        `passed_on`, a share of the images; `accuracy` and `compute_flops`; `random_accuracy`, what passing on
        as many images, whichever, comes to on average; `over_small` and `over_large`, differences of the
        accuracies on the same images, with the half widths of their 95 % intervals.
    """
    passed = small.confidence <= limit
    correct = torch.where(passed, large.correct, small.correct).double()
    share, accuracy = passed.double().mean().item(), correct.mean().item()
    alone = {"small": small.correct.double(), "large": large.correct.double()}
    at_random = (1 - share) * alone["small"].mean() + share * alone["large"].mean()
    found = {
        "passed_on": share, "accuracy": accuracy, "accuracy_ci95": over_images(accuracy, len(correct)),
        "random_accuracy": at_random.item(), "compute_flops": cost + share,
    }  # fmt: skip
    for name, other in alone.items():
        found[f"over_{name}"], found[f"over_{name}_ci95"] = mean_interval((correct - other).numpy())
    return found


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
    names = {"small": options.small, "large": options.large}
    entries = {part: entry_of(name) for part, name in names.items()}
    dataset = entries["large"]["dataset"]
    if entries["small"]["dataset"] != dataset:
        raise ValueError(f"{options.small} is of {entries['small']['dataset']}, {options.large} of {dataset}")
    device = pick_device(options.device)
    splits = [load_images(dataset, split, options.data_dir).to(device) for split in ("val", "test")]
    nets = {
        part: build_backbone(entry["depth"], len(splits[0].classes), dataset, entry["shortcut"], names[part])
        for part, entry in entries.items()
    }
    macs = {part: network_macs(net).total for part, net in nets.items()}
    cost = macs["small"] / macs["large"]
    for budget in options.budgets:
        if not cost <= budget <= 1 + cost:
            raise ValueError(f"a budget of {budget:g} is not between {cost:.3f} and {1 + cost:.3f}")
    nets = {part: for_inference(net.to(device)) for part, net in nets.items()}
    val, test = ({part: Answers.of(net, images) for part, net in nets.items()} for images in splits)
    limits = {budget: threshold(val["small"].confidence, budget - cost) for budget in sorted(options.budgets)}
    rows = []
    for budget, limit in limits.items():
        chosen, row = (cascade(**answers, limit=limit, cost=cost) for answers in (val, test))
        rows.append(
            {
                "budget": budget, "threshold": limit, "val_accuracy": chosen["accuracy"], **row,
                "mega_flops": 2e-6 * macs["large"] * row["compute_flops"],
            }
        )  # fmt: skip
    found = {
        "schema": 1, **names, "dataset": dataset, "n_images": len(splits[1]), "rows": rows,
        "command": without_places(["python", "-m", "scripts.cascade", *sys.argv[1:]]), **provenance(),
    }  # fmt: skip
    print(table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / FILE, found)
    tqdm.write(f"wrote {options.out / FILE}")
    return found


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown; accuracies and differences in percent and points, ± 95 % over the images."""

    def with_interval(row: dict[str, Any], key: str, sign: str = "") -> str:
        return f"{100 * row[key]:{sign}.2f} ± {100 * row[f'{key}_ci95']:.2f}"

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            f"{100 * row['compute_flops']:.1f}",
            f"{100 * row['passed_on']:.1f}",
            with_interval(row, "accuracy"),
            f"{100 * row['random_accuracy']:.2f}",
            *(with_interval(row, key, "+") for key in ("over_small", "over_large")),
        ]

    columns = ["FLOPs", "passed on", "accuracy", "as many at random", "over the small", "over the large"]
    lines = [columns, ["---"] * len(columns), *map(cells, found["rows"])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main_with_named_errors(Options, main)
