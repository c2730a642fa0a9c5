"""Collect the runs of one network, over all seeds, into the rows of results.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from agents.common.distillation import SHARE
from agents.common.entries import Entry, flags, random_at_rate
from agents.common.finished import FinishedRun
from scripts import results
from scripts.lineage import lineage, lineage_before, run_of
from scripts.picture import mega_flops
from scripts.ship import check_whole
from skipnet_rl import plots
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data import load_images
from skipnet_rl.resnet import ResNet
from skipnet_rl.stored import read_header

STARTS = {"weights", "gate_weights", "teacher"}  # flags whose files differ from seed to seed


def add(name: str, folders: Sequence[Path], out: Path, data_dir: Path | None = None) -> None:
    """Put the runs of a row into results.json, then make the table and the pictures.

    Args:
        name: name of the row, such as `"resnet38"`.
        folders: run folders of one seed; those of other seeds are found beside them.
        out: folder of results.json.
        data_dir: folder of the data set, for the picture with its images.
    """
    seeds = [_seeds(folder) for folder in folders]
    plain, *hrl = [runs for runs in seeds if runs[0].agent != "pretrain"] or seeds[-1:]
    hrl.sort(key=lambda runs: (runs[0].result["alpha"], _title(runs[0])))
    hybrid = [_entry(runs, "HRL") for runs in hrl]
    alone = plain[0].agent == "pretrain"  # a network without gates
    entries = [_entry(plain if alone else _by_backbone(plain), "all blocks")]
    entries += [] if alone else [_entry(plain, "SP"), *hybrid]
    found = [_summary(name, entry) for entry in entries]
    stored = [row for row in results.read(out) if row["row"] != name]
    same = ("name", "depth", "command")
    if any(all(row[key] == found[0][key] for key in same) for row in stored):
        del found[0]  # the row of another gate already has this network
    write_json(out / "results.json", {"schema": 1, "rows": stored + found})
    for title, figure in _pictures(hybrid, data_dir).items() if hybrid else ():
        plots.save_figure(figure, out / f"{name}-{title}.png")
    results.draw(out)
    results.draw_chains(out)


def _pictures(entries: Sequence[Entry], data_dir: Path | None) -> dict[str, Figure]:
    """Draw the layers skipped at each alpha, and easy and hard images for the gates with the most routes."""
    records = {_title(entry.runs[0]): entry.runs[0].records()["HRL"] for entry in entries}
    varied, record = max(
        zip(entries, records.values(), strict=True), key=lambda pair: pair[0].rows[0]["unique_routes"]
    )
    first = varied.runs[0]
    images = load_images(first.result["dataset"], "test", data_dir)
    return {
        "skipped_layers": plots.skipped_layers(records),
        "easy_and_hard": plots.easy_and_hard(images, record, ResNet(first.depth).stages[1:]),
    }


def _title(run: FinishedRun) -> str:
    """Return the name of an HRL run within its row."""
    return f"α = {run.result['alpha']:g}{_gain(run)}{results.distilled(_distillation(run))}"


def _gain(run: FinishedRun) -> str:
    """Return the gain of the gates' initial weights as text, from the run that made the gates."""
    if origin := run_of(run.args.get("weights" if run.agent == "finetune" else "gate_weights")):
        return _gain(origin)
    gain = run.args.get("gate_gain", 1)
    return "" if gain == 1 else f", gain {gain:g}"


def _distillation(run: FinishedRun) -> float:
    """Return the teachers' share of the loss; only hybrid REINFORCE has a teacher without naming one."""
    alone = run.agent != "hybrid_reinforce" and not run.args.get("teacher")
    return 0.0 if alone else run.args.get("distillation", 0.0)


def _share_of_teacher(command: str) -> float:
    """Return the teachers' share of the loss in a command: `--distillation`, or the default."""
    words = shlex.split(command.replace("=", " "))
    if "--distillation" in words:
        return float(words[words.index("--distillation") + 1])
    return SHARE if "--teacher" in words else 0.0


def _seeds(folder: Path) -> list[FinishedRun]:
    """Return a run and its repetitions with other seeds, which may also start from other files.

    Raises:
        ValueError: a repetition has other flags, or was tested on a part of the images.
    """
    row, _, _ = folder.parent.name.rpartition("-")
    found = folder.parent.parent.glob(f"{row}-*/{folder.name}/result.json")
    runs = sorted((FinishedRun.read(path.parent) for path in found), key=lambda run: run.result["seed"])
    for run in runs:
        check_whole(run)
        if differing := _differing(runs[0], run):
            raise ValueError(f"{runs[0].folder} and {run.folder} differ in more than the seed: {differing}")
    return runs


def _differing(one: FinishedRun, other: FinishedRun) -> str:
    """Return the names of the flags in which two runs differ, except those of the files they start from."""
    left, right = flags(one), flags(other)
    names = sorted((left.keys() & right.keys()) - STARTS)  # older runs lack newer flags
    return ", ".join(name for name in names if left[name] != right[name])


def _by_backbone(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the first run of each backbone; with a shipped backbone all seeds have the same one."""
    first: dict[str, FinishedRun] = {}
    for run in runs:
        first.setdefault(run.args["weights"], run)
    return list(first.values())


def _entry(runs: Sequence[FinishedRun], name: str) -> Entry:
    rows = tuple(next(row for row in run.result["policies"] if row["name"] == name) for run in runs)
    return Entry(name, tuple(runs), rows, random_at_rate(name, runs))


def _summary(name: str, entry: Entry) -> dict[str, Any]:
    first = entry.runs[0]
    plain = entry.name == "all blocks"
    origin = lineage_before(first) if plain and first.agent != "pretrain" else lineage(first)
    made_by = origin.commands[-1] if origin.commands else ""  # no command made an untrained network
    share = _share_of_teacher(made_by) if plain else _distillation(first)
    found = entry.summary()
    return {
        **found,
        "row": name,
        "dataset": first.result["dataset"],
        "depth": first.depth,
        "gate": None if plain else read_header(first.weights())["kind"] + _gain(first),
        "alpha": found["alpha"] if entry.name == "HRL" else None,
        "distillation": share,
        "mega_flops": mega_flops(first.depth) * found["compute_flops"],
        "command": origin.commands,
        "wall_time_s": origin.seconds,
        "machine": origin.machine,
    }
