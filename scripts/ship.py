"""Put a finished run's weights into the package, with what the index says of them.

    python -m scripts.ship runs/results/resnet38-0/hrl-1.0 resnet38-cifar10-hrl
    python -m scripts.ship runs/… my-sp --stage sp                           # of a run with both stages
    python -m scripts.ship runs/… my-net --stage backbone-distilled          # auto prefers a plain one

Every field of the entry comes from the run's files, so the index says what was measured and how.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from skipnet_rl.catalogue import FOLDER, PLAIN, find_auto, index, sha256_of
from skipnet_rl.checkpoint import part_name, parts_of, read_tensors, write_json
from skipnet_rl.files import whole_file
from skipnet_rl.runs import without_places
from skipnet_rl.stored import read_header
from skipnet_rl.terminal import say

LARGEST = 4 * 2**20  # bytes of a file; larger networks are shipped in parts
INDEX = "index.json"
NOT_SHIPPED = Path("docs/results-cifar10/not_shipped.json")  # entries of networks whose weights are left out


@dataclass(frozen=True)
class Options:
    """Ship the weights of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """its folder"""
    name: Annotated[str, tyro.conf.Positional]
    """what it is to be called; an entry of that name is replaced"""
    stage: str | None = None
    """of hybrid REINFORCE: sp or hrl (default: the last); of a plain network what the index calls it
    (default: backbone, which --weights auto finds)"""


class Lineage(NamedTuple):
    """The commands that made some weights, first to last, their seconds, and the machine of the last one."""

    commands: list[str]
    seconds: float
    machine: str


NOTHING = Lineage([], 0.0, "")


def lineage(run: FinishedRun) -> Lineage:
    """Lineage of the weights that a run ended with, with those of its gates and its teacher."""
    before, result = lineage_before(run), run.result
    for weights in (run.args.get("gate_weights"), *_teachers(run)):
        before = _together(before, _lineage_of(weights, run))
    commands = [*before.commands, without_places(shlex.split(result["command"]))]
    return Lineage(commands, before.seconds + result["wall_time_s"], result["machine"])


def _together(one: Lineage, other: Lineage) -> Lineage:
    """Lineage of two networks; one that continued the other contains it. Other shared time counts twice."""
    for whole, part in ((one, other), (other, one)):
        if set(part.commands) <= set(whole.commands):
            return whole
    commands = list(dict.fromkeys([*one.commands, *other.commands]))
    return Lineage(commands, one.seconds + other.seconds, other.machine)


def run_of(weights: str | None) -> FinishedRun | None:
    """The run here that left a file of weights; None for one from elsewhere, a shipped name, or no file."""
    folder = Path(weights).parent if weights else None
    return FinishedRun.read(folder) if folder and (folder / "result.json").is_file() else None


def lineage_before(run: FinishedRun) -> Lineage:
    """Lineage of the weights that a run started from.

    Raises:
        ValueError: they are neither those of a run that is still there nor shipped ones.
    """
    return _lineage_of(run.args["weights"], run)


def _teachers(run: FinishedRun) -> list[str | None]:
    return (run.args.get("teacher") or [run.args["weights"]]) if run.args.get("distillation") else []


def _lineage_of(weights: str | None, run: FinishedRun) -> Lineage:
    if weights in (None, "none"):
        return NOTHING
    if origin := run_of(weights):
        return lineage(origin)
    if entry := _entry_of(weights, run):
        return Lineage(commands_of(entry["name"], known()), entry["wall_time_s"], entry["machine"])
    raise ValueError(f"{run.folder} needed {weights}, which is neither of a run here nor shipped weights")


def _entry_of(weights: str, run: FinishedRun) -> dict[str, Any] | None:
    """The entry of a name, of `auto`, or of a file with the bytes of a shipped network."""
    if weights == "auto":
        return find_auto(run.depth, run.result["dataset"], run.args["shortcut"])
    digest = sha256_of(Path(weights)) if Path(weights).is_file() else weights
    return next((each for each in known().values() if digest in (each["name"], each.get("sha256"))), None)


def known() -> dict[str, dict[str, Any]]:
    """The networks that have a name: the shipped ones, and those that are described beside the results."""
    others = json.loads(NOT_SHIPPED.read_text(encoding="utf-8")) if NOT_SHIPPED.is_file() else []
    return {entry["name"]: entry for entry in (*index(), *others)}


def commands_of(name: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The commands that made a network, first to last, as far as its predecessors have entries."""
    entry = entries.get(name)
    if entry is None:
        return []
    before = [command for other in entry["after"] for command in commands_of(other, entries)]
    return list(dict.fromkeys([*before, entry["command"]]))


def names_of(run: FinishedRun) -> dict[str, str]:
    """The networks that a run started from, as its command gives them, and their names; a file that is not
    shipped keeps its path."""
    started = [run.args["weights"], run.args.get("gate_weights"), *_teachers(run)]
    given = dict.fromkeys(weights for weights in started if weights not in (None, "none"))
    entries = {weights: _entry_of(weights, run) for weights in given}
    return {weights: entry["name"] if entry else weights for weights, entry in entries.items()}


def check_whole(run: FinishedRun) -> None:
    """Raise a ValueError for a run that was tested on some images alone."""
    count, whole = run.result["n_images"], run.result.get("split_images")
    if whole is None:  # agents.pretrain reads all; an older run says by its flag that it did not
        whole = math.inf if run.args.get("test_images") else count
    if count < whole:
        raise ValueError(f"{run.folder} was tested on some images alone, {count}; raise --test-images")


def describe(run: FinishedRun, stage: str | None) -> tuple[Path, dict[str, Any]]:
    """The file, and what the index says of it."""
    check_whole(run)
    args, result = run.args, run.result
    gated = result["agent"] in ("hybrid_reinforce", "finetune")
    if not gated and result["agent"] != "pretrain":
        raise ValueError(f"{run.folder} is of agents.{result['agent']}, whose policies are not shipped")
    stage = stage or (run.policy_name.lower() if gated else "backbone")
    wanted = stage.upper() if gated else "all blocks"
    row = next((row for row in result["policies"] if row["name"] == wanted), None)
    if row is None:
        raise ValueError(f"{run.folder} has no row {wanted!r}; leave --stage out for its last one")
    source = run.folder / (f"{stage}.safetensors" if gated else "weights.safetensors")
    about = {
        "kind": read_header(source)["kind"] if gated else "plain",
        "depth": run.depth,
        "dataset": result["dataset"],
        "shortcut": args["shortcut"],
        "stage": stage,
    }
    if gated:
        about["alpha"] = result["alpha"]
        about["compute_flops"] = round(row["compute_flops"], 5)
    origin, names = lineage(run), names_of(run)
    command = [names.get(word, word) for word in shlex.split(result["command"])]
    return source, {
        **about,
        "test_accuracy": row["accuracy"],
        "test_images": result["n_images"],
        "seed": result["seed"],
        "command": without_places(command, run_dir=False),
        "wall_time_s": round(origin.seconds),
        "machine": origin.machine,
        "after": list(names.values()),
    }


def copy_in(source: Path, name: str) -> Path:
    """Copy weights into the package, in parts of about one size where they are too large.

    Returns:
        the file, or the first of the parts.

    Raises:
        ValueError: parts cannot be made small enough; nothing is written.
    """
    count = math.ceil(source.stat().st_size / LARGEST)
    if count == 1:
        contents = {f"{name}.safetensors": source.read_bytes()}
    else:
        contents = {part_name(name, number, count): part for number, part in enumerate(split(source, count))}
    largest = max(map(len, contents.values()))
    if largest > LARGEST:
        raise ValueError(f"{source} has parts of {largest:,} bytes, more than {LARGEST:,}")
    for file, content in contents.items():
        with whole_file(FOLDER / file) as beside:
            beside.write_bytes(content)
    return FOLDER / next(iter(contents))


def split(source: Path, count: int) -> list[bytes]:
    """The tensors of a safetensors file, by name, as the contents of several; each has its header."""
    with safe_open(source, "pt") as file:
        about = file.metadata()
    tensors = dict(sorted(read_tensors(source).items()))  # safetensors reads them in any order
    ends = np.cumsum([tensor.nbytes for tensor in tensors.values()])
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for (key, tensor), end in zip(tensors.items(), ends, strict=True):
        parts[(end - 1) * count // ends[-1]][key] = tensor
    return [save(part, about) for part in parts]


def main(options: Options) -> None:
    """Copy the file, write the index."""
    source, entry = describe(FinishedRun.read(options.run), options.stage)
    before = [other for other in index() if other["name"] == options.name]
    others = [other for other in index() if other["name"] != options.name]
    same = ("depth", "dataset", "shortcut", "stage")
    for other in others:
        if entry["stage"] in PLAIN and all(other[key] == entry[key] for key in same):
            raise ValueError(f"--weights auto would find {other['name']} or this one; give another --stage")
    file = copy_in(source, options.name)
    entry = {"name": options.name, "file": file.name, "sha256": sha256_of(file), **entry}
    write_json(FOLDER / INDEX, [*others, entry])
    for replaced in before:  # by another number of files
        for part in {*parts_of(FOLDER / replaced["file"])} - {*parts_of(file)}:
            part.unlink(missing_ok=True)
    say(f"{entry['name']}: {entry['test_accuracy']:.2%} of {entry['test_images']:,} images")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
