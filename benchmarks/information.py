"""What a decision can know: the features inside a network against its finished answer.

    python -m benchmarks.information --data-dir data
    python -m benchmarks.information --data-dir data --pairs resnet20-cifar10 resnet74-cifar10-distilled

A gate decides by the pooled feature at its block. How well does that feature identify the images that are
worth more compute: those that a longer network gets right and a shorter one gets wrong? After every block of
the shorter network, routed by its own gates, predictors are fitted to the validation images and judged on the
test images by the area under the ROC curve. The margin of the finished answer, log p1 - log p2, is judged in
the same way and needs no fitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.tables import markdown, publish
from benchmarks.information_picture import picture
from benchmarks.predictors import PREDICTORS, area, fit_best
from skipnet_rl.belief import margin
from skipnet_rl.data import Images
from skipnet_rl.device import pick_device
from skipnet_rl.evaluate import usual_batch_size
from skipnet_rl.flops import compute_blocks
from skipnet_rl.normalisation import normalised, stated
from skipnet_rl.plots import save_figure
from skipnet_rl.policies import Policy, first_memory
from skipnet_rl.process import DecisionProcess
from skipnet_rl.progress import image_progress, load_images, progress_bar
from skipnet_rl.rollout import rollout
from skipnet_rl.weights import Opened, open_weights


@dataclass(frozen=True)
class Options:
    """Measure what features inside a network tell about the images that a longer network corrects."""

    pairs: tuple[tuple[str, str], ...] = (
        ("resnet38-cifar10-hrl-0.5-ensemble", "resnet38-cifar10-distilled"),
        ("resnet14-cifar10-distilled", "resnet110-cifar10-distilled"),
    )
    """shipped networks or weights files in pairs, the shorter network first; the first pair is drawn"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    out: Path = Path("runs/benchmarks")
    """folder of the JSON file and the figure (docs/benchmarks for docs/information.md)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    debug: bool = False
    """traceback of an error"""


class Seen(NamedTuple):
    """M images in a network: pooled `features` [M, C] after each block, `routes` [M, N], `logits` [M, K]."""

    features: list[Tensor]
    routes: Tensor
    logits: Tensor


class Recorder:
    """A policy that keeps the features on which it decides."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.features: list[Tensor] = []

    def start(self, images: Tensor) -> Any:
        """Drop the features of the previous batch; return the policy's first memory."""
        self.features = []
        return first_memory(self.policy, images)

    def __call__(self, mdp: DecisionProcess, state: Any, hidden: Any) -> tuple[Tensor, Any]:
        """Record the features; return the policy's log-odds and memory."""
        self.features.append(mdp.features(state))
        return self.policy(mdp, state, hidden)


@torch.no_grad()
def look(opened: Opened, images: Images) -> Seen:
    """Pass all images through a network once, routed by its own policy."""
    images = normalised(images, *(stated(opened.header) or ())).sized(opened.network.image_size)
    mdp, recorder, parts = opened.mdp().for_inference(), Recorder(opened.policy), []
    with image_progress(f"ResNet-{opened.network.depth}, {images.split}") as show:
        for batch, labels in images.batches(usual_batch_size(images.device, opened.network.image_size)):
            episode = rollout(mdp, recorder, batch, labels)
            found = [*recorder.features, mdp.features(episode.state)]
            parts.append(Seen(found, episode.actions, episode.logits))
            show(sum(len(part.logits) for part in parts), len(images))
    features = [torch.cat(block) for block in zip(*(part.features for part in parts), strict=True)]
    routes, logits = torch.cat([each.routes for each in parts]), torch.cat([each.logits for each in parts])
    return Seen(features, routes, logits)


def information(seen: Sequence[Seen], mended: Sequence[Tensor]) -> dict[str, Any]:
    """Return the area of each predictor after each block, and that of the margin.

    Args:
        seen: what the first network did with the images for fitting, then with those for judging.
        mended: for the same two sets, whether the second network corrects the first one's error: [M] bool.
    """
    (fitted, judged), (targets, truth) = seen, mended
    blocks = [
        {name: area(fit_best(inputs, targets, hidden)(others), truth) for name, hidden in PREDICTORS.items()}
        for inputs, others in zip(progress_bar(fitted.features, desc="blocks"), judged.features, strict=True)
    ]
    return {"blocks": blocks, "margin": area(-margin(judged.logits.double()), truth)}


def of_pair(names: tuple[str, str], options: Options, device: torch.device) -> dict[str, Any]:
    """Return the figures of a pair of networks: fitted on validation images, judged on test images.

    Raises:
        ValueError: the two are for different data sets.
    """
    pair = [open_weights(name).on(device) for name in names]
    datasets = [opened.header["dataset"] for opened in pair]
    if datasets[0] != datasets[1]:
        raise ValueError(f"{names[0]} is for {datasets[0]}, {names[1]} for {datasets[1]}; expected the same")
    firsts, mended = [], []
    for split in ("val", "test"):
        images = load_images(datasets[0], split, options.data_dir).to(device)
        seen = [look(opened, images) for opened in pair]
        first, second = (each.logits.argmax(dim=1) == images.labels for each in seen)
        firsts.append(seen[0])
        mended.append(second & ~first)
    networks = [
        {"name": name, "label": label(opened.network.depth, each.routes)}
        for name, opened, each in zip(names, pair, seen, strict=True)
    ]
    return {
        "networks": networks,
        "dataset": datasets[0],
        "stages": pair[0].network.stages,
        "images": [len(each) for each in mended],
        "mended": [each.double().mean().item() for each in mended],
        **information(firsts, mended),
    }


def label(depth: int, routes: Tensor) -> str:
    """Name a network by its depth and the share of blocks in its routes [M, N] of 0 and 1."""
    share = compute_blocks(routes).mean().item()
    return f"the whole ResNet-{depth}" if share == 1 else f"a ResNet-{depth} at {share:.0%} of its blocks"


def table(found: Mapping[str, Any]) -> str:
    """Return the result in Markdown, one table per pair; blocks with equal figures share a row."""
    tables = []
    for pair in found["pairs"]:
        numbered = enumerate(pair["blocks"], start=1)
        alike = [list(group) for _, group in groupby(numbered, key=lambda pair: pair[1])]
        rows = [
            [f"blocks {group[0][0]}–{group[-1][0]}" if len(group) > 1 else f"block {group[0][0]}"]
            + [_cell(group[0][1][name]) for name in PREDICTORS]
            for group in alike
        ]
        rows.append(["margin of the finished answer", _cell(pair["margin"]), ""])
        labels = [network["label"] for network in pair["networks"]]
        share = f"{pair['mended'][1]:.1%} of the images"
        caption = f"Wrong in {labels[0]}, right in {labels[1]}: {share}."
        tables.append(f"{caption}\n\n{markdown(['after', 'linear', 'hidden layer'], rows, numbers=True)}")
    return "\n".join(tables)


def _cell(area: Mapping[str, Any]) -> str:
    low, high = area["auc_ci95"]
    return f"{area['auc']:.2f} ({low:.2f} … {high:.2f})"


def main(options: Options) -> dict[str, Any]:
    """Measure every pair; return the content of the JSON file.

    Raises:
        ValueError: the networks of a pair are for different data sets.
        WeightsError: there is no such network.
    """
    device = pick_device(options.device)
    found = {"pairs": [of_pair(pair, options, device) for pair in options.pairs]}
    save_figure(picture(found["pairs"][0]), options.out / "information.png")
    return publish("benchmarks.information", options.out / "information.json", found, table(found))


if __name__ == "__main__":
    main_with_named_errors(Options, main)
