"""Stored networks by name or path: their tensors, and the header that describes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from skipnet_rl import catalogue
from skipnet_rl.checkpoint import read_about, read_tensors
from skipnet_rl.errors import WeightsError, one_line
from skipnet_rl.foreign import architecture_of
from skipnet_rl.importer import read_state_dict, torchvision_weights, unwrap

Weights = str | os.PathLike[str] | Mapping[str, Any]
Header = Mapping[str, Any]
FIELDS: dict[str, Any] = {  # fields of a header and their types
    "kind": str,
    "depth": int,
    "shortcut": str,
    "dataset": str,
    "num_classes": int,
    "model": str,
    "model_kwargs": dict,
    "image_size": int,
    "alpha": (int, float),
    "cost": str,
    "policy_depth": int,
    "networks": list,
    "mix": list,
    "thresholds": list,
    "by": str,
    "policy": str,
    "temperature": (int, float, list),
}
OWN, CHAIN = ".safetensors", ".json"  # this project's files: tensors with a header; the header of a chain
POLICY = "policy."  # prefix of the tensors of BlockDrop's policy network
MARKS = {  # tensors that only files of one kind have; the first match counts
    "gate.route": "fixed",
    "gate.lstm.weight_ih": "rnn",
    "gate.features.0.4.weight": "ff1",  # its second convolution
    "gate.heads.0.weight": "ff2",
    "gate.scores.0.weight": "act",
    "policy.net.fc.weight": "blockdrop",
    "action_net.weight": "sb3",
    "q_net.q_net.0.weight": "sb3",
}


class Stored(NamedTuple):
    """A stored network: tensors by name, their header, and the name of their source in messages."""

    tensors: Mapping[str, Tensor]
    header: Header
    source: str


def read_weights(weights: Weights, depth: int | None = None) -> Stored:
    """Read the tensors and header of what `open_weights` opens; `"torchvision"` needs the depth.

    Raises:
        WeightsError: there is no such file, or it is damaged.
    """
    header: Header = {}
    if isinstance(weights, Mapping):
        tensors, source = unwrap(weights, "the state_dict"), "the state_dict"
    elif weights_name(weights) == "torchvision":
        if depth is None:
            raise WeightsError(
                "torchvision has weights of several depths; expected the depth beside its name"
            )
        tensors, source = torchvision_weights(depth), "torchvision's model"
    else:
        path = find_file(weights)
        source, header = str(path), header_of(path)
        if path.suffix == CHAIN:
            tensors = {}
        else:
            tensors = read_tensors(path) if path.suffix == OWN else read_state_dict(path)
    return Stored(tensors, {**recognise(tensors), **header}, source)


def header_of(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a shipped network or a file, without its tensors; {} for one of another project.

    Raises:
        WeightsError: there is no such file, or it is damaged.
    """
    path = find_file(weights)
    return read_header(path) if path.suffix in (OWN, CHAIN) else {}


def trained_on(sources: Iterable[str | os.PathLike[str] | None]) -> str | None:
    """The data set that stored networks state; None if they state none, or different ones.

    The files of shipped networks are not read for it.
    """
    stated = {(catalogue.find(each) or known_header(each)).get("dataset") for each in sources} - {None}
    return stated.pop() if len(stated) == 1 else None


def known_header(weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The header of a shipped network or a file; {} if it cannot be read, which opening it will report."""
    try:
        return header_of(weights) if weights else {}
    except WeightsError:
        return {}


def find_file(weights: str | os.PathLike[str]) -> Path:
    """The file that a name or a path stands for.

    Raises:
        WeightsError: neither exists; the message names the nearest shipped network and the path tried.
    """
    name = weights_name(weights)
    if entry := catalogue.find(name):
        return catalogue.path_of(entry)
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user's home; a name too long
        raise WeightsError(f"no weights file {name}: {one_line(str(error))}") from error
    near = catalogue.nearest(name)
    hint = f"; did you mean the shipped {near}?" if near else ""
    what = f"is a folder{_inside(path)}" if path.is_dir() else "does not exist"
    raise WeightsError(
        f"no weights file {name}: it is not a shipped network, and {path.absolute()} {what}{hint}"
    )


def _inside(folder: Path) -> str:
    """Advice that names up to three weights files in a folder; "" if it has none."""
    files = sorted(file.name for file in folder.glob(f"*{OWN}") if file.is_file())[:3]
    return f"; name a file in it, such as {' or '.join(files)}" if files else ""


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


def read_header(path: Path) -> dict[str, Any]:
    """The header of one of this project's files; fields that have the wrong type are an error.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    header = _read_json(path) if path.suffix == CHAIN else read_about(path)
    if "gate" in header:  # the former name of "kind"
        header.setdefault("kind", header.pop("gate"))
    for name, wanted in FIELDS.items():
        if name in header and not isinstance(header[name], wanted):
            raise WeightsError(f"{path} is damaged: its header has {name} {header[name]!r}")
    return header


def check_header(header: Header, needed: Iterable[str], source: str) -> None:
    """Raise a WeightsError for a header without one of the fields that rebuilding its network takes."""
    if missing := [name for name in needed if name not in header]:
        raise WeightsError(f"{source} is damaged: its header lacks {', '.join(missing)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} is damaged: it holds {type(header).__name__}, expected an object")
    return header


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The kind of policy that tensors hold, and what is needed to rebuild it."""
    kind = next((kind for mark, kind in MARKS.items() if mark in tensors), "plain")
    if kind != "blockdrop":
        return {"kind": kind}
    own = f"{POLICY}net."
    plan = architecture_of({name.removeprefix(own): value for name, value in tensors.items() if own in name})
    return {"kind": kind, **({"policy_depth": plan.depth} if plan else {})}
