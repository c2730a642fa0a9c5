"""The rows of finished runs, merged: seeds are averaged, random skipping stands beside its policy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.common.finished import FinishedRun
from agents.common.kinds import Fits, are_numbers, is_count, is_number, is_text
from skipnet_rl.runs import NOT_COMPARED, PROVENANCE
from skipnet_rl.statistics import half_width, mean_interval, wilson_interval

AVERAGED = (
    "accuracy",
    "loss",
    "return",
    "compute_blocks",
    "compute_flops",
    "compute_flops_std",
    "executed_blocks_mean",
    "executed_blocks_std",
    "unique_routes",
)
SHARED = ("env", "dataset", "split", "n_images")  # values that all runs of a table share
NEEDED: dict[str, Fits] = {  # of a run
    "split": is_text,
    "n_images": is_count,
    "alpha": is_number,
    "seed": is_number,
    "wall_time_s": is_number,
    "command": is_text,
}
NEEDED_IN_ROWS: dict[str, Fits] = {**dict.fromkeys(AVERAGED, is_number), "execution_rate": are_numbers}
NOT_A_FLAG = {
    *NOT_COMPARED,
    *PROVENANCE,
    "seed",
    "eval_every",
    "eval_images",
    "test_images",
}


@dataclass(frozen=True)
class Entry:
    """One policy over its seeds.

    Attributes:
        name: its name in the table.
        runs: its runs, one for each seed.
        rows: its row in each run's result.json.
        random: accuracy of random skipping at its rate, in each run; empty for a policy that is not learned.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    rows: tuple[Mapping[str, Any], ...]
    random: tuple[float, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return means over seeds, their intervals, and how many seeds beat random skipping.

        `"accuracy_ci95"` is the interval [low, high] of the mean accuracy over the images, which are the same
        for every seed. It is computed from the accuracy alone, so that older runs have it, too.
        """
        found: dict[str, Any] = {"name": self.name, "agent": self.runs[0].agent, "n": len(self.rows)}
        for key in AVERAGED:
            found[key], found[f"{key}_seeds_ci95"] = mean_interval([row[key] for row in self.rows])
        n = found["n_images"] = self.runs[0].result["n_images"]
        found["accuracy_ci95"] = list(wilson_interval(n * found["accuracy"], n))
        rates = zip(*(row["execution_rate"] for row in self.rows), strict=True)
        found["execution_rate"] = [sum(rate) / len(rate) for rate in rates]
        found["seeds"] = [run.result["seed"] for run in self.runs]
        found["alpha"] = self.runs[0].result["alpha"]
        found["wall_times_s"] = [run.result["wall_time_s"] for run in self.runs]
        found["wall_time_s"] = mean_interval(found["wall_times_s"])[0]
        found["bound"] = "(bound)" in self.name
        found["command"] = self.runs[0].result["command"]
        if self.random:
            gains = [row["accuracy"] - other for row, other in zip(self.rows, self.random, strict=True)]
            found["random_accuracy"] = mean_interval(self.random)[0]
            found["random_gain"], found["random_gain_seeds_ci95"] = mean_interval(gains)
            found["beats_random"] = self._beats_random()
        return found

    def _beats_random(self) -> int | None:
        """Count the seeds whose interval over images lies above that of random skipping at the same rate.

        Seeds are compared one by one, because their rates differ, and random skipping with them. None if
        everything is executed: random skipping then skips nothing either.
        """
        if all(row["compute_blocks"] > 1 - 1e-9 for row in self.rows):
            return None
        n = self.runs[0].result["n_images"]
        return sum(
            wilson_interval(n * row["accuracy"], n)[0] > wilson_interval(n * other, n)[1]
            for row, other in zip(self.rows, self.random, strict=True)
        )


def wider_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the wider interval (low, high) of those over seeds and images; one seed has only the latter."""
    over_seeds, accuracy = row["accuracy_seeds_ci95"], row["accuracy"]
    if over_seeds is not None and over_seeds > half_width(row["accuracy_ci95"]):  # False for nan
        return accuracy - over_seeds, accuracy + over_seeds
    low, high = row["accuracy_ci95"]
    return low, high


def flags(run: FinishedRun) -> dict[str, Any]:
    """Return the arguments in which two runs must agree to count as seeds of one another.

    Those that are None or empty are left out, so that a run from before a flag existed agrees with one that
    did not give it.
    """
    left_out = NOT_A_FLAG - {"eval_images"} if "greedy_order" in run.result else NOT_A_FLAG  # chosen on them
    return {key: value for key, value in run.args.items() if key not in left_out and value not in (None, [])}


def collect(runs: Sequence[FinishedRun]) -> list[Entry]:
    """Return one entry per policy; runs that differ only in the seed share it.

    Raises:
        ValueError: runs on different environments, data sets or splits, which no table can compare, two of
            the same seed that differ in nothing, or a damaged result.json.
    """
    for run in runs:
        run.check(NEEDED, NEEDED_IN_ROWS)
    for key in SHARED:
        values = sorted({str(run.result[key]) for run in runs})
        if len(values) > 1:
            hint = " (--test-images sets it)" if key == "n_images" else ""
            raise ValueError(
                f"the runs differ in {key}: {', '.join(values)}; compare those that share it{hint}"
            )
    groups: dict[tuple[str, str, str], list[tuple[FinishedRun, Mapping[str, Any]]]] = defaultdict(list)
    seen = set()
    for run in runs:
        for row in shown(run):
            if row["name"] == "all blocks" and run.policy_name != "all blocks":  # each network once
                network = (row.get("weights") or run.args.get("weights"), run.args.get("shortcut"))
                if network in seen:
                    continue
                seen.add(network)
            groups[run.agent, row["name"], json.dumps(flags(run), sort_keys=True)].append((run, row))
    names = labels(list(groups))
    entries = []
    for group, members in groups.items():
        some_runs, rows = zip(*members, strict=True)
        _check_seeds(some_runs)
        entries.append(Entry(names[group], some_runs, rows, random_at_rate(group[1], some_runs)))
    return entries


def _check_seeds(runs: Sequence[FinishedRun]) -> None:
    first: dict[int, FinishedRun] = {}
    for run in runs:
        seed = run.result["seed"]
        if seed in first:
            raise ValueError(f"{first[seed].folder} and {run.folder} differ in nothing, not even the seed")
        first[seed] = run


def shown(run: FinishedRun) -> list[Mapping[str, Any]]:
    """Return the rows of a run, except random skipping at its policy's rate, which is a column."""
    return [row for row in run.result["policies"] if not beside_policy(row)]


def beside_policy(row: Mapping[str, Any]) -> bool:
    """Whether a row is random skipping at the rate of a run's policy; "random 90%" is a static policy."""
    return row["name"] == "random" or row["name"].startswith("random, ")


def random_at_rate(name: str, runs: Sequence[FinishedRun]) -> tuple[float, ...]:
    """Return the accuracy of random skipping at the policy's rate in each run, on the better weights."""
    found = [[row["accuracy"] for row in run.result["policies"] if beside_policy(row)] for run in runs]
    return tuple(map(max, found)) if name == runs[0].policy_name and all(found) else ()


def rounded(value: Any) -> Any:
    """Round a float to three digits, as in the folder names of a search; leave other values as they are."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def labels(keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Name each group; groups of the same name are told apart by the flags in which they differ."""
    differing: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key in keys:
        same = [json.loads(other[2]) for other in keys if other[:2] == key[:2]]
        own = json.loads(key[2])
        differing[key] = {flag: own[flag] for flag in own if any(o.get(flag) != own[flag] for o in same)}

    def named(key: tuple[str, str, str], shown: Callable[[Any], Any]) -> str:
        return " ".join([key[1], *(f"{flag}={shown(value)}" for flag, value in differing[key].items())])

    names = {key: named(key, rounded) for key in keys}
    alike = {name for name in names.values() if list(names.values()).count(name) > 1}
    names = {key: named(key, str) if name in alike else name for key, name in names.items()}
    clashes = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {key: f"{name} ({key[0]})" if name in clashes else name for key, name in names.items()}
