"""Two networks, the second for the images of which the first is not sure: a cascade.

    python -m agents.cascade --data-dir data --out docs/results-cifar10
    python -m scripts.results --out docs/results-cifar10                    # draws them into the picture

Each image goes through the first network. Where that is not confident, the image is deferred to the second
one, whose answer then counts (IDK cascades, Wang et al. 2017, arXiv 1706.00885). Confidence is the largest
probability; for each budget its threshold is chosen on the validation images, so that their mean cost is no
more than the budget, up to ties.

Nothing is learned here. Either network may have gates; a pair without them, which skips no block, is the
rival of gates that choose by the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown, points, publish
from agents.evaluate import Subject, of_one_data_set
from skipnet_rl.data import Images
from skipnet_rl.deferral import Answers, at_random, defer, reach, thresholds_for
from skipnet_rl.device import pick_device
from skipnet_rl.evaluate import evaluate
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.progress import image_progress, load_images, progress_bar
from skipnet_rl.statistics import accuracy_difference, half_width

FILE = "cascade.json"
PAIRS = (
    ("resnet14-cifar10-distilled", "resnet38-cifar10-distilled"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet38-cifar10-distilled"),
    ("resnet14-cifar10-distilled", "resnet110-cifar10-distilled"),
    ("resnet38-cifar10-hrl-1.0-gain6-ensemble", "resnet110-cifar10-distilled"),
    ("resnet110-cifar10-hrl-0.8-ensemble", "resnet110-cifar10-distilled"),
)
BESIDE = (
    "resnet20-cifar10-distilled",
    "resnet38-cifar10-hrl-0.5-ensemble",
    "resnet74-cifar10-hrl-0.5",
    "resnet38-cifar10",
    "resnet110-cifar10-hrl-0.4-ensemble",
    "resnet74-cifar10-distilled",
    "resnet110-cifar10",
)
RANDOM = "random deferral"


@dataclass(frozen=True)
class Options:
    """Evaluate cascades of two networks each."""

    pairs: tuple[tuple[str, str], ...] = PAIRS
    """names of shipped networks, or run folders, two by two: the one that sees every image, and the one
    behind it"""
    beside: tuple[str, ...] | None = None
    """other networks to compare them with (default: beside the default pairs, shipped ones; else none)"""
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

    @property
    def networks(self) -> list[str]:
        """Every network, each once: those of the pairs, and those beside them."""
        beside = self.beside if self.beside is not None else BESIDE if self.pairs == PAIRS else ()
        return list(dict.fromkeys((*(name for pair in self.pairs for name in pair), *beside)))


def answers(subject: Subject, images: Images) -> Answers:
    """What a network answers to images, on its device, brought to its size and normalisation."""
    images = images.with_statistics(subject.images.mean, subject.images.std)
    sized = images.sized(subject.mdp.net.image_size)
    with image_progress(subject.name) as show:
        played = evaluate(subject.mdp, subject.policy, sized, progress=show)
    return Answers(played.confidence, played.correct, subject.whole_flops * played.compute_flops)


def main(options: Options) -> dict[str, Any]:
    """Evaluate every pair at every budget; returns what was written.

    Raises:
        ValueError: no pairs, networks of different data sets, or a pair that can have none of the budgets.
        FileNotFoundError, WeightsError: there is no such network.
    """
    if not options.pairs:
        raise ValueError("no pairs given; name two networks")
    device = pick_device(options.device)
    subjects, dataset = of_one_data_set(options.networks, options.data_dir)
    subjects = {name: subject.on(device) for name, subject in subjects.items()}
    images = load_images(dataset, "val", options.data_dir).to(device)
    on_val = {
        name: answers(subject, images)
        for name, subject in progress_bar(subjects.items(), desc="validation images", unit="network")
    }
    thresholds = {pair: thresholds_of(pair, on_val, subjects, options.budgets) for pair in options.pairs}
    on_test = {
        name: answers(subject, subject.images)
        for name, subject in progress_bar(subjects.items(), desc="test images", unit="network")
    }
    cascades = [
        {
            "first": pair[0],
            "second": pair[1],
            "depths": [subjects[name].mdp.net.depth for name in pair],
            "gates": not isinstance(subjects[pair[0]].policy, AlwaysExecute),  # of the first
            "rows": rows_of(pair, thresholds, on_val, on_test, subjects[pair[1]].whole_flops),
        }
        for pair in thresholds
    ]
    found = {
        "dataset": dataset,
        "n_images": len(on_test[options.networks[0]].correct),
        "precision": "fp32",
        "networks": {
            name: {
                "mega_flops": 1e-6 * alone.flops.mean().item(),
                "accuracy": alone.accuracy,
                "val_accuracy": on_val[name].accuracy,
            }
            for name, alone in on_test.items()
        },
        "cascades": cascades,
        "notes": left_out(thresholds, options.budgets),
    }
    return publish("agents.cascade", options.out / FILE, found, table(found))


def thresholds_of(
    pair: tuple[str, str],
    on_val: Mapping[str, Answers],
    subjects: Mapping[str, Subject],
    budgets: Sequence[float],
) -> dict[float, float]:
    """The threshold for each of the budgets that a pair can have.

    Raises:
        ValueError: it can have none.
    """
    first, second = (on_val[name] for name in pair)
    whole = subjects[pair[1]].whole_flops
    found = thresholds_for(first, second, whole, budgets)
    if not found:
        least, most = reach(first, second, whole)
        raise ValueError(
            f"{' and '.join(pair)} can have none of the budgets; expected {least:.4f} to {most:.4f}"
        )
    return found


def left_out(
    thresholds: Mapping[tuple[str, str], Mapping[float, float]], budgets: Sequence[float]
) -> list[str]:
    """A line for each pair that can have some of the budgets, but not all of them."""
    notes = []
    for (first, second), had in thresholds.items():
        missing = [f"{budget:g}" for budget in sorted(set(budgets) - had.keys())]
        if missing:
            notes.append(f"{first} and {second} cannot have budget {', '.join(missing)}; left out")
    return notes


def rows_of(
    pair: tuple[str, str],
    thresholds: Mapping[tuple[str, str], Mapping[float, float]],
    on_val: Mapping[str, Answers],
    on_test: Mapping[str, Answers],
    whole: float,
) -> list[dict[str, Any]]:
    """A cascade at each of its budgets: on the test images, and on those that its threshold comes from.

    Each is compared with deferral at random, with every network alone, and at the same budget with the
    other cascades of the same second network, `"from …"`. `single` is the network alone that costs no more
    on the test images; of several, the one that is the most accurate on the validation images.
    """
    first, second = (on_test[name] for name in pair)
    others = [other for other in thresholds if other != pair and other[1] == pair[1]]
    rows = []
    for budget, threshold in thresholds[pair].items():
        correct, row = defer(first, second, threshold)
        _, chosen = defer(on_val[pair[0]], on_val[pair[1]], threshold)
        over = {RANDOM: at_random(first, second, row["deferred"])}
        over |= {name: alone.correct for name, alone in on_test.items()}
        for other in others:
            if budget in thresholds[other]:
                rival, _ = defer(on_test[other[0]], on_test[other[1]], thresholds[other][budget])
                over[f"from {other[0]}"] = rival
        affordable = [
            name for name, alone in on_test.items() if 1e-6 * alone.flops.mean().item() <= row["mega_flops"]
        ]
        rows.append(
            {
                "budget": budget,
                "threshold": threshold,
                "compute_flops": 1e6 * row["mega_flops"] / whole,
                **row,
                "over": {name: accuracy_difference(correct, rival) for name, rival in over.items()},
                "single": max(affordable, key=lambda name: on_val[name].accuracy),
                "val_accuracy": chosen["accuracy"],
                "val_compute_flops": 1e6 * chosen["mega_flops"] / whole,
            }
        )
    return rows


COLUMNS = ["first", "MFLOPs", "FLOPs", "deferred", "validation", "accuracy"]
COLUMNS += ["over random deferral", "over the second alone", "over the best alone", "which is"]


def table(found: Mapping[str, Any]) -> str:
    """A table in Markdown for each second network.

    In percent of its FLOPs with every block executed and of the images; differences in points on the same
    images; ± 95 % over the images.
    """
    by_second: dict[str, list[Mapping[str, Any]]] = {}
    for each in found["cascades"]:
        by_second.setdefault(each["second"], []).append(each)
    return "\n".join(
        markdown(COLUMNS, [cells(each, row) for each in some for row in each["rows"]])
        for some in by_second.values()
    )


def cells(each: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """A row of a cascade as the table's text."""
    over = [row["over"][name] for name in (RANDOM, each["second"], row["single"])]
    return [
        each["first"],
        f"{row['mega_flops']:.1f}",
        *(f"{100 * row[key]:.1f}" for key in ("compute_flops", "deferred")),
        f"{100 * row['val_accuracy']:.2f}",
        points(row["accuracy"], half_width(row["accuracy_ci95"])),
        *(points(difference["accuracy"], difference["ci95"], "+") for difference in over),
        row["single"],
    ]


if __name__ == "__main__":
    main_with_named_errors(Options, main)
