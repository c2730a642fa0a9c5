"""SkipNet's hybrid learning: supervised pre-training (SP), then hybrid REINFORCE (HRL).

    python -m agents.hybrid_reinforce --env SkipResNet110-v0

Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018 (arXiv 1711.09485), section 3.3:

    SP    cross-entropy through straight-through gates, backbone and gates together
    HRL   min E_x E_g [ L(ŷ, y) - α/N Σ_i (1 - g_i) C_i ]
          ∇ = E[∇L] - E Σ_i ∇log p(g_i|x) r_i ,   r_i = -[L - α/N Σ_{j≥i} (1 - g_j) C_j]

Where this differs from the paper: r_i is compared with the other routes of the same image
(leave-one-out baseline; `--routes 1` is the paper's plain estimator), and the schedule is short.
For the paper's: --iterations 10000 --lr 1e-4 --batch-size 128.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from tqdm import tqdm

import envs  # noqa: F401  (registers the ids)
from agents.cli import main_with_named_errors
from agents.report import print_table, write_plots
from skipnet_rl.batchnorm import recalibrate
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import ImageSet, load_images, resolve_dataset
from skipnet_rl.data.imageset import step_generator, training_index
from skipnet_rl.errors import unknown_name
from skipnet_rl.estimators import leave_one_out, score_function_loss
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Policy, RandomSkip
from skipnet_rl.precision import autocast, pick_device, resolve_precision
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import Trajectory, rewards_to_go, rollout
from skipnet_rl.runs import Run, run_folder
from skipnet_rl.weights import build_backbone

STAGES = ("sp", "hrl", "sp+hrl")
BN_MODES = ("train", "frozen", "recalibrate")
VAL_METRICS = ("accuracy", "loss", "return", "compute_blocks", "compute_flops", "unique_routes")


@dataclass(frozen=True)
class Args:
    """Learn which blocks to run, image by image."""

    env: str = "SkipResNet110-v0"
    """a registered id; it names the depth"""
    dataset: str = "auto"
    """auto, rendered-digits or cifar10"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    weights: str = "auto"
    """backbone to start from: a .safetensors file, or auto for the shipped one"""
    shortcut: str = "projection"
    """projection, pad or pool"""
    gate: str = "rnn"
    """rnn: one LSTM shared by all blocks"""
    stage: str = "sp+hrl"
    """sp, hrl or sp+hrl"""
    alpha: float = 1.0
    """weight of the compute saving against the loss"""
    cost: str = "blocks"
    """what a skipped block saves: blocks (1 each) or flops"""
    sp_iterations: int = 20
    """steps of supervised pre-training"""
    iterations: int = 120
    """steps of hybrid REINFORCE"""
    batch_size: int = 128
    """episodes per step"""
    routes: int = 4
    """sampled routes per image in HRL, each the baseline of the others; 1: no baseline"""
    policy_weight: float = 1.0
    """of the score-function term against the cross-entropy"""
    lr: float = 1e-4
    """Adam's learning rate for the backbone"""
    gate_lr: float = 1e-2
    """Adam's learning rate for the gates"""
    bn: str = "recalibrate"
    """batch norm: train (the batch's statistics), frozen (the running ones), or recalibrate: train, and
    estimate the running ones anew after each stage"""
    eval_every: int = 40
    """steps between evaluations on validation images"""
    eval_images: int = 500
    """validation images in each of them"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the hardware has it"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    seed: int = 0
    """of gates, order, augmentation and sampled routes"""
    run_dir: Path | None = None
    """run folder (default: runs/<env>-hybrid-reinforce-<seed>-<time>)"""
    resume: bool = False
    """go on from the checkpoint in --run-dir"""
    debug: bool = False
    """show the traceback of an error"""

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        for kind, name, known in (("stage", self.stage, STAGES), ("bn mode", self.bn, BN_MODES)):
            if name not in known:
                raise unknown_name(kind, name, known)
        if self.routes < 1 or self.batch_size % self.routes:
            raise ValueError(f"--batch-size {self.batch_size} is not a multiple of --routes {self.routes}")
        if not self.plan():
            raise ValueError("no training step is asked for; raise --iterations or --sp-iterations")

    def plan(self) -> list[str]:
        """The stage of each training step."""
        sp = self.sp_iterations if "sp" in self.stage else 0
        hrl = self.iterations if "hrl" in self.stage else 0
        return ["sp"] * sp + ["hrl"] * hrl


class Learner:
    """Backbone, gate and optimizer of one run."""

    def __init__(self, args: Args, net: ResNet, device: torch.device) -> None:
        torch.manual_seed(args.seed)
        self.gate = gate = make_gate(args.gate, net)
        self.model = nn.ModuleDict({"net": net, "gate": gate}).to(device)
        self.start = copy.deepcopy(net)  # for the table's first rows
        self.mdp = RoutingMDP(net, args.alpha, args.cost)
        self.precision = resolve_precision(args.precision, device)
        groups = [
            {"params": net.parameters(), "lr": args.lr},
            {"params": gate.parameters(), "lr": args.gate_lr},
        ]
        self.optimizer = torch.optim.Adam(groups)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def sp_loss(episode: Trajectory) -> Tensor:
    """Supervised pre-training: the cross-entropy; its gradient reaches the gates straight through."""
    return episode.loss.mean()


def hrl_loss(episode: Trajectory, routes: int, policy_weight: float) -> Tensor:
    """Hybrid loss: the backbone follows the cross-entropy, the gates the score function."""
    advantages = leave_one_out(rewards_to_go(episode.rewards), routes)
    return episode.loss.mean() + policy_weight * score_function_loss(episode.log_probs, advantages)


def train_step(learner: Learner, data: ImageSet, step: int, stage: str, args: Args) -> Trajectory:
    """One step of either stage."""
    device = data.images.device
    routes = args.routes if stage == "hrl" else 1
    index = training_index(step, args.batch_size // routes, len(data), args.seed).to(device)
    images, labels = data.training_batch(index, step_generator(args.seed, step, device))
    images = images.repeat_interleave(routes, 0).contiguous(memory_format=torch.channels_last)
    labels = labels.repeat_interleave(routes)
    learner.model.train(args.bn != "frozen")
    mode = "sample" if stage == "hrl" else "straight-through"
    draws = step_generator(args.seed, step, device, stream=2)
    with autocast(learner.precision, device):
        episode = rollout(learner.mdp, learner.gate, images, labels, mode, draws)
        loss = hrl_loss(episode, routes, args.policy_weight) if stage == "hrl" else sp_loss(episode)
    learner.optimizer.zero_grad()
    loss.backward()
    learner.optimizer.step()
    return episode


def train(args: Args) -> dict[str, Any]:
    """Both stages, then the test set once; returns result.json's content."""
    args.check()
    device = pick_device(args.device)
    dataset, reason = resolve_dataset(args.dataset, args.data_dir)
    tqdm.write(f"dataset: {reason}")
    data, val, test = (
        load_images(dataset, split, args.data_dir, args.download).to(device)
        for split in ("train", "val", "test")
    )
    depth = gym.spec(args.env).kwargs["depth"]
    net = build_backbone(depth, len(data.classes), dataset, args.shortcut, args.weights)
    learner = Learner(args, net, device)
    run = Run(run_folder(args.run_dir, args.env, "hybrid-reinforce", args.seed), args, args.resume)
    state = (run.load() if args.resume else None) or {"step": 0, "elapsed": 0.0, "snapshots": {}}
    if state["step"]:
        learner.load_state_dict(state)
    wall_time, snapshots = run_steps(learner, run, data, val.first(args.eval_images), args, state)
    evaluations = final_evaluations(learner, snapshots, test, args)
    result = {
        "env": args.env, "dataset": dataset, "split": "test", "n_images": len(test), "alpha": args.alpha,
        "seed": args.seed, "wall_time_s": wall_time,
        "command": " ".join(["python -m agents.hybrid_reinforce", *sys.argv[1:]]),
        "policies": [done.summary(name) for name, done in evaluations.items()],
    }  # fmt: skip
    run.finish(result)
    write_plots(run, result, learner.mdp.net.stages[1:])
    print_table(result)
    tqdm.write(f"wrote {run.folder}")
    return result


def run_steps(
    learner: Learner, run: Run, data: ImageSet, val: ImageSet, args: Args, state: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Train from the state's step to the end of the plan; seconds, and the weights after each stage."""
    plan, first, snapshots = args.plan(), state["step"], state["snapshots"]
    started = time.perf_counter() - state["elapsed"]
    begun = time.perf_counter()
    bar = tqdm(total=len(plan), initial=first, unit="step", dynamic_ncols=True)
    for step in range(first, len(plan)):
        stage = plan[step]
        episode = train_step(learner, data, step, stage, args)
        done = step + 1
        speed = (done - first) * args.batch_size / (time.perf_counter() - begun)
        metrics = step_metrics(episode, speed)
        bar.set_description(stage.upper())
        bar.set_postfix_str(
            f"loss {metrics['train/loss']:.3f}, acc {metrics['train/accuracy']:.1%}, "
            f"blocks {metrics['train/executed']:.1%}, {speed:.0f} img/s"
        )
        bar.update()
        ends_stage = done == len(plan) or plan[done] != stage
        if ends_stage:
            if args.bn == "recalibrate":
                recalibrate(learner.mdp, learner.gate, data, precision=learner.precision, seed=args.seed)
            snapshots[stage] = {name: value.clone() for name, value in learner.model.state_dict().items()}
            save_weights(
                run.folder / f"{stage}.safetensors", learner.model, {"stage": stage, "env": args.env}
            )
        if ends_stage or done % args.eval_every == 0:
            greedy = evaluate(learner.mdp, learner.gate, val, precision=learner.precision).summary("")
            run.log(done, stage, **metrics, **{f"val/{key}": greedy[key] for key in VAL_METRICS})
            elapsed = time.perf_counter() - started
            run.save({**learner.state_dict(), "step": done, "elapsed": elapsed, "snapshots": snapshots})
    bar.close()
    return time.perf_counter() - started, snapshots


def step_metrics(episode: Trajectory, speed: float) -> dict[str, float]:
    """What the progress bar and TensorBoard show of a training step."""
    return {
        "train/loss": episode.loss.mean().item(),
        "train/accuracy": episode.correct.float().mean().item(),
        "train/return": episode.returns.mean().item(),
        "train/executed": episode.actions.mean().item(),
        "train/images_per_s": speed,
    }


def final_evaluations(
    learner: Learner, snapshots: dict[str, Any], test: ImageSet, args: Args
) -> dict[str, Evaluation]:
    """The table's rows: the starting network, the stages, and random skipping at the learned rate.

    Random skipping is given both networks, the one that was started from and the trained one.
    """
    device = test.images.device

    def row(mdp: RoutingMDP, policy: Policy, mode: str = "greedy") -> Evaluation:
        draws = step_generator(args.seed, 0, device, stream=3)
        return evaluate(mdp, policy, test, mode=mode, generator=draws, precision=learner.precision)

    rows = {}
    for stage, weights in snapshots.items():
        learner.model.load_state_dict(weights)
        rows[stage.upper()] = row(learner.mdp, learner.gate)
    start = RoutingMDP(learner.start.to(device), args.alpha, args.cost)
    at_rate = RandomSkip(list(rows.values())[-1].rate)
    return {
        "all blocks": row(start, AlwaysExecute()),
        "random": row(start, at_rate, "sample"),
        f"random, {stage.upper()} weights": row(learner.mdp, at_rate, "sample"),
        **rows,
    }


if __name__ == "__main__":
    main_with_named_errors(Args, train)
