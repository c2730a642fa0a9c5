"""A trained gate at other compute budgets, without training anew.

    python -m agents.evaluate --run-dir runs/…                      # greedy, a range of biases
    python -m agents.evaluate --run-dir runs/… --mode sample --biases -1 0 1

A bias on the gates' log-odds makes every decision a little more or less willing to execute. It traces
accuracy against FLOPs. Read it on validation images; the test set is for the bias chosen there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from tqdm import tqdm

import envs  # noqa: F401  (registers the ids)
from agents.cli import main_with_named_errors
from agents.report import print_table
from skipnet_rl import plots
from skipnet_rl.checkpoint import load_weights, write_json
from skipnet_rl.data import load_images
from skipnet_rl.data.imageset import step_generator
from skipnet_rl.evaluate import evaluate
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Biased
from skipnet_rl.precision import pick_device, resolve_precision
from skipnet_rl.resnet import ResNet


@dataclass(frozen=True)
class Args:
    """Evaluate the gates of a run of agents.hybrid_reinforce at several biases."""

    run_dir: Path
    """the run's folder"""
    stage: str = "hrl"
    """whose weights: hrl or sp"""
    biases: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
    """added to the gates' log-odds"""
    mode: str = "greedy"
    """greedy (threshold) or sample"""
    split: str = "val"
    """val, test or train"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware has it"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """of sampled routes"""
    debug: bool = False
    """show the traceback of an error"""


def dataset_of(run_dir: Path) -> str:
    """The data set that a finished run was trained on.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    if not (run_dir / "result.json").is_file():
        raise FileNotFoundError(f"no run in {run_dir} that came to its end: it has no result.json")
    return json.loads((run_dir / "result.json").read_text())["dataset"]


def trained(run_dir: Path, stage: str, num_classes: int) -> tuple[RoutingMDP, Any, dict[str, Any]]:
    """Decision process, gate and arguments of a run, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: the folder holds no run of agents.hybrid_reinforce.
        WeightsError: the stage's weights are missing or do not fit.
    """
    if not (run_dir / "args.json").is_file():
        raise FileNotFoundError(f"no run in {run_dir}: it has no args.json")
    about = json.loads((run_dir / "args.json").read_text())
    if "gate" not in about:
        raise FileNotFoundError(f"{run_dir} is not a run of agents.hybrid_reinforce: it has no gate")
    net = ResNet(gym.spec(about["env"]).kwargs["depth"], num_classes, about["shortcut"])
    gate = make_gate(about["gate"], net)
    weights = run_dir / f"{stage}.safetensors"
    load_weights(weights, net, prefix="net.")
    load_weights(weights, gate, prefix="gate.")
    return RoutingMDP(net.eval(), about["alpha"], about["cost"]), gate.eval(), about


def trace(args: Args) -> dict[str, Any]:
    """Evaluate every bias; writes budget-<split>-<mode>.json and a plot into the run's folder."""
    device = pick_device(args.device)
    precision = resolve_precision(args.precision, device)
    dataset = dataset_of(args.run_dir)
    images = load_images(dataset, args.split, args.data_dir)
    mdp, gate, about = trained(args.run_dir, args.stage, len(images.classes))
    mdp.net.to(device)
    images, gate = images.sized(mdp.net.image_size).to(device), gate.to(device)
    rows = []
    for bias in tqdm(sorted(args.biases), desc="bias", unit="policy"):
        draws = step_generator(args.seed, 0, device, stream=3)
        policy = Biased(gate, bias)
        done = evaluate(mdp, policy, images, mode=args.mode, generator=draws, precision=precision)
        rows.append({**done.summary(f"bias {bias:+g}"), "bias": bias})
    rows.append(evaluate(mdp, AlwaysExecute(), images, precision=precision).summary("all blocks"))
    found = {
        "schema": 1, "env": about["env"], "dataset": dataset, "split": args.split,
        "n_images": len(images), "alpha": about["alpha"], "seed": args.seed, "mode": args.mode,
        "stage": args.stage, "policies": rows,
    }  # fmt: skip
    name = f"budget-{args.split}-{args.mode}"
    write_json(args.run_dir / f"{name}.json", found)
    plots.save_figure(plots.trade_off(rows), args.run_dir / "plots" / f"{name}.png")
    print_table(found)
    tqdm.write(f"wrote {args.run_dir / name}.json")
    return found


if __name__ == "__main__":
    main_with_named_errors(Args, trace)
