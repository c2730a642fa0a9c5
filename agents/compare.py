"""Compare finished runs: accuracy and computation over seeds, against random skipping at the same rate.

    python -m agents.compare runs/… runs/… --out comparison
    python -m agents.compare runs/… --verify --data-dir data

Runs that differ only in the seed share a row: mean, 95 % interval over seeds (Student's t), and interval
over images. "over random" is the gain in accuracy over random skipping at each seed's rate of execution, on
the weights that suit random skipping better. A seed beats random skipping if its interval over images lies
above that of random skipping. `--verify` replays the stored routes through the stored weights, recounts the
cost of the policy, and compares every number of the table.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.figure import Figure

from agents.common.cli import main_with_named_errors
from agents.common.entries import Entry, collect, flags, wider_interval
from agents.common.finished import FinishedRun
from agents.common.kinds import is_number, is_text
from agents.common.tables import comparison, print_comparison, title_of
from skipnet_rl import plots
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data.places import data_folder
from skipnet_rl.device import cpu_by_default, pick_device
from skipnet_rl.evaluate import evaluate
from skipnet_rl.files import whole_file, write_text
from skipnet_rl.normalisation import normalised
from skipnet_rl.policies import AlwaysExecute, policy_macs
from skipnet_rl.progress import image_progress, load_images, progress_bar
from skipnet_rl.terminal import say

ROUNDING = {"accuracy": 1e-3, "loss": 1e-2, "return": 1e-2}  # numbers that depend on logits
EXACT = (  # numbers that follow from the routes, and the policy's own cost
    "compute_blocks",
    "compute_flops",
    "compute_flops_std",
    "executed_blocks_mean",
    "executed_blocks_std",
    "policy_flops",
    "unique_routes",
)
TOLERANCE = {**ROUNDING, **dict.fromkeys(EXACT, 1e-6)}


@dataclass(frozen=True)
class Args:
    """Compare finished runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders"""
    out: Path | None = None
    """folder of comparison.{md,csv,json} and the pictures"""
    verify: bool = False
    """replay of the stored routes, to check every number"""
    data_dir: Path | None = None
    """folder of the data set's official files, for --verify (else each run's own, else $SKIPNET_DATA, else
    ./data)"""
    device: str = "auto"
    """cpu, cuda, or auto, for --verify"""
    debug: bool = False
    """traceback of an error"""


def write_files(
    folder: Path, title: str, rows: Sequence[Mapping[str, Any]], entries: Sequence[Entry]
) -> None:
    """Write comparison.{md,csv,json} and the pictures."""
    write_text(folder / "comparison.md", comparison(title, rows))
    with (
        whole_file(folder / "comparison.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "comparison.json", {"schema": 1, "title": title, "policies": list(rows)})
    for name, figure in pictures(rows, entries).items():
        plots.save_figure(figure, folder / f"{name}.png")


def pictures(rows: Sequence[Mapping[str, Any]], entries: Sequence[Entry]) -> dict[str, Figure]:
    """Draw the frontier and its top; for learned policies, computation saved, skipped layers and alphas."""
    learned = [entry for entry in entries if entry.random]
    drawn = [drawn_row(row) for row in rows]
    figures = {"frontier": plots.frontier(drawn)}
    if learned:
        chosen = [row for row in drawn if "random_gain" in row]
        lowest = min(row["accuracy"] for row in chosen)
        policies = [row for row in drawn if not row["bound"]]
        lowest -= 0.5 * (max(row["accuracy"] for row in policies) - lowest)
        close = [row for row in policies if row["accuracy"] >= lowest]
        figures["frontier_top"] = plots.frontier(close, max(0.0, lowest))
        figures["computation_reduction"] = plots.computation_reduction(chosen)
        figures["skipped_layers"] = plots.skipped_layers(
            {entry.name: entry.runs[0].records()[entry.rows[0]["name"]] for entry in learned}
        )
    if over_alpha := by_alpha(learned):
        figures["alpha_curve"] = plots.alpha_curve(over_alpha)
    return figures


def drawn_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the intervals to draw to a summary: the wider one for accuracy, the one over seeds for FLOPs."""
    accuracy, flops = wider_interval(row), row["compute_flops_seeds_ci95"]
    return {**row, "accuracy_ci95": accuracy, "compute_flops_ci95": flops}


def by_alpha(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the results of policies that were trained at several alphas and are otherwise alike."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        rest = {key: value for key, value in flags(entry.runs[0]).items() if key != "alpha"}
        groups[json.dumps([entry.runs[0].agent, rest], sort_keys=True)].append(entry)
    return [
        {**run.result, "policies": [{**row, "name": f"{row['name']} ({number})" if number else row["name"]}]}
        for number, group in enumerate(group for group in groups.values() if len(group) > 1)
        for entry in group
        for run, row in zip(entry.runs, entry.rows, strict=True)
    ]


def verify(run: FinishedRun, data_dir: Path | None, device: str) -> list[str]:
    """Replay a run's stored routes; returns a line for each number that differs beyond rounding.

    Raises:
        FileNotFoundError, WeightsError: the routes or the weights are missing.
        ValueError: result.json is damaged.
    """
    run.check({"precision": is_text}, dict.fromkeys(TOLERANCE, is_number))
    result, wrong = run.result, []
    images = load_images(result["dataset"], result["split"], run.data_dir(data_dir))
    images = normalised(images, *run.statistics)
    images = images.first(result["n_images"])
    place = pick_device(device)
    records, processes, cost = run.records(), {}, own_macs(run, len(images.classes))
    for row in progress_bar(result["policies"], desc=f"verify {run.folder.name}", unit="policy"):
        played_on = row.get("weights"), tuple(row.get("mix", ()))
        if played_on not in processes:
            processes[played_on] = run.process(len(images.classes), row.get("weights"), row.get("mix"))
            processes[played_on].net.to(place)
        mdp = processes[played_on]
        sized = images.sized(mdp.net.image_size).to(place)
        routes = torch.from_numpy(records[row["name"]].routes)
        with image_progress(row["name"]) as show:
            again = evaluate(
                mdp, AlwaysExecute(), sized, routes=routes, precision=result["precision"], progress=show
            )
        numbers = again.summary(row["name"])
        own = cost if row["name"] in ("SP", run.policy_name) else 0  # other rows play no learned policy
        numbers["policy_flops"] = own / mdp.whole_macs
        numbers["compute_flops"] += numbers["policy_flops"]
        for key, tolerance in TOLERANCE.items():
            if not abs(numbers[key] - row[key]) <= tolerance:
                wrong.append(f"{run.folder}: {row['name']}: {key} is {numbers[key]:.5g}, not {row[key]:.5g}")
    return wrong


def own_macs(run: FinishedRun, num_classes: int) -> int:
    """Count the MACs per image of a run's learned policy; 0 if it learned none."""
    if not run.learned:
        return 0
    _, policy = run.restore(num_classes)
    return policy_macs(policy)


@cpu_by_default()
def main(args: Args) -> list[dict[str, Any]]:
    """Write the files and print the table, then verify the runs if asked to; returns the rows."""
    if not args.runs:
        raise ValueError("no runs given; name one or more run folders")
    data_folder(args.data_dir)  # a mistyped folder is an error even if nothing is read from it
    runs = [FinishedRun.read(folder) for folder in args.runs]
    entries = collect(runs)
    rows = [entry.summary() for entry in entries]
    rows.sort(key=lambda row: -row["compute_flops"])
    title = title_of(runs[0].result)
    if args.out:
        write_files(args.out, title, rows, entries)
    print_comparison(title, rows)
    if args.out:
        say(f"wrote {args.out}")
    if args.verify:
        wrong = [line for run in runs for line in verify(run, args.data_dir, args.device)]
        if wrong:
            raise ValueError("numbers that the stored routes do not reproduce:\n" + "\n".join(wrong))
        checked = sum(len(run.result["policies"]) for run in runs)
        say(f"verified: {checked} rows of {len(runs)} runs, every number within rounding")
    return rows


if __name__ == "__main__":
    main_with_named_errors(Args, main)
