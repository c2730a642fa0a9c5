"""The lineage of weights: the commands that made them, and how long these took in all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agents.common.finished import FinishedRun
from skipnet_rl.catalogue import find_auto, index, sha256_of
from skipnet_rl.runs import without_places

DOCS = Path(__file__).parent.parent / "docs"
NOT_SHIPPED = "not_shipped.json"  # networks of a data set whose weights are left out


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
    files = sorted(DOCS.glob(f"results-*/{NOT_SHIPPED}"))
    others = (entry for file in files for entry in json.loads(file.read_text(encoding="utf-8")))
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
