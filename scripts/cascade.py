"""Two networks, the second for the images of which the first is not sure: a cascade.

    python -m scripts.cascade --data-dir data --out docs/results-cifar10
    python -m scripts.results --out docs/results-cifar10                    # draws them into the picture

Each image goes through the first network. Where that is not confident, the image is deferred to the second
one, whose answer then counts (IDK cascades, Wang et al. 2017, arXiv 1706.00885). Confidence is the largest
probability; for each budget its threshold is chosen on the validation images, so that their mean cost is no
more than the budget, up to ties.

Nothing is learned here. The first network may have gates; a pair without them, which skips no block, is the
rival of gates that choose by the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.cli import main_with_named_errors
from agents.entries import over_images
from agents.evaluate import Subject
from agents.loop import progress_bar
from scripts.paired import of_one_data_set
from scripts.tables import markdown, points, publish
from skipnet_rl.data import Images, load_images
from skipnet_rl.evaluate import evaluate
from skipnet_rl.precision import pick_device
from skipnet_rl.statistics import accuracy_difference

FILE = "cascade.json"
PAIRS = (
    ("resnet14-cifar10-distilled", "resnet38-cifar10-distilled"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet38-cifar10-distilled"),
    ("resnet14-cifar10-distilled", "resnet110-cifar10-distilled"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet110-cifar10-distilled"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10-distilled"),
)
BESIDE = (
    "resnet38-cifar10", "resnet38-cifar10-hrl-0.5-ensemble",
    "resnet110-cifar10", "resnet110-cifar10-hrl-0.4-ensemble",
)  # fmt: skip
RANDOM = "random deferral"


@dataclass(frozen=True)
class Options:
    """Evaluate cascades of two networks each."""

    pairs: tuple[tuple[str, str], ...] = PAIRS
    """names of shipped networks, or run folders, two by two: the one that sees every image, and the one
    behind it"""
    beside: tuple[str, ...] = BESIDE
    """other networks to compare them with, those of the second one's depth"""
    budgets: tuple[float, ...] = (0.25, 0.36, 0.5)
    """mean FLOPs per image, as shares of the second network's with every block executed; one that a pair
    cannot have is left out"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/results/table")
    """folder of cascade.json (that of docs/results.md: docs/results-cifar10)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    debug: bool = False
    """show the traceback of an error"""


class Answers(NamedTuple):
    """Of a network on M images: `confidence` [M], `correct` [M] bool, and `flops` [M] spent on each."""

    confidence: Tensor
    correct: Tensor
    flops: Tensor


def answers(subject: Subject, images: Images) -> Answers:
    """Those of a network on images, both on one device."""
    played = evaluate(subject.mdp, subject.policy, images)
    return Answers(played.confidence, played.correct, whole(subject) * played.compute_flops)


def whole(subject: Subject) -> float:
    """FLOPs of the network with every block executed, for one image."""
    return 2 * subject.mdp.macs.total


def threshold_for(first: Answers, second: Answers, flops: float) -> float:
    """The confidence up to which these images are deferred for a mean cost of at most `flops`.

    It is infinite where that pays for all of them, and minus infinity where it pays for none.
    """
    ascending = first.confidence.argsort(stable=True)
    costs = first.flops.mean() + second.flops[ascending].cumsum(0) / len(ascending)
    count = int((costs <= flops * (1 + 1e-9)).sum())  # the sum's rounding is not to cost an image
    if count == len(ascending):
        return math.inf
    return first.confidence[ascending[count - 1]].item() if count else -math.inf


def cascade(first: Answers, second: Answers, threshold: float) -> tuple[Tensor, dict[str, float]]:
    """Defer the images whose confidence is at most a threshold.

    Args:
        first, second: answers on the same M images.
        threshold: of the first network's confidence.

    Returns:
        Whether each image is right, [M] bool; and the share that was `deferred`, `mega_flops` per image,
        the `accuracy` and its half width over images, and `random_accuracy`: what deferring as many images,
        whichever, comes to on average.
    """
    deferred = first.confidence <= threshold
    correct = torch.where(deferred, second.correct, first.correct)
    share, accuracy = deferred.double().mean().item(), correct.double().mean().item()
    return correct, {
        "deferred": share, "mega_flops": 1e-6 * (first.flops + deferred * second.flops).mean().item(),
        "accuracy": accuracy, "accuracy_ci95": over_images(accuracy, len(correct)),
        "random_accuracy": at_random(first, second, share).mean().item(),
    }  # fmt: skip


def at_random(first: Answers, second: Answers, share: float) -> Tensor:
    """Chance that each image [M] is right where a share of them is deferred at random."""
    return (1 - share) * first.correct.double() + share * second.correct.double()


def main(options: Options) -> dict[str, Any]:
    """Evaluate every pair at every budget; returns what was written.

    Raises:
        ValueError: no pairs, networks of different data sets, or a pair that can have none of the budgets.
        FileNotFoundError, WeightsError: there is no such network.
    """
    in_pairs = list(dict.fromkeys(name for pair in options.pairs for name in pair))
    if not in_pairs:
        raise ValueError("no pairs given; name two networks")
    names = list(dict.fromkeys((*in_pairs, *options.beside)))
    device = pick_device(options.device)
    subjects, dataset = of_one_data_set(names, options.data_dir)
    subjects = {name: subject.on(device) for name, subject in subjects.items()}
    images = load_images(dataset, "val", options.data_dir).to(device)
    on_val = {
        name: answers(subjects[name], images)
        for name in progress_bar(in_pairs, desc="validation images", unit="network")
    }
    thresholds = {
        pair: thresholds_of(pair, on_val, whole(subjects[pair[1]]), options.budgets) for pair in options.pairs
    }
    on_test = {
        name: answers(subject, subject.images)
        for name, subject in progress_bar(subjects.items(), desc="test images", unit="network")
    }
    cascades = []
    for pair, chosen in thresholds.items():
        full, depth = whole(subjects[pair[1]]), subjects[pair[1]].mdp.net.depth
        rivals = [name for name in options.beside if subjects[name].mdp.net.depth == depth]
        rows = [
            {"budget": budget, **row_of(pair, threshold, on_val, on_test, rivals, full)}
            for budget, threshold in chosen.items()
        ]
        cascades.append({"first": pair[0], "second": pair[1], "rows": rows})
    found = {
        "dataset": dataset, "n_images": len(on_test[names[0]].correct), "precision": "fp32",
        "cascades": cascades,
    }  # fmt: skip
    return publish("scripts.cascade", options.out / FILE, found, table(found))


def thresholds_of(
    pair: tuple[str, str], on_val: Mapping[str, Answers], full: float, budgets: Sequence[float]
) -> dict[float, float]:
    """The threshold for each of the budgets, shares of `full` FLOPs, that a pair can have."""
    first, second = (on_val[name] for name in pair)
    least = first.flops.mean().item() / full
    most = least + second.flops.mean().item() / full
    found = {
        budget: threshold_for(first, second, budget * full)
        for budget in sorted(budgets)
        if least <= budget <= most
    }
    if not found:
        raise ValueError(f"no budget for {' and '.join(pair)} is between {least:.4f} and {most:.4f}")
    return found


def row_of(
    pair: tuple[str, str], threshold: float, on_val: Mapping[str, Answers], on_test: Mapping[str, Answers],
    rivals: Sequence[str], full: float,
) -> dict[str, Any]:  # fmt: skip
    """A cascade at one threshold: on the test images, and as it was chosen."""
    first, second = (on_test[name] for name in pair)
    correct, row = cascade(first, second, threshold)
    _, chosen = cascade(*(on_val[name] for name in pair), threshold)
    over = {RANDOM: at_random(first, second, row["deferred"])}
    over |= {name: on_test[name].correct for name in (*pair, *rivals)}
    return {
        "threshold": threshold if math.isfinite(threshold) else None,
        "compute_flops": 1e6 * row["mega_flops"] / full, **row,
        "over": {name: accuracy_difference(correct, rival) for name, rival in over.items()},
        "val_accuracy": chosen["accuracy"], "val_compute_flops": 1e6 * chosen["mega_flops"] / full,
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """A table in Markdown for each second network.

    In percent of its FLOPs with every block executed and of the images; differences in points on the same
    images; ± 95 % over the images.
    """
    tables = []
    for second in dict.fromkeys(each["second"] for each in found["cascades"]):
        behind = [each for each in found["cascades"] if each["second"] == second]
        firsts = {each["first"] for each in behind}
        rivals = [name for name in behind[0]["rows"][0]["over"] if name not in firsts]
        columns = ["first", "MFLOPs", "FLOPs", "deferred", "accuracy", *(f"over {name}" for name in rivals)]
        rows = [cells(each["first"], row, rivals) for each in behind for row in each["rows"]]
        tables.append(markdown(columns, rows))
    return "\n".join(tables)


def cells(first: str, row: Mapping[str, Any], rivals: Sequence[str]) -> list[str]:
    """A row as the table's text."""
    differences = (row["over"][name] for name in rivals)
    return [
        first,
        f"{row['mega_flops']:.1f}",
        f"{100 * row['compute_flops']:.1f}",
        f"{100 * row['deferred']:.1f}",
        points(row["accuracy"], row["accuracy_ci95"]),
        *(points(each["accuracy"], each["ci95"], "+") for each in differences),
    ]


if __name__ == "__main__":
    main_with_named_errors(Options, main)
