"""SkipNet's hybrid learning: supervised pre-training (SP), then hybrid REINFORCE (HRL).

    python -m agents.hybrid_reinforce --env SkipResNet110-v0

Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018 (arXiv 1711.09485), section 3.3:

    SP    cross-entropy through straight-through gates, backbone and gates together
    HRL   min E_x E_g [ L(ŷ, y) - α/N Σ_i (1 - g_i) C_i ]
          ∇ = E[∇L] - E Σ_i ∇log p(g_i|x) r_i ,   r_i = -[L - α/N Σ_{j≥i} (1 - g_j) C_j]

Where this differs from the paper: r_i is compared with the other routes of the same image
(leave-one-out baseline), and the schedule is short. For the paper's: --routes 1 --baseline none
--schedule constant --gate-lr 1e-4 --lr 1e-4 --batch-size 128 --iterations 10000. Its warning example,
HRL from nothing: --stage hrl, and --weights none where the backbone is to be untrained too.
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
from torch.nn import functional as F
from tqdm import tqdm

import envs  # noqa: F401  (registers the ids)
from agents.cli import main_with_named_errors
from agents.report import print_table, write_plots
from skipnet_rl.batchnorm import recalibrate
from skipnet_rl.checkpoint import save_weights
from skipnet_rl.data import Images, load_images, resolve_dataset
from skipnet_rl.data.imageset import step_generator, training_index
from skipnet_rl.errors import unknown_name
from skipnet_rl.estimators import BASELINES, advantages, entropy, score_function_loss
from skipnet_rl.evaluate import Evaluation, evaluate
from skipnet_rl.gates import make_gate
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Exploring, Policy, RandomSkip, ValueBaseline
from skipnet_rl.precision import autocast, pick_device, resolve_precision
from skipnet_rl.resnet import Architecture, ResNet
from skipnet_rl.rollout import RELAXATIONS, Trajectory, rewards_to_go, rollout
from skipnet_rl.runs import Run, run_folder
from skipnet_rl.weights import build_backbone

STAGES = ("sp", "hrl", "sp+hrl")
BN_MODES = ("train", "frozen", "recalibrate")
SCHEDULES = ("constant", "linear")
VAL_METRICS = ("accuracy", "loss", "return", "compute_blocks", "compute_flops", "unique_routes")
NOTHING_SKIPPED = (
    "nothing is skipped: to this network a skipped block costs more than alpha/N pays. Make it used to skips "
    "(--warmup-iterations 400, or a backbone of agents.pretrain --survival 0.5), or raise --alpha"
)


@dataclass(frozen=True)
class Args:
    """Learn which blocks to run, image by image."""

    env: str = "SkipResNet110-v0"
    """a registered id; it names the depth"""
    dataset: str = "auto"
    """auto, rendered-digits, cifar10, cifar100, svhn, imagenet or imagefolder"""
    data_dir: Path | None = None
    """folder of the data set's official files (else $SKIPNET_DATA, else ./data)"""
    download: bool = False
    """fetch missing files through torchvision"""
    weights: str = "auto"
    """backbone to start from: a file (.safetensors, or a plain PyTorch state_dict), auto for the shipped
    one, torchvision for torchvision's, or none"""
    shortcut: str = "projection"
    """projection, pad or pool"""
    gate: str = "rnn"
    """rnn (one LSTM shared by all blocks), ff1 or ff2 (a small convolutional network per block)"""
    stage: str = "sp+hrl"
    """sp, hrl or sp+hrl"""
    alpha: float = 1.0
    """weight of the compute saving against the loss"""
    cost: str = "blocks"
    """what a skipped block saves: blocks (1 each) or flops"""
    sp_iterations: int = 20
    """steps of supervised pre-training"""
    relaxation: str = "straight-through"
    """what a gate is in SP: straight-through, or soft"""
    warmup_iterations: int = 0
    """steps with random routes before either stage; they make the backbone used to skips"""
    warmup_rate: float = 0.8
    """p(execute) of those routes"""
    iterations: int = 110
    """steps of hybrid REINFORCE"""
    batch_size: int = 128
    """episodes per step"""
    routes: int = 4
    """sampled routes per image in HRL"""
    baseline: str = "leave-one-out"
    """of the score function: none, batch-mean, leave-one-out (of an image's routes) or value (learned)"""
    exploration: float = 0.0
    """p(execute) is kept between this floor and one minus it while sampling"""
    entropy: float = 0.0
    """weight of the gates' entropy, a bonus"""
    policy_weight: float = 1.0
    """of the score-function term against the cross-entropy"""
    lr: float = 3e-4
    """Adam's learning rate for the backbone"""
    gate_lr: float = 1e-2
    """Adam's learning rate for the gates"""
    schedule: str = "linear"
    """of both learning rates in HRL: constant (the paper), or linear to zero"""
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
        for kind, name, known in (
            ("stage", self.stage, STAGES),
            ("bn mode", self.bn, BN_MODES),
            ("schedule", self.schedule, SCHEDULES),
            ("baseline", self.baseline, BASELINES),
            ("relaxation", self.relaxation, RELAXATIONS),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if self.routes < 1 or self.batch_size % self.routes:
            raise ValueError(f"--batch-size {self.batch_size} is not a multiple of --routes {self.routes}")
        if self.baseline == "leave-one-out" and self.routes == 1:
            raise ValueError("--baseline leave-one-out needs --routes 2 or more; for one: --baseline none")
        if not self.plan():
            raise ValueError("no training step is asked for; raise --iterations or --sp-iterations")

    def plan(self) -> list[str]:
        """The stage of each training step."""
        sp = self.sp_iterations if "sp" in self.stage else 0
        hrl = self.iterations if "hrl" in self.stage else 0
        return ["warmup"] * self.warmup_iterations + ["sp"] * sp + ["hrl"] * hrl

    def decay(self, step: int) -> float:
        """Factor of the learning rates at a step of the plan."""
        plan = self.plan()
        if self.schedule == "constant" or plan[step] != "hrl":
            return 1.0
        return (len(plan) - step) / plan.count("hrl")


class Learner:
    """Backbone, gate and optimizer of one run."""

    def __init__(self, args: Args, net: ResNet, device: torch.device) -> None:
        torch.manual_seed(args.seed)
        self.gate = gate = make_gate(args.gate, net)
        self.model = nn.ModuleDict({"net": net, "gate": gate}).to(device)
        self.start = copy.deepcopy(net)  # for the table's first rows
        self.mdp = mdp = RoutingMDP(net, args.alpha, args.cost)
        self.critic = ValueBaseline(mdp).to(device) if args.baseline == "value" else None
        self.policies: dict[str, tuple[Policy, str]] = {
            "warmup": (RandomSkip(args.warmup_rate), "sample"),
            "sp": (gate, args.relaxation),
            "hrl": (Exploring(gate, args.exploration), "sample"),
        }
        self.precision = resolve_precision(args.precision, device)
        groups = [
            {"params": net.parameters(), "base_lr": args.lr},
            {"params": gate.parameters(), "base_lr": args.gate_lr},
        ]
        if self.critic:
            groups.append({"params": self.critic.parameters(), "base_lr": args.gate_lr})
        self.optimizer = torch.optim.Adam(groups)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        critic = self.critic.state_dict() if self.critic else {}
        return {
            "model": self.model.state_dict(),
            "critic": critic,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])


def sp_loss(episode: Trajectory) -> Tensor:
    """Supervised pre-training: the cross-entropy; its gradient reaches the gates through the relaxation."""
    return episode.loss.mean()


def hrl_loss(episode: Trajectory, args: Args) -> Tensor:
    """Hybrid loss: the backbone follows the cross-entropy, the gates the score function."""
    to_go = rewards_to_go(episode.rewards)
    weights = advantages(to_go, args.baseline, args.routes, episode.values)
    loss = episode.loss.mean() + args.policy_weight * score_function_loss(episode.log_probs, weights)
    if args.entropy:
        loss = loss - args.entropy * entropy(episode.gate_logits).sum(dim=1).mean()
    if episode.values is not None:
        loss = loss + F.mse_loss(episode.values, to_go)
    return loss


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """One step of any stage."""
    device = data.device
    routes = args.routes if stage == "hrl" else 1
    index = training_index(step, args.batch_size // routes, len(data), args.seed).to(device)
    images, labels = data.training_batch(index, step_generator(args.seed, step, device))
    images = images.repeat_interleave(routes, 0).contiguous(memory_format=torch.channels_last)
    labels = labels.repeat_interleave(routes)
    learner.model.train()
    learner.mdp.net.train(args.bn != "frozen")
    policy, mode = learner.policies[stage]
    critic = learner.critic if stage == "hrl" else None
    draws = step_generator(args.seed, step, device, stream=2)
    with autocast(learner.precision, device):
        episode = rollout(learner.mdp, policy, images, labels, mode, draws, critic=critic)
        loss = hrl_loss(episode, args) if stage == "hrl" else sp_loss(episode)
    for group in learner.optimizer.param_groups:
        group["lr"] = group["base_lr"] * args.decay(step)
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
    depth = gym.spec(args.env).kwargs["depth"]
    size = Architecture.of_depth(depth).image_size
    data, val, test = (
        load_images(dataset, split, args.data_dir, args.download, size).to(device)
        for split in ("train", "val", "test")
    )
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
    if evaluations[list(evaluations)[-1]].rate == 1 and "hrl" in args.stage:
        tqdm.write(NOTHING_SKIPPED)
    tqdm.write(f"wrote {run.folder}")
    return result


def run_steps(
    learner: Learner, run: Run, data: Images, val: Images, args: Args, state: dict[str, Any]
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
            end_stage(learner, run, data, stage, args, snapshots)
        if ends_stage or done % args.eval_every == 0:
            greedy = evaluate(learner.mdp, learner.gate, val, precision=learner.precision).summary("")
            run.log(done, stage, **metrics, **{f"val/{key}": greedy[key] for key in VAL_METRICS})
            elapsed = time.perf_counter() - started
            run.save({**learner.state_dict(), "step": done, "elapsed": elapsed, "snapshots": snapshots})
    bar.close()
    return time.perf_counter() - started, snapshots


def end_stage(
    learner: Learner, run: Run, data: Images, stage: str, args: Args, snapshots: dict[str, Any]
) -> None:
    """Settle the batch norms; keep the weights of a stage whose gates were trained."""
    settle(learner, data, stage, args)
    if stage != "warmup":
        snapshots[stage] = {name: value.clone() for name, value in learner.model.state_dict().items()}
        about = {"stage": stage, "env": args.env, "gate": args.gate}
        save_weights(run.folder / f"{stage}.safetensors", learner.model, about)


def settle(learner: Learner, data: Images, stage: str, args: Args) -> None:
    """Estimate the batch norms' statistics for the routes to come, where `--bn` asks for it."""
    if args.bn == "recalibrate":
        policy = AlwaysExecute() if stage == "warmup" else learner.gate
        recalibrate(learner.mdp, policy, data, precision=learner.precision, seed=args.seed)


def step_metrics(episode: Trajectory, speed: float) -> dict[str, float]:
    """What the progress bar and TensorBoard show of a training step."""
    return {
        "train/loss": episode.loss.mean().item(),
        "train/accuracy": episode.correct.float().mean().item(),
        "train/return": episode.returns.mean().item(),
        "train/executed": episode.actions.mean().item(),
        "train/least_executed": episode.actions.mean(dim=0).min().item(),  # what a batch norm saw least of
        "train/images_per_s": speed,
    }


def final_evaluations(
    learner: Learner, snapshots: dict[str, Any], test: Images, args: Args
) -> dict[str, Evaluation]:
    """The table's rows: the starting network, the stages, and random skipping at the learned rate.

    Random skipping is given both networks, the one that was started from and the trained one.
    """
    device = test.device

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
