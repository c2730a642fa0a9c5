"""Weights that this project trained, and networks filled with them.

`index.json` lists each file with its sha256, what it fits, how well it does and the command that
made it. Files are float16 safetensors.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from skipnet_rl.checkpoint import load_weights
from skipnet_rl.errors import WeightsError
from skipnet_rl.resnet import ResNet

FOLDER = Path(__file__).parent


def index() -> list[dict[str, Any]]:
    """All shipped files: name, file, sha256, depth, dataset, shortcut, stage, accuracy, command."""
    return json.loads((FOLDER / "index.json").read_text())


def find_shipped(depth: int, dataset: str, shortcut: str, stage: str = "backbone") -> Path | None:
    """The shipped file for a network, its bytes checked against the index; None where there is none.

    Raises:
        WeightsError: the file is missing or its sha256 is not the index's.
    """
    wanted = {"depth": depth, "dataset": dataset, "shortcut": shortcut, "stage": stage}
    for entry in index():
        if all(entry[key] == value for key, value in wanted.items()):
            path = FOLDER / entry["file"]
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise WeightsError(f"{path} is missing or damaged; reinstall skipnet-rl")
            return path
    return None


def build_backbone(
    depth: int,
    num_classes: int,
    dataset: str,
    shortcut: str = "projection",
    weights: str | Path | None = "auto",
) -> ResNet:
    """A network in evaluation mode, on the CPU, in channels-last memory.

    Args:
        depth, num_classes, shortcut: see `ResNet`.
        dataset: which data set's weights `"auto"` looks for.
        weights: path of a safetensors file; `"auto"` for the shipped weights, with a warning where
            there are none; None for untrained weights, the same each time.

    Raises:
        WeightsError: weights that are missing, damaged or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's alone: fork_rng restores no other here
        net = ResNet(depth, num_classes, shortcut)
    path = find_shipped(depth, dataset, shortcut) if weights == "auto" else weights
    if path is not None:
        load_weights(Path(path), net)
    elif weights == "auto":
        warnings.warn(
            f"no shipped weights for ResNet-{depth} on {dataset} with shortcut {shortcut!r}: the network "
            f"is untrained. Train it with: python -m agents.pretrain --depth {depth} --dataset {dataset}",
            stacklevel=2,
        )
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
