"""Rows of several finished runs brought together: seeds averaged, random skipping beside its policy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.common.finished import FinishedRun
from skipnet_rl.runs import NOT_COMPARED
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
SHARED = ("env", "dataset", "split", "n_images")  # what runs in one table have in common
NOT_A_FLAG = {
    *NOT_COMPARED,
    "seed",
    "versions",
    "commit",
    "machine",
    "eval_every",
    "eval_images",
    "test_images",
}

UNLESS_GIVEN = [("compile", False)]  # flags that older runs lack, with what they had in effect


@dataclass(frozen=True)
class Entry:
    """One policy over its seeds.

    Attributes:
        name: as the table calls it.
        runs: the runs that it stands in.
        rows: its entry in each of their result.json.
        random: accuracies of random skipping at its rate in each run; empty for a row that is no
            learned policy.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    rows: tuple[Mapping[str, Any], ...]
    random: tuple[float, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Means over seeds, their intervals, and whether it beats random skipping.

        `"accuracy_ci95"` is the interval [low, high] of the mean accuracy over the images, of which every
        seed has the same; it comes from the accuracy, so runs of any age have it.
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
        found["wall_time_s"] = mean_interval([run.result["wall_time_s"] for run in self.runs])[0]
        found["bound"] = "(bound)" in self.name
        found["command"] = self.runs[0].result["command"]
        if self.random:
            gains = [row["accuracy"] - other for row, other in zip(self.rows, self.random, strict=True)]
            found["random_accuracy"] = mean_interval(self.random)[0]
            found["random_gain"], found["random_gain_seeds_ci95"] = mean_interval(gains)
            found["beats_random"] = self._beats_random()
        return found

    def _beats_random(self) -> int | None:
        """The seeds whose interval over images lies above that of random skipping at the same rate.

        Seed by seed, because each comes to its own rate, at which random skipping is better or worse. None
        where everything is executed, so that random skipping skips nothing either.
        """
        if all(row["compute_blocks"] > 1 - 1e-9 for row in self.rows):
            return None
        n = self.runs[0].result["n_images"]
        return sum(
            wilson_interval(n * row["accuracy"], n)[0] > wilson_interval(n * other, n)[1]
            for row, other in zip(self.rows, self.random, strict=True)
        )


def wider_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The wider of a summary's intervals over seeds and images, (low, high); one seed has only the latter."""
    over_seeds, accuracy = row["accuracy_seeds_ci95"], row["accuracy"]
    if over_seeds is not None and over_seeds > half_width(row["accuracy_ci95"]):  # nan is not
        return accuracy - over_seeds, accuracy + over_seeds
    low, high = row["accuracy_ci95"]
    return low, high


def flags(run: FinishedRun) -> dict[str, Any]:
    """The arguments that make two runs comparable as seeds of one another.

    Those that are None, empty or as in `UNLESS_GIVEN` are left out, so a flag that a run is too old to have
    is as one that was not given.
    """
    left_out = NOT_A_FLAG - {"eval_images"} if "greedy_order" in run.result else NOT_A_FLAG  # chosen on them
    return {
        key: value
        for key, value in run.args.items()
        if key not in left_out and value not in (None, []) and (key, value) not in UNLESS_GIVEN
    }


def collect(runs: Sequence[FinishedRun]) -> list[Entry]:
    """One entry per policy; seeds of the same flags together.

    Raises:
        ValueError: runs on different environments, data sets or splits, which no table can compare, or two
            of the same seed that differ in nothing.
    """
    for key in SHARED:
        values = sorted({str(run.result[key]) for run in runs})
        if len(values) > 1:
            hint = ", by --test-images" if key == "n_images" else ""
            raise ValueError(
                f"the runs differ in {key}: {', '.join(values)}; compare those that share it{hint}"
            )
    groups: dict[tuple[str, str, str], list[tuple[FinishedRun, Mapping[str, Any]]]] = defaultdict(list)
    seen = set()
    for run in runs:
        for row in shown(run):
            if row["name"] == "all blocks" and run.policy_name != "all blocks":  # where it starts, once each
                network = (row.get("weights") or run.args["weights"], run.args.get("shortcut"))
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
    """The rows of a run that stand for themselves; random skipping at a policy's rate stands beside it."""
    return [row for row in run.result["policies"] if not beside_policy(row)]


def beside_policy(row: Mapping[str, Any]) -> bool:
    """Whether a row is random skipping at the rate of a run's policy; "random 90%" is a policy of its own."""
    return row["name"] == "random" or row["name"].startswith("random, ")


def random_at_rate(name: str, runs: Sequence[FinishedRun]) -> tuple[float, ...]:
    """Accuracy of random skipping at the rate of the run's own policy, on the better of the weights."""
    found = [[row["accuracy"] for row in run.result["policies"] if beside_policy(row)] for run in runs]
    return tuple(map(max, found)) if name == runs[0].policy_name and all(found) else ()


def rounded(value: Any) -> Any:
    """A flag's value to three digits, as in the folders' names of a search; what is no float as it is."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def labels(keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """A name for each group; where two would have the same, the flags in which they differ are added."""
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
