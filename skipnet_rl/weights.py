"""Weights that this project trained, and networks filled with them.

`index.json` lists each network with its file, the sha256 of it, what it fits, how well it does and the
commands that made it. Files are float16 safetensors; of a network of more than 4 MB there are several
(`checkpoint.parts_of`), of which the index names the first; its sha256 is of all their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipnet_rl.checkpoint import fill, parts_of, read_tensors
from skipnet_rl.errors import WeightsError, one_line
from skipnet_rl.foreign import check_padding, describe, find_backbone
from skipnet_rl.importer import read_state_dict, torchvision_weights, unwrap
from skipnet_rl.precision import cpu_by_default
from skipnet_rl.resnet import ResNet

FOLDER = Path(__file__).parent / "pretrained"
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
        "depth": depth, "dataset": dataset, "shortcut": shortcut, "kind": gate, "start": True
    }  # fmt: skip
    fitting = [e for e in index() if all(e.get(key) == value for key, value in wanted.items())]
    return min(fitting, key=lambda e: abs(e["alpha"] - (alpha or 0.0)), default=None)


def find_start(depth: int, dataset: str, shortcut: str, alpha: float | None = None) -> dict[str, Any] | None:
    """What a policy over a frozen network starts from: a shipped one trained with skips, else a plain one."""
    return find_gated(depth, dataset, shortcut, "rnn", alpha) or find_entry(depth, dataset, shortcut)


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


def weights_path(weights: str | os.PathLike[str]) -> Path:
    """The file that a name of `index` stands for, or else the path itself.

    Raises:
        WeightsError: neither a name nor a path; a shipped file that is damaged.
    """
    name = weights_name(weights)
    entry = find_named(name)
    return Path(name).expanduser() if entry is None else _checked(entry)


def weights_name(weights: object) -> str:
    """A name or a path as text.

    Raises:
        WeightsError: something else.
    """
    text = os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip():
        came = (
            repr(weights) if isinstance(weights, (str, bytes, int, float)) else f"a {type(weights).__name__}"
        )
        raise WeightsError(
            f"weights is {came}; expected the path of a file, the name of a shipped network, 'auto', "
            "'torchvision' or None"
        )
    return text


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
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = "auto",
    exact: bool = False,
) -> ResNet:
    """A network in evaluation mode, on the CPU, in channels-last memory.

    Args:
        depth, num_classes, shortcut: see `ResNet`.
        dataset: which data set's weights `"auto"` looks for.
        weights: see `load_backbone`; `"auto"` for the shipped weights that fit, with a warning where there
            are none; None or `"none"` for untrained weights, the same each time.
        exact: see `load_backbone`.

    Raises:
        WeightsError: weights that are missing, damaged or do not fit.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the CPU's alone: fork_rng restores no other here
        net = ResNet(depth, num_classes, shortcut).to(memory_format=torch.channels_last)
    auto = isinstance(weights, str) and weights == "auto"
    source = find_shipped(depth, dataset, shortcut) if auto else weights
    if source is not None and not (isinstance(source, str) and source == "none"):
        load_backbone(source, net, exact)
    elif auto:
        warnings.warn(
            f"no shipped weights for ResNet-{depth} on {dataset} with shortcut {shortcut!r}: the network "
            f"is untrained. Train it with: python -m agents.pretrain --depth {depth} --dataset {dataset}",
            stacklevel=2,
        )
    return net.eval()


def load_backbone(
    weights: str | os.PathLike[str] | Mapping[str, Any], net: ResNet, exact: bool = False
) -> None:
    """Fill a network with weights of the same architecture.

    What is left out is said in a warning of one line: the classifier of another number of classes, which
    keeps the network's own weights, and what is no part of a ResNet, such as gates.

    Args:
        weights: a name of `index`; a path: safetensors of `agents.pretrain` or of a gated network (whose
            backbone is taken), or a file of `torch.save` (`.th`, `.pt`, `.pth`), under the names that
            `foreign` knows; `"torchvision"` for torchvision's ImageNet weights; or a state_dict.
        net: what to fill.
        exact: refuse another number of classes, for a network that nobody is going to train.

    Raises:
        WeightsError: the file is missing or damaged, or does not fit: what it has, what was expected.
    """
    tensors, source = _read(weights, net)
    found = find_backbone(tensors, source)
    taken, notes = dict(found.tensors), []
    own = {name: value for name, value in net.state_dict().items() if name.startswith("fc.")}
    if not exact and any(name not in taken or taken[name].shape != own[name].shape for name in own):
        has = f"of {len(taken['fc.weight'])} classes" if "fc.weight" in taken else "missing"
        notes.append(
            f"its classifier is {has}, so that of the network's {net.num_classes} classes is untrained"
        )
        taken |= own
    if found.left_out and not found.own:
        notes.append(
            f"left out {len(found.left_out)} tensors beside the backbone, such as {found.left_out[0]}"
        )
    try:
        check_padding(tensors, net, source)
        fill(net, taken, source)
    except WeightsError as error:
        came, wanted = describe(found.tensors), describe(net.state_dict())
        wanted = "exactly the layers of one" if wanted == came else wanted
        remedy = "build the network that it holds, or give other weights"
        raise WeightsError(f"{error}. It holds {came}; expected {wanted}: {remedy}") from None
    if notes:
        warnings.warn(one_line(f"{source}: {'; '.join(notes)}"), stacklevel=3)


def _read(weights: str | os.PathLike[str] | Mapping[str, Any], net: ResNet) -> tuple[dict[str, Tensor], str]:
    """All tensors by their names, and what messages call the place that they come from."""
    if isinstance(weights, Mapping):
        return unwrap(weights, "the state_dict"), "the state_dict"
    if weights_name(weights) == "torchvision":
        return torchvision_weights(net), "torchvision's model"
    path = weights_path(weights)
    if not path.is_file() or path.suffix == ".safetensors":
        return read_tensors(path), str(path)
    return read_state_dict(path), str(path)
