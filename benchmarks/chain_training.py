"""Whether it pays to train the networks of a chain together with its decisions.

    python -m benchmarks.chain_training --data-dir data

The frozen chain is compared with two ways to spend the same steps on the same batches. Hybrid REINFORCE shows
a later network only the images that are deferred to it. The other way asks every network about every image
and minimises the cross-entropy of the mixed answer. Thresholds are then tuned on validation images, for the
same budgets in each case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents import hybrid_reinforce
from agents.common.chains import recorded
from agents.common.cli import main_with_named_errors
from agents.common.setting import Setting
from agents.common.tables import markdown, points, publish
from skipnet_rl.chain import ChainMDP
from skipnet_rl.evaluate import evaluate
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.progress import load_images, progress_bar
from skipnet_rl.recording import replayed
from skipnet_rl.statistics import accuracy_difference, mean_interval
from skipnet_rl.thresholds import tune

FROZEN, HYBRID, EVERY = "frozen", "hybrid", "every image"


@dataclass(frozen=True)
class Options:
    """Train a chain in two ways and compare them with the frozen chain."""

    env: str = "SkipChain14x38-v0"
    """id of the chain"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    budgets: tuple[float, ...] = (0.5, 0.6, 0.7)
    """mean FLOPs per image, relative to the chain's last network"""
    seeds: int = 3
    """runs of each of the two ways"""
    out: Path = Path("runs/benchmarks")
    """folder of the JSON file (docs/benchmarks for docs/policies.md)"""
    debug: bool = False
    """traceback of an error"""


def trained(setting: Setting[hybrid_reinforce.Args], way: str) -> hybrid_reinforce.Learner:
    """Return the chain after all steps of the preset, in evaluation mode."""
    learner = hybrid_reinforce.Learner(setting.args, setting.mdp(), setting.precision)
    learner.held_out = setting.held_out()
    plan = setting.args.plan() if way != FROZEN else []
    if way == EVERY:  # same batches and learning rates, but no decisions to learn
        learner.policies["tune"], plan = (AlwaysExecute(), "greedy"), ["tune"] * len(plan)
    for step, stage in enumerate(progress_bar(plan, desc=f"{way}, seed {setting.args.seed}", unit="step")):
        hybrid_reinforce.train_step(learner, setting.train, step, stage, setting.args)
    learner.model.eval()
    return learner


def tuned(
    setting: Setting[hybrid_reinforce.Args], learner: hybrid_reinforce.Learner, budgets: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Tune thresholds for each budget on the validation images; return their results on the test images."""
    chain, whole = learner.mdp.net, setting.problem.images("val", load_images)
    val, test = (recorded(chain, images, setting.precision) for images in (whole, setting.test))
    asked, rows, alone = replayed(chain), [], test.correct.double().mean(dim=0).tolist()
    for choice in tune(val, ChainMDP(asked).whole_macs, budgets):
        done = evaluate(ChainMDP(asked.mixed(choice.mix)), choice.policy(), test)
        rows.append(
            {
                "budget": choice.budget,
                "val_accuracy": choice.accuracy,
                "accuracy": done.accuracy,
                "compute_flops": done.compute_flops.mean().item(),
                "alone": alone,
                "correct": done.correct,
            }
        )
    return rows


def main(options: Options) -> dict[str, Any]:
    """Train and compare, seed by seed; return the content of the JSON file."""
    args = replace(
        hybrid_reinforce.arguments(["--env", options.env]), env=options.env, data_dir=options.data_dir
    )
    start = Setting.of(args)
    frozen = tuned(start, trained(start, FROZEN), options.budgets)
    rows = [{"way": FROZEN, "seed": None, **row} for row in frozen]
    for seed in range(options.seeds):
        setting = replace(start, args=replace(start.args, seed=seed))
        for way in (HYBRID, EVERY):
            found = tuned(setting, trained(setting, way), options.budgets)
            for row, before in zip(found, frozen, strict=True):
                row["over_frozen"] = accuracy_difference(row["correct"], before["correct"])
            rows += [{"way": way, "seed": seed, **row} for row in found]
        written = {
            "env": options.env,
            "n_images": len(start.test),
            "steps": len(args.plan()),
            "batch_size": args.batch_size,
            "rows": [{key: value for key, value in row.items() if key != "correct"} for row in rows],
        }
        path = options.out / "chain_training.json"
        written = publish("benchmarks.chain_training", path, written, table(written))
    return written


def table(found: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table: means over seeds, in percent and percentage points."""
    columns = ("budget", "networks", "seeds", "FLOPs", "accuracy", "over frozen", "each alone")
    rows = []
    for budget in dict.fromkeys(row["budget"] for row in found["rows"]):
        for way in (FROZEN, HYBRID, EVERY):
            same = [row for row in found["rows"] if (row["budget"], row["way"]) == (budget, way)]
            if same:
                rows.append([f"{100 * budget:.0f} %", way, str(len(same)), *_cells(same)])
    return markdown(columns, rows)


def _cells(same: list[dict[str, Any]]) -> list[str]:
    """Return the cells of one way at one budget: means over seeds."""
    flops = mean_interval([row["compute_flops"] for row in same])[0]
    gains = [row["over_frozen"]["accuracy"] for row in same if "over_frozen" in row]
    single = zip(*(row["alone"] for row in same), strict=True)
    means = [mean_interval(list(values))[0] for values in single]
    return [
        f"{100 * flops:.1f} %",
        points(*mean_interval([row["accuracy"] for row in same])),
        points(*mean_interval(gains), sign="+") if gains else "",
        ", ".join(f"{100 * value:.2f}" for value in means),
    ]


if __name__ == "__main__":
    main_with_named_errors(Options, main)
