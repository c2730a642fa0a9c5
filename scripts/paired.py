"""Differences in accuracy between networks, paired over the same test images.

    python -m scripts.paired --data-dir data --out docs/results-cifar10

The difference is known more precisely than either accuracy, since both networks are right, or both wrong, on
most images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown, points, publish
from agents.evaluate import Subject, of_one_data_set
from skipnet_rl.device import pick_device
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.progress import image_progress, progress_bar
from skipnet_rl.statistics import accuracy_difference

FILE = "paired.json"
PAIRS = (
    ("resnet110-cifar10-distilled", "resnet110-cifar10"),
    ("resnet110-cifar10-hrl-0.4-ensemble", "resnet110-cifar10"),
    ("resnet110-cifar10-hrl-0.4-ensemble", "resnet110-cifar10-distilled"),
    ("resnet110-cifar10-hrl-0.4-ensemble", "resnet110-cifar10-hrl-0.4-taught"),
    ("resnet110-cifar10-hrl-0.4-ensemble", "resnet38-cifar10-distilled"),
    ("resnet110-cifar10-hrl-0.4-taught", "resnet110-cifar10-hrl-0.4-distilled"),
    ("resnet110-cifar10-hrl-0.4-taught", "resnet110-cifar10-hrl-0.4-fixed"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10-distilled"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10-hrl-0.4-ensemble"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10-hrl-0.8-taught"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet38-cifar10-distilled"),
    ("resnet74-cifar10-distilled", "resnet38-cifar10-distilled"),
    ("resnet74-cifar10-hrl-0.5", "resnet74-cifar10-distilled"),
    ("resnet74-cifar10-hrl-0.5", "resnet38-cifar10-distilled"),
    ("resnet74-cifar10-hrl-1.0", "resnet74-cifar10-distilled"),
    ("resnet38-cifar10-distilled", "resnet38-cifar10"),
    ("resnet38-cifar10-hrl-0.5-ensemble", "resnet38-cifar10"),
    ("resnet38-cifar10-hrl-0.5-ensemble", "resnet38-cifar10-distilled"),
    ("resnet38-cifar10-hrl-0.5-ensemble", "resnet38-cifar10-hrl-0.5-distilled"),
    ("resnet38-cifar10-hrl-0.5-ensemble", "resnet20-cifar10-distilled"),
    ("resnet38-cifar10-hrl-0.5-distilled", "resnet38-cifar10"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet38-cifar10"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet38-cifar10-distilled"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet38-cifar10-hrl-1.0-gain6-taught"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet14-cifar10-distilled"),
    ("resnet38-cifar10-hrl-0.5", "resnet20-cifar10"),
    ("resnet38-cifar10-ff1-hrl-0.5", "resnet38-cifar10-hrl-0.5"),
    ("resnet38-cifar10-ff2-hrl-0.5", "resnet38-cifar10-hrl-0.5"),
    ("resnet38-cifar10-ff2-hrl-0.5", "resnet38-cifar10-ff1-hrl-0.5"),
)


@dataclass(frozen=True)
class Options:
    """Evaluate each network once and compare the pairs."""

    pairs: tuple[tuple[str, str], ...] = PAIRS
    """networks or run folders in pairs; the second accuracy is subtracted from the first"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/results/table")
    """folder of paired.json (docs/results-cifar10 for docs/results.md)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    debug: bool = False
    """traceback of an error"""


def main(options: Options) -> dict[str, Any]:
    """Evaluate and compare the networks; return the content of paired.json.

    Raises:
        ValueError: there are no pairs, or the networks are for different data sets.
        FileNotFoundError, WeightsError: a network does not exist.
    """
    names = list(dict.fromkeys(name for pair in options.pairs for name in pair))
    if not names:
        raise ValueError("no pairs given; name two networks")
    subjects, dataset = of_one_data_set(names, options.data_dir)
    device, rows = pick_device(options.device), {}
    for name, subject in progress_bar(subjects.items(), desc="paired", unit="network"):
        subject = subject.on(device)
        with image_progress(name) as show:
            rows[name] = evaluate(subject.mdp, subject.policy, subject.images, progress=show)
    found = {
        "dataset": dataset,
        "n_images": len(rows[names[0]].correct),
        "precision": "fp32",
        "networks": {name: about(subjects[name], row) for name, row in rows.items()},
        "pairs": [difference(rows, *pair) for pair in options.pairs],
    }
    return publish("scripts.paired", options.out / FILE, found, table(found))


def about(subject: Subject, row: Evaluation) -> dict[str, Any]:
    """Return the accuracy of a network with its interval, and its mean cost."""
    flops = subject.whole_flops * row.compute_flops.mean().item()
    interval = list(row.accuracy_ci95)
    return {"accuracy": row.accuracy, "accuracy_ci95": interval, "mega_flops": 1e-6 * flops}


def difference(rows: Mapping[str, Evaluation], one: str, other: str) -> dict[str, Any]:
    """Return the accuracy of `one` minus that of `other`, with the 95 % interval over images."""
    return {"network": one, "over": other, **accuracy_difference(rows[one].correct, rows[other].correct)}


def table(found: Mapping[str, Any]) -> str:
    """Return the pairs as a Markdown table: accuracies in percent, differences in percentage points."""

    def both(name: str) -> list[str]:
        network = found["networks"][name]
        return [name, f"{network['mega_flops']:.1f}", f"{100 * network['accuracy']:.2f}"]

    columns = ["network", "MFLOPs", "accuracy", "against", "MFLOPs", "accuracy", "difference"]
    return markdown(
        columns,
        [
            [*both(pair["network"]), *both(pair["over"]), points(pair["accuracy"], pair["ci95"], "+")]
            for pair in found["pairs"]
        ],
    )


if __name__ == "__main__":
    main_with_named_errors(Options, main)
