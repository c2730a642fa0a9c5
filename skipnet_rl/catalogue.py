"""The shipped networks: the index, a network by name, the one that "auto" stands for, the nearest name.

`pretrained/index.json` lists each network with its file and sha256, what it fits, how well it does, the
command that made it, and the networks that this command started from (`after`). Files are float16
safetensors; a network of more than 4 MB has several (`checkpoint.parts_of`), of which the index names the
first, and its sha256 is that of all their bytes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipnet_rl.checkpoint import parts_of
from skipnet_rl.errors import WeightsError

FOLDER = Path(__file__).parent / "pretrained"
PLAIN = ("backbone-distilled", "backbone")  # stages that "auto" finds, the better one first
START = ("rnn", "plain")  # kinds that a policy over a frozen network starts from, the better one first


def index() -> list[dict[str, Any]]:
    """All shipped networks: name, file, sha256, kind, depth, dataset, shortcut, stage, test_accuracy, …

    Gated networks that training continues from by default have `start`.
    """
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def find(name: object) -> dict[str, Any] | None:
    """The index entry of a network; None for any other text, such as a path."""
    return next((entry for entry in index() if str(name) == entry["name"]), None)


def find_auto(
    depth: int | None,
    dataset: str,
    shortcut: str | None,
    kinds: Sequence[str] = ("plain",),
    alpha: float | None = None,
    start: bool = True,
) -> dict[str, Any] | None:
    """The index entry of the network that "auto" stands for; None if none fits.

    Args:
        depth, dataset, shortcut: required values; the depth of other libraries' models is None, and so is the
            shortcut if any will do.
        kinds: acceptable kinds, the preferred one first. A plain network is the best one that executes every
            block.
        alpha: weight of the compute saving; the gated network trained at the nearest one is taken
            (default: the smallest).
        start: only gated networks with `start`; otherwise any, those with `start` first.
    """
    wanted = {"depth": depth, "dataset": dataset} | ({"shortcut": shortcut} if shortcut else {})
    fitting = [entry for entry in index() if all(entry[key] == value for key, value in wanted.items())]
    for kind in kinds:
        found = [entry for entry in fitting if entry["kind"] == kind]
        if kind == "plain":
            found = [entry for stage in PLAIN for entry in found if entry["stage"] == stage]
        else:
            found = [entry for entry in found if entry.get("start") or not start]
            found.sort(key=lambda entry: (not entry.get("start"), abs(entry["alpha"] - (alpha or 0.0))))
        if found:
            return found[0]
    return None


def deepest(dataset: str) -> int | None:
    """The depth of the deepest shipped network without gates for a data set; None if there is none."""
    fitting = (entry for entry in index() if entry["dataset"] == dataset and entry["kind"] == "plain")
    return max((entry["depth"] for entry in fitting), default=None)


def path_of(entry: dict[str, Any]) -> Path:
    """The file of a shipped network, or the first of its parts.

    Raises:
        WeightsError: it is missing, or its bytes are not those that the index lists.
    """
    path = FOLDER / entry["file"]
    missing = next((part for part in parts_of(path) if not part.is_file()), None)
    if missing or sha256_of(path) != entry["sha256"]:
        raise WeightsError(f"{missing or path} is missing or damaged; reinstall skipnet-rl")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 over all bytes of a weights file, part after part.

    Raises:
        FileNotFoundError: one of the parts is missing.
    """
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts_of(path))).hexdigest()


def nearest(name: str) -> str | None:
    """The shipped name that a mistyped one most likely meant; None if none is close."""
    names = [entry["name"] for entry in index()]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.8)), None)
