"""Choose the shipped chains' thresholds and mixing weights, and put the chains into the package.

    python -m scripts.ship_chains --data-dir data

Every network answers every image once. For each chain the thresholds and weights are those that are most
accurate on the validation images at its budget; the test images are read at the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.common.cli import main_with_named_errors
from scripts.ship import INDEX
from skipnet_rl.catalogue import FOLDER, index, sha256_of
from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.chain_file import save_chain
from skipnet_rl.checkpoint import write_json
from skipnet_rl.evaluate import evaluate
from skipnet_rl.member import Member
from skipnet_rl.progress import image_progress, load_images
from skipnet_rl.recording import Records, record, replayed
from skipnet_rl.runs import machine
from skipnet_rl.terminal import say
from skipnet_rl.thresholds import tune
from skipnet_rl.weights import open_weights

DATASET = "cifar10"
SMALL, THIRD = "resnet14-cifar10-distilled", "resnet38-cifar10-hrl-1.0-gain6-ensemble"
MIDDLE, LARGE = "resnet38-cifar10-distilled", "resnet110-cifar10-distilled"
NETWORKS = (SMALL, THIRD, MIDDLE, LARGE)
CHAINS: dict[str, tuple[tuple[str, ...], float]] = {  # networks, and a budget of FLOPs per image over LARGE's
    "chain38gx38-cifar10": ((THIRD, MIDDLE), 0.15),
    "chain14x38x110-cifar10": ((SMALL, MIDDLE, LARGE), 0.2),
    "chain38gx38x110-cifar10": ((THIRD, MIDDLE, LARGE), 0.25),
}


@dataclass(frozen=True)
class Options:
    """Choose the thresholds of the shipped chains."""

    data_dir: Path | None = None
    """folder of CIFAR-10 (default: $SKIPNET_DATA, else ./data)"""
    debug: bool = False
    """traceback of an error"""


def part_of(records: Records, networks: tuple[str, ...]) -> Records:
    """The records of a chain of some of the networks."""
    numbers = [NETWORKS.index(name) for name in networks]
    return Records(records.source, records.answers[:, numbers])


def entry_of(name: str, members: dict[str, Member], val: Records, test: Records) -> dict[str, Any]:
    """Write one chain; its entry of the index."""
    networks, budget = CHAINS[name]
    chain = Chain([members[network] for network in networks])
    (tuned,) = tune(part_of(val, networks), members[LARGE].whole_macs, [budget])
    about = {"dataset": DATASET, "depth": chain.depth, "num_classes": chain.num_classes}
    command = "python -m scripts.ship_chains"
    path = FOLDER / f"{name}.json"
    save_chain(path, list(networks), tuned, {**about, "command": command, "after": list(networks)})
    mdp = ChainMDP(replayed(chain.mixed(tuned.mix)))
    done = evaluate(mdp, tuned.policy(), part_of(test, networks))
    return {
        "name": name,
        "file": path.name,
        "sha256": sha256_of(path),
        "kind": "chain",
        "depth": chain.depth,
        "dataset": DATASET,
        "shortcut": "projection",
        "stage": "chain",
        "budget": budget,
        "compute_flops": done.compute_flops.mean().item(),
        "val_accuracy": tuned.accuracy,
        "test_accuracy": done.accuracy,
        "test_images": len(test),
        "command": command,
        "after": list(networks),
    }


def main(options: Options) -> list[dict[str, Any]]:
    """Record every network, tune and write every chain; returns the new entries of the index."""
    begun, records = time.monotonic(), {}
    opened = {name: open_weights(name) for name in NETWORKS}
    members = {name: Member(each.network, each.policy) for name, each in opened.items()}
    for split in ("val", "test"):
        images = load_images(DATASET, split, options.data_dir)
        with image_progress(f"{split} images") as show:
            records[split] = record(Chain(list(members.values())), images, progress=show)
    entries = [entry_of(name, members, records["val"], records["test"]) for name in CHAINS]
    for entry in entries:
        entry |= {"wall_time_s": round(time.monotonic() - begun), "machine": machine()}
        share = f"{entry['compute_flops']:.1%} of the FLOPs of {CHAINS[entry['name']][0][-1]}"
        say(f"{entry['name']}: {entry['test_accuracy']:.2%} at {share}")
    write_json(FOLDER / INDEX, [*(entry for entry in index() if entry["name"] not in CHAINS), *entries])
    return entries


if __name__ == "__main__":
    main_with_named_errors(Options, main)
