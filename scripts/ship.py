"""Copy the weights of a finished run into the package and describe them in the index.

    python -m scripts.ship runs/results/resnet38-0/hrl-1.0 resnet38-cifar10-hrl
    python -m scripts.ship runs/… my-sp --stage sp                           # run with both stages
    python -m scripts.ship runs/… my-net --stage backbone-distilled          # auto prefers a plain one

Every field of the entry comes from the files of the run, so the index states what was measured and how.
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

LARGEST = 4 * 2**20  # bytes per file; larger networks are shipped in parts
INDEX = "index.json"
NOT_SHIPPED = Path("docs/results-cifar10/not_shipped.json")  # networks whose weights are left out


@dataclass(frozen=True)
class Options:
    """Ship the weights of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """run folder"""
    name: Annotated[str, tyro.conf.Positional]
    """name of the shipped network; an existing entry of that name is replaced"""
    stage: str | None = None
    """stage of hybrid REINFORCE, sp or hrl (default: the last); for a plain network its stage in the index
    (default: backbone, which --weights auto finds)"""
    debug: bool = False
    """traceback of an error"""


class Lineage(NamedTuple):
    """The commands that made some weights, in order, their total seconds, and the machine of the last one."""

    commands: list[str]
    seconds: float
    machine: str


NOTHING = Lineage([], 0.0, "")


def lineage(run: FinishedRun) -> Lineage:
    """Return the lineage of a run's final weights, including that of its initial gates and its teachers."""
    before, result = lineage_before(run), run.result
    for weights in (run.args.get("gate_weights"), *_teachers(run)):
        before = _together(before, _lineage_of(weights, run))
    commands = [*before.commands, without_places(shlex.split(result["command"]))]
    return Lineage(commands, before.seconds + result["wall_time_s"], result["machine"])


def _together(one: Lineage, other: Lineage) -> Lineage:
    """Merge two lineages.

    If one contains the other, it is returned. Otherwise the seconds are added, so time that both share counts
    twice.
    """
    for whole, part in ((one, other), (other, one)):
        if set(part.commands) <= set(whole.commands):
            return whole
    commands = list(dict.fromkeys([*one.commands, *other.commands]))
    return Lineage(commands, one.seconds + other.seconds, other.machine)


def run_of(weights: str | None) -> FinishedRun | None:
    """Return the run whose folder holds a weights file; None for any other file or name, and for None."""
    folder = Path(weights).parent if weights else None
    return FinishedRun.read(folder) if folder and (folder / "result.json").is_file() else None


def lineage_before(run: FinishedRun) -> Lineage:
    """Return the lineage of the weights that a run started from.

    Raises:
        ValueError: they are neither in a run folder nor shipped.
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
    raise ValueError(f"{run.folder} used {weights}, which is neither in a run folder nor shipped")


def _entry_of(weights: str, run: FinishedRun) -> dict[str, Any] | None:
    """Return the entry of a name, of `auto`, or of a file with the contents of a shipped network."""
    if weights == "auto":
        return find_auto(run.depth, run.result["dataset"], run.args["shortcut"])
    digest = sha256_of(Path(weights)) if Path(weights).is_file() else weights
    return next((each for each in known().values() if digest in (each["name"], each.get("sha256"))), None)


def known() -> dict[str, dict[str, Any]]:
    """Return the entries of all named networks: the shipped ones and those of not_shipped.json."""
    others = json.loads(NOT_SHIPPED.read_text(encoding="utf-8")) if NOT_SHIPPED.is_file() else []
    return {entry["name"]: entry for entry in (*index(), *others)}


def commands_of(name: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the commands that made a network, in order, as far back as there are entries."""
    entry = entries.get(name)
    if entry is None:
        return []
    before = [command for other in entry["after"] for command in commands_of(other, entries)]
    return list(dict.fromkeys([*before, entry["command"]]))


def names_of(run: FinishedRun) -> dict[str, str]:
    """Map each weights argument of a run, as its command gives it, to the name of that network.

    A file that belongs to no entry keeps its path.
    """
    started = [run.args["weights"], run.args.get("gate_weights"), *_teachers(run)]
    given = dict.fromkeys(weights for weights in started if weights not in (None, "none"))
    entries = {weights: _entry_of(weights, run) for weights in given}
    return {weights: entry["name"] if entry else weights for weights, entry in entries.items()}


def check_whole(run: FinishedRun) -> None:
    """Raise a ValueError if a run was tested on only a part of the images."""
    count, whole = run.result["n_images"], run.result.get("split_images")
    if whole is None:  # agents.pretrain tests on all; older runs only have the flag
        whole = math.inf if run.args.get("test_images") else count
    if count < whole:
        raise ValueError(f"{run.folder} was tested on only {count} images; expected all: raise --test-images")


def describe(run: FinishedRun, stage: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the weights file of a run and its entry in the index.

    Raises:
        ValueError: the run is not one of a network, has no such stage, or was tested on a part of the images.
    """
    check_whole(run)
    args, result = run.args, run.result
    gated = result["agent"] in ("hybrid_reinforce", "finetune")
    if not gated and result["agent"] != "pretrain":
        raise ValueError(f"{run.folder} is a run of agents.{result['agent']}, whose policies are not shipped")
    stage = stage or (run.policy_name.lower() if gated else "backbone")
    wanted = stage.upper() if gated else "all blocks"
    row = next((row for row in result["policies"] if row["name"] == wanted), None)
    if row is None:
        raise ValueError(f"{run.folder} has no row {wanted!r}; leave out --stage to ship its last stage")
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
    """Copy weights into the package, in parts of similar size if the file is too large.

    Returns:
        path of the file, or of its first part.

    Raises:
        ValueError: a part would be too large; nothing is written.
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
    """Split a safetensors file into the contents of several, each with the same header."""
    with safe_open(source, "pt") as file:
        about = file.metadata()
    tensors = dict(sorted(read_tensors(source).items()))  # safetensors does not keep their order
    ends = np.cumsum([tensor.nbytes for tensor in tensors.values()])
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for (key, tensor), end in zip(tensors.items(), ends, strict=True):
        parts[(end - 1) * count // ends[-1]][key] = tensor
    return [save(part, about) for part in parts]


def main(options: Options) -> None:
    """Copy the weights and write the index."""
    source, entry = describe(FinishedRun.read(options.run), options.stage)
    before = [other for other in index() if other["name"] == options.name]
    others = [other for other in index() if other["name"] != options.name]
    same = ("depth", "dataset", "shortcut", "stage")
    for other in others:
        if entry["stage"] in PLAIN and all(other[key] == entry[key] for key in same):
            raise ValueError(
                f"--weights auto could not tell {options.name} from {other['name']}; give another --stage"
            )
    file = copy_in(source, options.name)
    entry = {"name": options.name, "file": file.name, "sha256": sha256_of(file), **entry}
    write_json(FOLDER / INDEX, [*others, entry])
    for replaced in before:  # the replaced network may have had more parts
        for part in {*parts_of(FOLDER / replaced["file"])} - {*parts_of(file)}:
            part.unlink(missing_ok=True)
    say(f"{entry['name']}: {entry['test_accuracy']:.2%} of {entry['test_images']:,} images")


if __name__ == "__main__":
    main_with_named_errors(Options, main)
