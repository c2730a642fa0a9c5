"""SkipNet's hybrid learning: supervised pre-training (SP), then hybrid REINFORCE (HRL).

    python -m agents.hybrid_reinforce --env SkipResNet110-v0

Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018 (arXiv 1711.09485), section 3.3:

    SP    cross-entropy through straight-through gates, backbone and gates together
    HRL   min E_x E_g [ L(ŷ, y) - α/N Σ_i (1 - g_i) C_i ]
          ∇ = E[∇L] - E Σ_i ∇log p(g_i|x) r_i ,   r_i = -[L - α/N Σ_{j≥i} (1 - g_j) C_j]

Where this differs from the paper: r_i is compared with the other routes of the same image
(leave-one-out baseline), the schedule is short, and in HRL's last steps the backbone alone trains, on
the thresholded routes that it will be given at test time; --stage tune gives it more of these,
--distillation teachers, and --gate fixed one route for all images. For the paper's: --routes 1 --baseline
none --schedule constant --gate-lr 1e-4 --lr 1e-4 --batch-size 128 --sp-iterations 10000 --iterations 10000
--tune-iterations 0 --alpha 0.1. Its warning example, HRL from nothing: --stage hrl, and --weights none where
the backbone is to be untrained too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from agents.checks import check_routes
from agents.cli import main_with_named_errors
from agents.distillation import Teacher, check_teachers, distilled, load_teachers
from agents.loop import learn
from agents.optimizers import OPTIMIZERS, resume
from agents.setting import CommonArgs, Setting
from skipnet_rl.batchnorm import BATCH_SIZE, recalibrate
from skipnet_rl.checkpoint import load_weights, save_weights
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_generator, training_index
from skipnet_rl.errors import WeightsError, unknown_name
from skipnet_rl.estimators import BASELINES, advantages, entropy, score_function_loss
from skipnet_rl.evaluate import evaluate, most_frequent
from skipnet_rl.gated import FIXED, StoredPolicy, empty_policy, read_header, restore_checkpoint
from skipnet_rl.gates import GATES
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, Exploring, Policy, RandomSkip, ValueBaseline
from skipnet_rl.precision import autocast, cpu_by_default, resolve_precision
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import Trajectory, rewards_to_go, rollout
from skipnet_rl.weights import weights_path

STAGES = ("sp", "hrl", "sp+hrl", "tune")
RELAXATIONS = ("straight-through", "soft")
FILES = {"sp": "sp.safetensors", "hrl": "hrl.safetensors", "tune": "hrl.safetensors"}  # after which stage
BN_MODES = ("train", "frozen", "recalibrate")
SCHEDULES = ("constant", "linear", "cosine")
NOTHING_SKIPPED = (
    "nothing is skipped: to this network a skipped block costs more than alpha/N pays. Make it used to skips "
    "(--warmup-iterations 400, or a backbone of agents.pretrain --survival 0.5), or raise --alpha"
)


@dataclass(frozen=True)
class Args(CommonArgs):
    """Learn which blocks to run, image by image."""

    alpha: float = 2.0
    """weight of the compute saving against the loss"""
    gate: str = "rnn"
    """rnn (one LSTM shared by all blocks), ff1 or ff2 (a small convolutional network per block); or, with
    --stage tune, fixed: for all images the route that the network of --gate-weights takes most often on the
    validation images, the control of what choosing by the image is worth"""
    gate_gain: float = 1.0
    """factor on the gates' initial weights: at 1 they begin all but blind to the image"""
    gate_weights: str | None = None
    """gates to start from, of the same kind unless that is fixed: a file of a gated network, or the name of a
    shipped one (default: new ones, near "execute")"""
    stage: str = "sp+hrl"
    """sp, hrl, sp+hrl, or tune: only the steps that end HRL (--tune-iterations), by the gates of
    --gate-weights; the flags for routes, baseline, entropy and the gates' learning do not act in them"""
    sp_iterations: int = 4
    """steps of supervised pre-training"""
    relaxation: str = "straight-through"
    """what a gate is in SP: straight-through, or soft"""
    warmup_iterations: int = 0
    """steps with random routes before either stage; they make the backbone used to skips"""
    warmup_rate: float = 0.8
    """p(execute) of those routes"""
    iterations: int = 56
    """steps of hybrid REINFORCE"""
    tune_iterations: int = 32
    """steps after it in which the backbone trains on the gates' thresholded routes, part of HRL"""
    batch_size: int = 96
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
    distillation: float = 0.0
    """share of the backbone's loss that asks for the teacher's predictions instead of the labels"""
    teacher: tuple[str, ...] = ()
    """network of --distillation, all blocks executed, or several: files, names of shipped ones, or auto, of
    the same shortcut (default: the network that the run starts from)"""
    teacher_depth: tuple[int, ...] = ()
    """depth of each (default: a shipped one's own, else that of the id)"""
    optimizer: str = "adam"
    """of the backbone: adam, or sgd (Nesterov's, with the momentum and weight decay of agents.pretrain)"""
    lr: float = 6e-4
    """learning rate of the backbone"""
    gate_lr: float = 1.5e-2
    """Adam's learning rate for the gates"""
    schedule: str = "linear"
    """of the learning rates: constant (the paper), linear to zero in HRL and again in the tuning after it, or
    cosine to zero in SP, and again over HRL and tuning together"""
    bn: str = "recalibrate"
    """batch norm of the backbone: train (the batch's statistics), frozen (the running ones), or recalibrate:
    train, and estimate the running ones anew after each stage"""
    bn_images: int = 500
    """training images for that estimate, in whole batches of 250"""
    eval_every: int = 40
    """steps between evaluations on validation images"""
    resume: bool = False
    """go on from the checkpoint in --run-dir"""

    @property
    def images_per_step(self) -> int:
        """As many as episodes, but in HRL, where an image has several routes."""
        return self.batch_size // (self.routes if set(self.plan()) == {"hrl"} else 1)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        for kind, name, known in (
            ("stage", self.stage, STAGES),
            ("gate", self.gate, (*GATES, FIXED)),
            ("bn mode", self.bn, BN_MODES),
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("baseline", self.baseline, BASELINES),
            ("relaxation", self.relaxation, RELAXATIONS),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        check_routes(self.batch_size, self.routes, self.baseline)
        self._check_sources()
        if set(self.plan()) <= {"warmup"}:
            steps = "--tune-iterations" if self.stage == "tune" else "--iterations or --sp-iterations"
            raise ValueError(f"no training step of --stage {self.stage} is asked for; raise {steps}")

    def _check_sources(self) -> None:
        if self.gate_weights and self.gate_gain != 1:
            raise ValueError("--gate-gain is of new gates; leave it out, or --gate-weights")
        if self.stage == "tune" and not self.gate_weights:
            raise ValueError("--stage tune trains no gates; give it some with --gate-weights")
        if self.gate == FIXED and self.stage != "tune":
            raise ValueError("--gate fixed has nothing to learn; it goes with --stage tune")
        check_teachers(self.teacher, self.distillation, self.teacher_depth, self.depth, self.weights)

    def plan(self) -> list[str]:
        """The stage of each training step."""
        sp = self.sp_iterations if "sp" in self.stage else 0
        hrl = self.iterations if "hrl" in self.stage else 0
        tune = self.tune_iterations if hrl or self.stage == "tune" else 0
        return ["warmup"] * self.warmup_iterations + ["sp"] * sp + ["hrl"] * hrl + ["tune"] * tune

    def decay(self, step: int) -> float:
        """Factor of the learning rates at a step of the plan."""
        plan = self.plan()
        stage = plan[step]
        if self.schedule == "constant" or stage == "warmup" or (self.schedule, stage) == ("linear", "sp"):
            return 1.0
        span = ("hrl", "tune") if self.schedule == "cosine" and stage != "sp" else (stage,)
        begin = min(plan.index(part) for part in span if part in plan)
        length = sum(map(plan.count, span))
        left = (begin + length - step) / length
        return left if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


class Learner:
    """Backbone, gate and optimizer of one run; the teachers are others, or the backbone as it came."""

    def __init__(
        self, args: Args, net: ResNet, device: torch.device, teachers: Sequence[ResNet] = ()
    ) -> None:
        torch.manual_seed(args.seed)
        self.gate = gate = empty_policy(args.gate, net, args.gate_gain)
        self.model = nn.ModuleDict({"net": net, "gate": gate}).to(device)
        self.mdp = mdp = RoutingMDP(net, args.alpha, args.cost)
        self.critic = ValueBaseline(mdp).to(device) if args.baseline == "value" else None
        self.policies: dict[str, tuple[Policy, str]] = {
            "warmup": (RandomSkip(args.warmup_rate), "sample"),
            "sp": (gate, args.relaxation),
            "hrl": (Exploring(gate, args.exploration), "sample"),
            "tune": (gate, "greedy"),  # a threshold has no gradient: the gates stay
        }
        self.precision = resolve_precision(args.precision, device)
        self.teacher = Teacher(teachers or [net], self.precision) if args.distillation else None
        gates = [*gate.parameters(), *(self.critic.parameters() if self.critic else [])]
        self.optimizers = {"net": OPTIMIZERS[args.optimizer](net, args.lr)}
        if gates:  # a fixed route has none
            self.optimizers["gate"] = torch.optim.Adam(gates, args.gate_lr)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]

    def descend(self, loss: Tensor, decay: float = 1.0) -> None:
        """One step down a loss, at a share of the learning rates."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = decay * group["base_lr"]
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def predictions(self, images: Tensor) -> Tensor | None:
        """The teacher's logits [B, K], or None without one."""
        return None if self.teacher is None else self.teacher(images)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        critic = self.critic.state_dict() if self.critic else {}
        return {
            "model": self.model.state_dict(),
            "critic": critic,
            "optimizers": {name: each.state_dict() for name, each in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        for name, optimizer in self.optimizers.items():
            resume(optimizer, state["optimizers"][name])


def backbone_loss(episode: Trajectory, args: Args, targets: Tensor | None = None) -> Tensor:
    """The cross-entropy, mixed with distillation; in SP its gradient reaches the gates, too.

    Args:
        episode: of B images.
        args: the flags.
        targets: the teacher's logits [B, K], or None for the labels alone.
    """
    return distilled(episode.loss, episode.logits, targets, args.distillation).mean()


def hrl_loss(episode: Trajectory, args: Args, targets: Tensor | None = None) -> Tensor:
    """Hybrid loss: the cross-entropy for the backbone, the score function for the gates and what they see."""
    to_go = rewards_to_go(episode.rewards)
    weights = advantages(to_go, args.baseline, args.routes, episode.values)
    score = score_function_loss(episode.log_probs, weights)
    loss = backbone_loss(episode, args, targets) + args.policy_weight * score
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
    targets = learner.predictions(images)
    if targets is not None:
        targets = targets.repeat_interleave(routes, 0)
    images = images.repeat_interleave(routes, 0).contiguous(memory_format=torch.channels_last)
    labels = labels.repeat_interleave(routes)
    learner.mdp.net.train(args.bn != "frozen")
    learner.gate.train(stage != "tune")  # there its routes are those of test time
    policy, mode = learner.policies[stage]
    critic = learner.critic if stage == "hrl" else None
    draws = step_generator(args.seed, step, device, stream=2)
    with autocast(learner.precision, device):
        episode = rollout(learner.mdp, policy, images, labels, mode, draws, critic=critic)
        loss = (hrl_loss if stage == "hrl" else backbone_loss)(episode, args, targets)
    learner.descend(loss, args.decay(step))
    return episode


@cpu_by_default()
def train(args: Args) -> dict[str, Any]:
    """The stages asked for, then the test set once; returns result.json's content."""
    setting = Setting.of(args)
    classes = len(setting.train.classes)
    named = (args.teacher or (args.weights,)) if args.distillation else ()
    teachers = load_teachers(
        named, args.teacher_depth, args.depth, classes, setting.dataset, args.shortcut, setting.device
    )
    learner = Learner(args, setting.mdp().net, setting.device, teachers)
    if args.gate_weights:
        start_gate(learner.gate, setting, args)
    run = setting.start_run("hybrid-reinforce", args.resume)
    files: dict[str, str] = {}

    def end_stage(stage: str) -> None:
        """Settle the batch norms; keep the weights of a stage that ends with gates to be used."""
        settle(learner, setting.train, stage, args)
        if stage != "warmup":
            about = {"stage": FILES[stage].split(".")[0], **setting.header(args.gate)}
            save_weights(run.folder / FILES[stage], learner.model, about)

    wall_time = learn(
        run,
        args.plan(),
        learner,
        train_step=lambda step, stage: train_step(learner, setting.train, step, stage, args),
        validate=lambda: setting.validate(learner.mdp, learner.gate),
        end_stage=end_stage,
        eval_every=args.eval_every,
        resume=args.resume,
    )
    rows = {}
    for file in dict.fromkeys(FILES[stage] for stage in args.plan() if stage in FILES):
        name = file.split(".")[0].upper()
        load_weights(run.folder / file, learner.model)  # what the file does is reported
        rows[name] = setting.evaluate(learner.mdp, learner.gate)
        files[name] = file
    last = list(rows)[-1]
    files[f"random, {last} weights"] = files[last]
    references = setting.references(rows[last].rate, learner.mdp, last)
    result = setting.finish(run, "hybrid_reinforce", {**references, **rows}, wall_time, files)
    if rows[last].rate == 1 and "hrl" in args.plan():
        tqdm.write(NOTHING_SKIPPED)
    return result


def start_gate(gate: StoredPolicy, setting: Setting, args: Args) -> None:
    """Fill it from --gate-weights: with weights, or with the most frequent route of that network, as it was.

    The route is found before the run has a folder, and again where it is resumed.

    Raises:
        WeightsError: the file is missing, or of something else.
    """
    path = weights_path(args.gate_weights)
    if args.gate != FIXED:
        load_weights(path, gate, prefix="gate.")
        return
    about = read_header(path)
    for key, wanted in (("depth", args.depth), ("dataset", setting.dataset)):
        if about[key] != wanted:
            raise WeightsError(f"{path} does not fit: its {key} is {about[key]}, this run's {wanted}")
    mdp, chooser = restore_checkpoint(path, len(setting.val.classes))
    mdp.net.to(setting.device)
    chosen = evaluate(mdp, chooser.to(setting.device), setting.val, precision=setting.precision)
    gate.route.copy_(most_frequent(chosen.routes))


def settle(learner: Learner, data: Images, stage: str, args: Args) -> None:
    """Estimate the batch norms' statistics for the routes to come, where `--bn` asks for it."""
    if args.bn == "recalibrate":
        policy = AlwaysExecute() if stage == "warmup" else learner.gate
        recalibrate(
            learner.mdp, policy, data, batches=math.ceil(args.bn_images / BATCH_SIZE),
            precision=learner.precision, seed=args.seed, policy_too=stage != "tune",
        )  # fmt: skip


if __name__ == "__main__":
    main_with_named_errors(Args, train)
