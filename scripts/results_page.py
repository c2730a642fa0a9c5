"""The generated parts of docs/results.md: networks, their commands, paired differences, chains."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from agents import cascade
from agents.common.tables import markdown, points
from scripts import paired
from scripts.picture import GATES, mega_flops
from skipnet_rl.statistics import half_width, wilson_interval

COLUMNS = ("network", "what it is", "MFLOPs", "FLOPs", "accuracy", "weights")
WIDTH = 110  # characters of a line of a command
STAGES = {"sp": "SP", "skips": "trained with skips"}


def parts(
    networks: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Any],
    chains: Mapping[str, Any],
) -> dict[str, str]:
    """Return each generated part of the page, keyed by the name in its comment.

    Args:
        networks: entries of the index of shipped networks, then of not_shipped.json.
        pairs: content of paired.json by data set; their float32 accuracies replace those of the index.
        chains: content of chains.json by the name of its part, see `results.parts_with_chains`.
    """
    measured = {name: one for found in pairs.values() for name, one in found["networks"].items()}
    return {
        "networks": table(networks, measured),
        "commands": commands(networks),
        **{f"paired-{name}": paired.table(found) for name, found in pairs.items()},
        **{f"chains-{name}": cascade.table(found) for name, found in chains.items()},
    }


def table(networks: Iterable[Mapping[str, Any]], measured: Mapping[str, Any]) -> str:
    """Return the networks as a Markdown table, the shipped ones first; `measured` ones replace their own."""
    evaluated = [entry for entry in networks if "test_accuracy" in entry]
    evaluated.sort(key=lambda entry: ("file" not in entry, entry["dataset"], entry["depth"]))
    return markdown(COLUMNS, [_cells(entry, measured.get(entry["name"])) for entry in evaluated])


def _cells(entry: Mapping[str, Any], found: Mapping[str, Any] | None) -> list[str]:
    plain, n = mega_flops(entry["depth"]), entry["test_images"]
    flops = found["mega_flops"] if found else plain * entry.get("compute_flops", 1)
    accuracy = found["accuracy"] if found else entry["test_accuracy"]
    half = half_width(wilson_interval(n * accuracy, n))
    return [
        entry["name"],
        what(entry),
        f"{flops:.1f}",
        f"{100 * flops / plain:.1f} %",
        f"{points(accuracy, half)} %",
        "shipped" if "file" in entry else "weights not shipped",
    ]


def what(entry: Mapping[str, Any]) -> str:
    """Describe a network: plain or its gate, its stage, and the number of teachers in its command."""
    flags = {words[0]: words[1:] for words in by_flag(entry["command"])}
    parts = ["plain" if entry["kind"] == "plain" else GATES[entry["kind"]][0]]
    ending = entry["stage"].rpartition("-")[2]
    if ending == "hrl":
        parts.append(f"α = {entry['alpha']:g}")
    elif ending == "long":
        parts += [f"{epochs} epochs" for epochs in flags["--epochs"]]
    elif ending in STAGES:
        parts.append(STAGES[ending])
    count = len(flags.get("--teacher", ()))
    return ", ".join([*parts, *([f"{count} teacher{'s' * (count > 1)}"] if count else [])])


def by_flag(command: str) -> list[list[str]]:
    """Split a command into groups of words: those before the first flag, then each flag with its values."""
    groups: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return groups


def commands(networks: Sequence[Mapping[str, Any]]) -> str:
    """Return a block of shell commands per depth and data set; each command follows those it depends on."""
    known = {entry["name"]: entry for entry in networks}
    ordered = sorted(in_order(known), key=_family)  # stable
    blocks = []
    for (depth, dataset), members in groupby(ordered, key=_family):
        lines = "\n".join(line for entry in members for line in (_title(entry), command(entry, known)))
        blocks.append(f"### ResNet-{depth}, {dataset}\n\n```bash\n{lines}\n```\n")
    return "\n".join(blocks)


def in_order(known: Mapping[str, Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return the networks in order of dependency: each after those that its command reads."""
    placed: dict[str, Mapping[str, Any]] = {}

    def place(entry: Mapping[str, Any]) -> None:
        for name in entry.get("after", ()):
            place(known[name])
        placed.setdefault(entry["name"], entry)

    for entry in known.values():
        place(entry)
    return placed.values()


def _family(entry: Mapping[str, Any]) -> tuple[int, str]:
    """Depth (from the name, since networks that were not evaluated do not list it) and data set."""
    return int(entry["name"].split("-")[0].removeprefix("resnet")), entry["dataset"]


def _title(entry: Mapping[str, Any]) -> str:
    if "wall_time_s" not in entry:
        return f"# {entry['name']}"
    return f"# {entry['name']}: {entry['wall_time_s'] / 3600:.2f} hours, {entry['machine']}"


def command(entry: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the command of a network, wrapped for a shell.

    Weights that are not shipped are read from `runs/<name>`, the folder that their own command writes.
    """
    lines = [""]
    for words in by_flag(f"{entry['command']} --run-dir runs/{entry['name']}"):
        text = shlex.join(_place(word, known) for word in words)
        if len(lines[-1]) + len(text) > WIDTH - 3:
            lines.append("   ")
        lines[-1] += f" {text}" if lines[-1] else text
    return " \\\n".join(lines)


def _place(word: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Replace the name of weights that are not shipped by their file; return any other word unchanged."""
    entry = known.get(word)
    if entry is None or "file" in entry:
        return word
    gated = "sp" if re.search(r"--preset \S+-sp\b", entry["command"]) else "hrl"
    return f"runs/{word}/{'weights' if 'agents.pretrain' in entry['command'] else gated}.safetensors"
