"""Checkpoints as safetensors + JSON: no pickle, written atomically, exact.

A checkpoint is a folder with `state.safetensors` (every tensor) and `state.json` (everything else).
It is written next to its destination, synced and renamed, so an interrupted write leaves the previous one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from skipnet_rl.device import cpu_by_default
from skipnet_rl.errors import WeightsError
from skipnet_rl.files import move, remove_folder, sync, whole_file, write_text

TENSORS, TREE = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values as a checkpoint folder."""
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    beside = folder.with_name(folder.name + ".new")
    previous = folder.with_name(folder.name + ".previous")
    remove_folder(beside)
    beside.mkdir(parents=True)
    _save_tensors(tensors, beside / TENSORS)
    (beside / TREE).write_text(json.dumps(tree), encoding="utf-8")
    for written in (beside / TENSORS, beside / TREE, beside):
        sync(written)
    if folder.exists():
        remove_folder(previous)
        move(folder, previous)
    move(beside, folder)
    sync(folder.parent)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint folder, or the previous one if a write was interrupted.

    Raises:
        WeightsError: there is none, or its files cannot be read.
    """
    previous = folder.with_name(folder.name + ".previous")
    source = folder if folder.exists() or not previous.exists() else previous
    try:
        tensors = {name: value.to(device) for name, value in _read_file(source / TENSORS).items()}
        tree = json.loads((source / TREE).read_text(encoding="utf-8"))
        return _unpack(tree, tensors)
    except FileNotFoundError as error:
        raise WeightsError(f"no checkpoint in {folder}: {error.filename or error} is missing") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the checkpoint in {source} is damaged: {error}") from error


def write_json(path: Path, value: Any, *, new: bool = False) -> None:
    """Write JSON atomically; NaN and infinities, which JSON lacks, become null.

    Args:
        path: the file.
        value: nested dicts, lists and plain values.
        new: refuse to replace a file, see `files.whole_file`.

    Raises:
        FileExistsError: `new`, and the file is there.
    """
    write_text(path, json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n", new=new)


def save_weights(path: Path, module: nn.Module, about: dict[str, Any]) -> None:
    """Write a module's weights in half precision as one safetensors file, atomically.

    `about` goes into the header as one JSON string: with several keys the order of the header, and so
    the bytes of the file, would change from run to run.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        half = value.half() if value.is_floating_point() else value
        if not torch.equal(half.isfinite(), value.isfinite()):
            raise WeightsError(
                f"layer {name} has values beyond half precision, up to {value.abs().max():.3g}"
            )
        tensors[name] = half.contiguous().cpu()
    with whole_file(path) as beside:
        _save_tensors(tensors, beside, {"about": json.dumps(about)})


def load_weights(path: Path, module: nn.Module, prefix: str = "") -> None:
    """Fill a module with the weights of a safetensors file.

    Args:
        path: the file.
        module: what to fill; float16 tensors become its dtype.
        prefix: take only the file's tensors under this prefix (`"net."` of a gated network).

    Raises:
        WeightsError: the file is missing or damaged, or does not fit; the message names the first layer that
            does not, and both shapes.
    """
    stored = read_tensors(path)
    if any(name.startswith(prefix) for name in stored):
        stored = {name[len(prefix) :]: v for name, v in stored.items() if name.startswith(prefix)}
    fill(module, stored, str(path))


def parts_of(path: Path) -> list[Path]:
    """The files that hold some weights: all n of `name-00001-of-0000n.safetensors`, else the path itself.

    Raises:
        WeightsError: the path is that of a later part.
    """
    part = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", path.name)
    if part is None or not int(part[3]):
        return [path]
    name, count = part[1], int(part[3])
    if int(part[2]) != 1:
        raise WeightsError(f"{path} is one of {count} parts; give the first, {part_name(name, 0, count)}")
    return [path.with_name(part_name(name, number, count)) for number in range(count)]


def part_name(name: str, number: int, count: int) -> str:
    """Name of the file with part `number`, from 0, of `count`, as files on the Hugging Face Hub are named."""
    return f"{name}-{number + 1:05}-of-{count:05}.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name; for the first of several parts, those of all parts.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    return _merged(path, _read_file)


def read_about(path: Path) -> dict[str, Any]:
    """The header that `save_weights` wrote; {} if there is none.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    return _merged(path, _stated)


def _merged(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The entries that `read` finds in a file; for the first of several parts, those of all parts."""
    found: dict[str, Any] = {}
    for part in parts_of(path):
        if not part.is_file():
            hint = "give the path of a file, or 'auto'" if part == path else f"{path.name} needs it"
            raise WeightsError(f"no weights file {part}; {hint}")
        try:
            found |= read(part)
        except (SafetensorError, ValueError) as error:
            raise WeightsError(f"{part} is not a readable safetensors file: {error}") from error
    return found


def _stated(path: Path) -> dict[str, Any]:
    """The header of one file."""
    with safe_open(path, "pt") as file:
        stated = json.loads((file.metadata() or {}).get("about", "{}"))
    if not isinstance(stated, dict):
        raise ValueError("its header is not a JSON object")
    return stated


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a module that they fit exactly.

    A missing count of batches is accepted: nothing here reads it, and other projects' files lack it.

    Raises:
        WeightsError: they do not fit; the message names `source`, the first layer and both shapes.
    """
    expected = module.state_dict()
    for name, value in expected.items():
        if name not in tensors and name.endswith("num_batches_tracked"):
            continue
        if name not in tensors:
            raise WeightsError(f"{source} does not fit: layer {name} {tuple(value.shape)} is missing in it")
        if tensors[name].shape != value.shape:
            came, wanted = tuple(tensors[name].shape), tuple(value.shape)
            raise WeightsError(f"{source} does not fit: layer {name} has shape {came}, expected {wanted}")
    if surplus := sorted(set(tensors) - set(expected)):
        has = f"{surplus[0]} {tuple(tensors[surplus[0]].shape)}"
        raise WeightsError(f"{source} does not fit: it has a layer {has} that the network lacks")
    module.load_state_dict({**expected, **tensors})


@cpu_by_default()
def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU; nothing keeps it open or mapped, so that it can be replaced."""
    return load(path.read_bytes())


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # the library's own name for a full disk
        raise OSError(f"cannot write {path}: {error}") from error


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{name}"  # keys may contain slashes
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs, since an optimizer's keys are integers
        return {"dict": [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    (kind, value), *_ = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    return value


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
