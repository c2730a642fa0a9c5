"""Ablation of hybrid REINFORCE: one change at a time, at an equal budget.

    python -m benchmarks.ablation --dataset cifar10 --data-dir data
    python -m benchmarks.ablation --dataset rendered-digits --only reference "plain REINFORCE"

Every variant but "no warm-up" starts from the same network: the shipped ResNet-20, prepared for skips by
`--warmup` steps. Variants have three seeds each, and equal numbers of training steps and episodes per step.
They are compared on the whole validation split with greedy gates; the test set is not read. Finished runs are
kept in the JSON file, so an interrupted benchmark continues.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.common.cli import main_with_named_errors
from agents.common.keeper import settle
from agents.common.setting import LOOK
from agents.common.tables import markdown
from agents.hybrid_reinforce import Args, Learner, train_step
from skipnet_rl.checkpoint import write_json
from skipnet_rl.data import Images, load_images
from skipnet_rl.device import pick_device, resolve_precision
from skipnet_rl.errors import unknown_name
from skipnet_rl.evaluate import evaluate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute
from skipnet_rl.problem import load_network
from skipnet_rl.resnet import ResNet
from skipnet_rl.runs import provenance
from skipnet_rl.statistics import mean_interval
from skipnet_rl.terminal import say
from skipnet_rl.tolerance import absence_costs

SHARED: dict[str, Any] = {"batch_size": 128, "lr": 3e-4, "gate_lr": 1e-2, "bn_images": 4_000}
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "no warm-up": {"warmup": False},
    "HRL without SP": {"sp": 0.0},
    "SP alone": {"sp": 1.0},
    "soft SP": {"relaxation": "soft"},
    "plain REINFORCE": {"baseline": "none", "routes": 1},
    "batch-mean baseline": {"baseline": "batch-mean", "routes": 1},
    "value baseline": {"baseline": "value", "routes": 1},
    "exploration floor 0.05": {"exploration": 0.05},
    "entropy bonus 0.01": {"entropy": 0.01},
    "bn train": {"bn": "train"},
    "bn frozen": {"bn": "frozen"},
}


@dataclass(frozen=True)
class Options:
    """Change one part of agents.hybrid_reinforce at a time."""

    dataset: Literal["rendered-digits", "cifar10"] = "rendered-digits"
    """data set"""
    data_dir: Path | None = None
    """folder of the data set's official files"""
    warmup: int = 400
    """steps of preparation before any variant"""
    steps: int = 150
    """training steps of each run, all stages together"""
    seeds: int = 3
    """runs per variant"""
    alpha: float = 3.0
    """weight of the compute saving"""
    only: tuple[str, ...] = ()
    """names of variants (default: all)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    out: Path | None = None
    """JSON file (default: runs/ablation-<dataset>.json)"""
    debug: bool = False
    """traceback of an error"""


def arguments(variant: dict[str, Any], seed: int, options: Options) -> Args:
    """Return the agent's arguments; unless the variant says otherwise, SP gets a sixth of the steps."""
    change = {key: value for key, value in variant.items() if key not in ("warmup", "sp")}
    sp = int(options.steps * variant.get("sp", 1 / 6))
    steps: dict[str, Any] = {"sp_iterations": sp, "iterations": options.steps - sp, "tune_iterations": 0}
    return Args(
        env="SkipResNet20-v0",
        dataset=options.dataset,
        alpha=options.alpha,
        seed=seed,
        **SHARED,
        **steps,
        **change,
    )


def train(args: Args, net: ResNet, data: Images) -> Learner:
    """Train for every step of the plan."""
    images = data.first(LOOK // 4)
    costs = absence_costs(RoutingMDP(net), images) if args.warmup_iterations else None
    mdp = RoutingMDP(net, args.alpha, args.cost)
    learner = Learner(args, mdp, resolve_precision(args.precision, data.device), costs=costs)
    plan = args.plan()
    for step, stage in enumerate(plan):
        train_step(learner, data, step, stage, args)
        if step + 1 == len(plan) or plan[step + 1] != stage:
            settle(learner, data, stage, args)
    return learner


def warmed_up(data: Images, options: Options) -> ResNet:
    """Return the shipped network, prepared for skips, on the images' device."""
    net = load_network("auto", 20, len(data.classes), options.dataset).to(data.device)
    args = Args(
        env="SkipResNet20-v0", warmup_iterations=options.warmup, sp_iterations=0, iterations=0, **SHARED
    )
    return train(args, net, data).mdp.net


def run(args: Args, net: ResNet, data: Images, val: Images) -> dict[str, float]:
    """Train a copy of a network; return its figures on the validation split."""
    started = time.perf_counter()
    learner = train(args, copy.deepcopy(net), data)
    done = evaluate(learner.mdp, learner.gate, val, precision=learner.precision).summary("")
    kept = ("accuracy", "loss", "return", "compute_blocks", "compute_flops", "unique_routes")
    return {**{key: done[key] for key in kept}, "seconds": time.perf_counter() - started}


def table(found: dict[str, Any]) -> str:
    """Return the result as a Markdown table: mean and 95 % interval over seeds."""
    rows = []
    for name, runs in found["variants"].items():
        cells = []
        for key, scale, digits in (("accuracy", 100, 2), ("compute_blocks", 100, 1), ("return", 1, 3)):
            mean, half = mean_interval([scale * one[key] for one in runs.values()])
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
        routes, _ = mean_interval([one["unique_routes"] for one in runs.values()])
        rows.append([name, *cells, f"{routes:.0f}", str(len(runs))])
    return markdown(["variant", "accuracy", "blocks", "return", "routes", "n"], rows)


def main(options: Options) -> None:
    """Run what is missing, then print the table.

    Raises:
        ValueError: an unknown variant.
        SystemExit: the JSON file was made with other options.
    """
    for name in options.only:
        if name not in VARIANTS:
            raise unknown_name("variant", name, VARIANTS)
    out = options.out or Path("runs") / f"ablation-{options.dataset}.json"
    shared = ("dataset", "warmup", "steps", "alpha")
    setting = {
        "split": "val",
        "preparation": "cheapest blocks",
        **{key: getattr(options, key) for key in shared},
    }
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {**setting, "variants": {}}
    if {key: found.get(key) for key in setting} != setting:
        raise SystemExit(f"error: {out} was made with other options; give another --out")
    device = pick_device(options.device)
    precision = resolve_precision("auto", device)
    data, val = (
        load_images(options.dataset, split, options.data_dir).to(device) for split in ("train", "val")
    )
    plain = load_network("auto", 20, len(data.classes), options.dataset).to(device)
    warm = warmed_up(data, options)
    for name, net in (("shipped weights", plain), ("after the warm-up", warm)):
        done = evaluate(RoutingMDP(net, options.alpha), AlwaysExecute(), val, precision=precision)
        found[name] = {"accuracy": done.accuracy, "return": done.returns.mean().item()}
        say(f"{name}, all blocks: {found[name]}")
    for seed in range(options.seeds):
        for name in options.only or VARIANTS:
            runs = found["variants"].setdefault(name, {})
            if str(seed) not in runs:
                net = warm if VARIANTS[name].get("warmup", True) else plain
                runs[str(seed)] = run(arguments(VARIANTS[name], seed, options), net, data, val)
                write_json(out, {**found, **provenance()})
                rounded = {key: round(value, 4) for key, value in runs[str(seed)].items()}
                say(f"{name} {seed} {rounded}")
    say(table(found))


if __name__ == "__main__":
    main_with_named_errors(Options, main)
