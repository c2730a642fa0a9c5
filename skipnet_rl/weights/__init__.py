"""Weights that this project trained, and networks filled with them.

`index.json` lists each network with its file, the sha256 of it, what it fits, how well it does and the
commands that made it. Files are float16 safetensors; of a network of more than 4 MB there are several
(`checkpoint.parts_of`), of which the index names the first; its sha256 is of all their bytes.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from skipnet_rl.checkpoint import fill, parts_of, read_tensors
from skipnet_rl.errors import WeightsError
from skipnet_rl.importer import read_state_dict, rename, torchvision_weights
from skipnet_rl.precision import cpu_by_default
from skipnet_rl.resnet import ResNet

FOLDER = Path(__file__).parent
AUTO = ("backbone-distilled", "backbone")  # stages of what "auto" finds: the second where the first is not


def index() -> list[dict[str, Any]]:
    """All shipped networks: name, file, sha256, depth, dataset, shortcut, stage, test_accuracy, command.

    `file` is the first of several. `stage` is one of `AUTO` for what `"auto"` finds, and something else for
    what is asked for by name. Gated networks that training goes on from by default have `start`.
    """
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def find_entry(depth: int, dataset: str, shortcut: str) -> dict[str, Any] | None:
    """What the index says of the shipped backbone for a network; None where there is none."""
    wanted = {"depth": depth, "dataset": dataset, "shortcut": shortcut}
    fitting = {e["stage"]: e for e in index() if all(e[key] == value for key, value in wanted.items())}
    return next((fitting[stage] for stage in AUTO if stage in fitting), None)


def find_gated(
    depth: int, dataset: str, shortcut: str, gate: str, alpha: float | None = None
) -> dict[str, Any] | None:
    """What the index says of the shipped network whose gates training goes on from; None where there is none.

    Args:
        depth, dataset, shortcut, gate: what it has to be for.
        alpha: weight of the compute saving that training is to go on at; the network trained at the nearest
            one is taken (default: the least).
    """
    wanted = {
        "depth": depth, "dataset": dataset, "shortcut": shortcut, "gate": gate, "start": True
    }  # fmt: skip
    fitting = [e for e in index() if all(e.get(key) == value for key, value in wanted.items())]
    return min(fitting, key=lambda e: abs(e["alpha"] - (alpha or 0.0)), default=None)


def find_shipped(depth: int, dataset: str, shortcut: str) -> Path | None:
    """The file of that backbone, its bytes checked against the index; None where there is none.

    Raises:
        WeightsError: the file is missing or its sha256 is not the index's.
    """
    entry = find_entry(depth, dataset, shortcut)
    return None if entry is None else _checked(entry)


def find_named(weights: str | Path) -> dict[str, Any] | None:
    """What the index says of the network of that name; None where there is none, for a path say."""
    return next((entry for entry in index() if str(weights) == entry["name"]), None)


def weights_path(weights: str | Path) -> Path:
    """The file that a name of `index` stands for, or else the path itself."""
    entry = find_named(weights)
    return Path(weights) if entry is None else _checked(entry)


def sha256_of(path: Path) -> str:
    """SHA-256 over all bytes of some weights, part after part.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts_of(path))).hexdigest()


def _checked(entry: dict[str, Any]) -> Path:
    path = FOLDER / entry["file"]
    missing = next((part for part in parts_of(path) if not part.is_file()), None)
    if missing or sha256_of(path) != entry["sha256"]:
        raise WeightsError(f"{missing or path} is missing or damaged; reinstall skipnet-rl")
    return path


@cpu_by_default()
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
        weights: path of a file or name of a shipped one, see `load_backbone`; `"auto"` for the shipped
            weights that fit, with a warning where there are none; `"torchvision"` for torchvision's
            ImageNet weights; None or `"none"` for untrained weights, the same each time.

    Raises:
        WeightsError: weights that are missing, damaged or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's alone: fork_rng restores no other here
        net = ResNet(depth, num_classes, shortcut)
    path = find_shipped(depth, dataset, shortcut) if weights == "auto" else weights
    if path == "torchvision":
        fill(net, rename(torchvision_weights(net), net), "torchvision's model")
    elif path not in (None, "none"):
        load_backbone(path, net)
    elif weights == "auto":
        warnings.warn(
            f"no shipped weights for ResNet-{depth} on {dataset} with shortcut {shortcut!r}: the network "
            f"is untrained. Train it with: python -m agents.pretrain --depth {depth} --dataset {dataset}",
            stacklevel=2,
        )
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def load_backbone(weights: str | Path, net: ResNet) -> None:
    """Fill a network from a file.

    Args:
        weights: a name of `index`, or a path: safetensors of `agents.pretrain` or of a gated network (whose
            backbone is taken), or a state_dict file of the common ResNet naming (`.th`, `.pt`, `.pth`),
            see `importer`.
        net: what to fill.

    Raises:
        WeightsError: the file is missing or damaged, or does not fit: the first layer, both shapes.
    """
    path = weights_path(weights)
    foreign = path.is_file() and path.suffix != ".safetensors"
    tensors = read_state_dict(path) if foreign else read_tensors(path)
    backbone = {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
    fill(net, rename(backbone or tensors, net), str(path))
