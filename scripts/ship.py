"""Copy the weights of a finished run into the package and describe them in the index.

    python -m scripts.ship runs/results/resnet38-0/hrl-1.0 resnet38-cifar10-hrl
    python -m scripts.ship runs/… my-sp --stage sp                           # run with both stages
    python -m scripts.ship runs/… my-net --stage backbone-distilled          # auto prefers a plain one

Every field of the entry comes from the files of the run, so the index states what was measured and how.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from agents.common.cli import main_with_named_errors
from agents.common.finished import FinishedRun
from scripts.lineage import lineage, names_of
from skipnet_rl.catalogue import FOLDER, PLAIN, index, sha256_of
from skipnet_rl.checkpoint import part_name, parts_of, read_tensors, write_json
from skipnet_rl.files import whole_file
from skipnet_rl.runs import without_places
from skipnet_rl.stored import read_header
from skipnet_rl.terminal import say

LARGEST = 4 * 2**20  # bytes per file; larger networks are shipped in parts
INDEX = "index.json"


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
