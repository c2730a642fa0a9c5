"""Put chains into the package, with the thresholds and mixing weights tuned for a budget.

    python -m agents.cascade --data-dir data --out docs/results-cifar10
    python -m scripts.ship_chains
    python -m scripts.ship_chains --results docs/results-cifar100/chains.json

One call ships the chains of one data set. The rows of chains.json hold the thresholds and weights chosen on
validation images, and the accuracy and cost on test images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.cascade import FILE
from agents.common.cli import main_with_named_errors
from scripts.ship import INDEX
from skipnet_rl.catalogue import FOLDER, find, index, sha256_of
from skipnet_rl.chain_file import save_chain
from skipnet_rl.checkpoint import write_json
from skipnet_rl.terminal import say

# Name, CHAIN-DATASET[-BUDGET]: chain and budget of its row. The budget is the mean FLOPs per image over those
# of the last network.
SHIPPED: dict[str, tuple[str, float]] = {
    "chain38gx38-cifar10": ("SkipChain38gx38-v0", 0.46),
    "chain14x38x110-cifar10": ("SkipChain14x38x110-v0", 0.2),
    "chain38gx38x110-cifar10": ("SkipChain38gx38x110-v0", 0.26),
    "chain38gx38x110-cifar10-0.2": ("SkipChain38gx38x110-v0", 0.2),
    "chain38gx38x110-cifar10-0.36": ("SkipChain38gx38x110-v0", 0.36),
    "chain14x38-cifar100": ("SkipChain14x38-v0", 0.8),
}


@dataclass(frozen=True)
class Options:
    """Put the tuned chains into the package."""

    results: Path = Path("docs/results-cifar10") / FILE
    """file of agents.cascade for one data set"""
    debug: bool = False
    """traceback of an error"""


def row_of(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row from which a shipped chain is made.

    Raises:
        ValueError: there is no such row.
    """
    chain, budget = SHIPPED[name]
    rows = [row for row in found["rows"] if (row["chain"], row["budget"]) == (chain, budget)]
    if not rows:
        raise ValueError(f"no row of {chain} at budget {budget:g}; run agents.cascade with that budget")
    return rows[0]


def shipped_for(dataset: str) -> list[str]:
    """Return the names of the shipped chains for a data set."""
    return [name for name in SHIPPED if name.split("-")[1] == dataset]


def entry_of(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write the file of one chain; return its entry in the index.

    Raises:
        ValueError: there is no row for it, or its last network is not shipped.
    """
    row = row_of(name, found)
    last = find(row["networks"][-1])
    if last is None:
        raise ValueError(f"{row['networks'][-1]} is not a shipped network; ship it before the chain")
    about = {"dataset": found["dataset"], "depth": last["depth"], "command": found["command"]}
    path = FOLDER / f"{name}.json"
    # the row's margins are divided by its temperature; the file that `save_chain` writes has none
    thresholds = [each * row["temperature"] for each in row["thresholds"]]
    save_chain(path, {**row, "thresholds": thresholds}, about)
    return {
        "name": name,
        "file": path.name,
        "sha256": sha256_of(path),
        "kind": "chain",
        **about,
        "shortcut": last["shortcut"],
        "stage": "chain",
        "compute_flops": row["compute_flops"],
        "test_accuracy": row["accuracy"],
        "test_images": found["n_images"],
        "machine": found["machine"],
        "after": row["networks"],
    }


def main(options: Options) -> list[dict[str, Any]]:
    """Write every chain of the data set; return the new entries of the index."""
    found = json.loads(options.results.read_text(encoding="utf-8"))
    names = shipped_for(found["dataset"])
    entries = [entry_of(name, found) for name in names]
    write_json(FOLDER / INDEX, [*(entry for entry in index() if entry["name"] not in names), *entries])
    for entry in entries:
        share = f"{entry['compute_flops']:.1%} of the FLOPs of {entry['after'][-1]}"
        say(f"{entry['name']}: {entry['test_accuracy']:.2%} at {share}")
    return entries


if __name__ == "__main__":
    main_with_named_errors(Options, main)
