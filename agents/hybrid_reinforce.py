"""SkipNet's hybrid learning: supervised pre-training (SP), then hybrid REINFORCE (HRL).

    python -m agents.hybrid_reinforce --env SkipResNet110-v0

Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018 (arXiv 1711.09485), sections 3.2 and 3.3:

    SP    cross-entropy through straight-through gates, backbone and gates together
    HRL   min E_x E_g [ L(ŷ, y) - α/N Σ_i (1 - g_i) C_i ]
          ∇ = E[∇L] - E Σ_i ∇log p(g_i|x) r_i ,   r_i = -[L - α/N Σ_{j≥i} (1 - g_j) C_j]

Differences from the paper:

    baseline      r_i is compared with the other routes of the same image (leave-one-out)
    preparation   a network that loses too much accuracy under skips is first trained to tolerate them
    tuning        the last steps train the backbone alone, on the thresholded routes of test time;
                  `agents.finetune` does the same for longer
    weights       those with the best return on validation images are kept, not the last
    teachers      with them, the backbone's loss is a mixture of L and distillation; rewards have L alone
    entropy       some presets add a bonus for undecided gates
    β             r_i has L undivided, as for all data sets of the paper but ImageNet, where it has α/N L

`--preset paper` has the paper's lengths and rates; `--sp-iterations 0` is its negative example, HRL without
SP. On a chain, the networks that ran are trained as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.common.chains import held_out_episodes, new_gate
from agents.common.cli import main_with_named_errors
from agents.common.distillation import Teacher, check_teachers, distilled, teachers_of
from agents.common.flag_rules import check_gates, check_routes
from agents.common.flags import CompiledArgs, Method, Schedule, TrainingArgs
from agents.common.keeper import KeepBest
from agents.common.learner import GatedLearner
from agents.common.optimizers import OPTIMIZERS, adam, staged
from agents.common.preparation import Preparation
from agents.common.preset_choice import values_of
from agents.common.presets import Preset, describe
from agents.common.runner import run_agent
from agents.common.setting import Setting
from agents.common.situation import defaults_of
from envs.ids import is_chain
from skipnet_rl.checkpoint import fill
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import step_batch
from skipnet_rl.device import autocast
from skipnet_rl.distributed import shared_generator
from skipnet_rl.estimators import advantages, entropy, score_function_loss
from skipnet_rl.network import Network
from skipnet_rl.policies import Exploring, Policy, ValueBaseline
from skipnet_rl.process import DecisionProcess
from skipnet_rl.randomness import Stream
from skipnet_rl.rollout import Trajectory, rewards_to_go, rollout
from skipnet_rl.terminal import say
from skipnet_rl.weights import open_weights


@dataclass(frozen=True)
class Args(CompiledArgs, TrainingArgs):
    """Learn which blocks to run, image by image."""

    takes_chains: ClassVar[bool] = True
    takes_processes: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "sp_iterations")
    alpha: Method[float] = 1.8
    """weight of the compute saving against the loss"""
    cost: Method[Literal["blocks", "flops"]] = "blocks"
    """unit of the compute saving: 1 for each skipped block, or its FLOPs"""
    gate: Method[Literal["rnn", "ff1", "ff2"]] = "rnn"
    """kind of gate: one LSTM for all blocks (rnn), or a convolutional network per block; unused on a chain"""
    gate_weights: Method[str | None] = None
    """trained gates to start from: a file of a gated network, or the name of a shipped one (default: new
    gates, which start close to "execute")"""
    teacher: Method[tuple[str, ...]] = ()
    """networks whose predictions the backbone also learns to match: files, names of shipped ones, or auto
    (default: none; with a preset that has distillation, the network that the run starts from)"""
    preset: Schedule[Preset] = "auto"
    """row of agents/common/presets.py that sets the other flags' defaults; auto: the one that fits data set,
    depth, device and weights"""
    sp_iterations: Schedule[int] = 4
    """steps of supervised pre-training (SP)"""
    iterations: Schedule[int] = 84
    """steps of hybrid REINFORCE (HRL)"""
    tune_iterations: Schedule[int] = 48
    """final steps, which train the backbone alone on the gates' thresholded routes"""
    batch_size: Schedule[int] = 96
    """episodes per step; on a chain, as many again on held-out images"""
    routes: Schedule[int] = 4
    """sampled routes per image in HRL; on a chain, per held-out image"""
    lr: Schedule[float] = 6e-4
    """learning rate of the backbone"""
    gate_lr: Schedule[float] = 3e-2
    """Adam's learning rate for the gates"""
    # The rest is set by presets, or in Python.
    # where a block changes the shape; None: that of the weights, else projection
    shortcut: Literal["projection", "pad", "pool"] | None = None
    mean: tuple[float, float, float] | None = None  # of the images' pixels; None: the data set's own
    std: tuple[float, float, float] | None = None
    warmup_iterations: int = 0  # steps of preparation, taken only where skips cost the network too much
    relaxation: Literal["straight-through", "soft"] = "straight-through"  # form of the gates in SP
    gate_gain: float = 1.0  # factor of new gates' initial weights; at 1 they are all but blind to the image
    baseline: Literal["none", "batch-mean", "leave-one-out", "value"] = "leave-one-out"
    exploration: float = 0.0  # least probability of either action while sampling
    entropy: float = 0.0  # weight of the gates' entropy, a bonus
    policy_weight: float = 1.0  # of the score-function term against the cross-entropy
    distillation: float = 0.0  # share of the teacher in the backbone's loss
    optimizer: Literal["adam", "sgd"] = "adam"  # of the backbone
    sp_lr: float | None = None  # the backbone's learning rate in SP; None: `lr`
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"  # of the rates, see `staged`
    # batch norm: statistics of the batch, running ones, or the batch's, estimated anew after each stage
    bn: Literal["train", "frozen", "recalibrate"] = "recalibrate"
    bn_images: int = 500  # training images for that estimate, in whole batches of 250
    eval_every: int = 40
    eval_images: int = 500

    @property
    def images_per_step(self) -> int:
        """One per episode; fewer if every step samples several routes of each image."""
        repeats = set(self.plan()) == {"hrl"} and not is_chain(self.env)
        return self.batch_size // (self.routes if repeats else 1)

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights that the run starts from, and those of the teachers."""
        return (self.weights, self.gate_weights, *self.teacher)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        check_routes(self.batch_size, self.routes, self.baseline)
        check_teachers(self.teacher, self.distillation, self.weights)
        check_gates(self)

    def plan(self) -> list[str]:
        """The stage of each training step."""
        closing = self.tune_iterations if self.iterations else 0
        steps = {"warmup": self.warmup_iterations, "sp": self.sp_iterations, "hrl": self.iterations}
        return [stage for stage, count in {**steps, "tune": closing}.items() for _ in range(count)]


class Learner(GatedLearner):
    """Networks, gates, a learned baseline if any, and teachers (default: a copy of the backbone)."""

    held_out: Images | None = None  # images that the gate of a chain learns on, see `held_out_episodes`

    def __init__(
        self,
        args: Args,
        mdp: DecisionProcess,
        precision: str,
        teachers: Sequence[Network] = (),
        costs: Tensor | None = None,
    ) -> None:
        torch.manual_seed(args.seed)
        self.kind, gate = new_gate(args.gate, mdp, args.gate_gain)
        super().__init__(mdp, gate, precision)
        if args.baseline == "value":
            self.critic = ValueBaseline(self.mdp).to(mdp.device)
        self.policies: dict[str, tuple[Policy, str]] = {
            "sp": (gate, args.relaxation),
            "hrl": (Exploring(gate, args.exploration), "sample"),
            "tune": (gate, "greedy"),  # a threshold has no gradient: the gates stay
        }
        self.teacher = Teacher(teachers or [mdp.net], precision) if args.distillation else None
        gates = nn.ModuleList([gate, self.critic] if self.critic else [gate])
        self.optimizers = {
            "net": OPTIMIZERS[args.optimizer](mdp.net, args.lr),
            "gate": adam(gates, args.gate_lr),
        }
        if costs is not None:
            self.preparation = Preparation(costs, args.warmup_iterations, self.teacher, args.distillation)


def backbone_loss(episode: Trajectory, args: Args, targets: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy, mixed with the loss against the teacher's logits [B, K].

    In SP it also trains the gates.
    """
    return distilled(episode.loss, episode.logits, targets, args.distillation).mean()


def hrl_loss(
    episode: Trajectory, args: Args, targets: Tensor | None = None, decided: Trajectory | None = None
) -> Tensor:
    """Compute the hybrid loss: the cross-entropy, and the score function for the gates and their inputs.

    If `decided` is given, the score function is taken over those episodes instead.
    """
    decided = decided or episode
    to_go = rewards_to_go(decided.rewards)
    weights = advantages(to_go, args.baseline, args.routes, decided.values)
    score = score_function_loss(decided.log_probs, weights)
    loss = backbone_loss(episode, args, targets) + args.policy_weight * score
    if args.entropy:
        loss = loss - args.entropy * entropy(decided.gate_logits).sum(dim=1).mean()
    if decided.values is not None:
        loss = loss + F.mse_loss(decided.values, to_go)
    return loss


def train_step(learner: Learner, data: Images, step: int, stage: str, args: Args) -> Trajectory:
    """Take one training step of any stage."""
    device = data.device
    routes = args.routes if stage == "hrl" and learner.held_out is None else 1
    images, labels = step_batch(data, step, args.batch_size // routes, args.seed)
    targets = None
    if learner.teacher is not None and stage != "warmup":  # the preparation asks it itself
        targets = learner.teacher(images).repeat_interleave(routes, 0)
    images = images.repeat_interleave(routes, 0).contiguous(memory_format=torch.channels_last)
    labels = labels.repeat_interleave(routes)
    learner.mdp.net.train(args.bn != "frozen")
    learner.gate.train(stage != "tune")  # tuning is on the routes of test time
    draws = shared_generator(args.seed, step, device, Stream.ROUTES)
    with autocast(learner.precision, device):
        if stage == "warmup":
            assert learner.preparation is not None
            episode, loss = learner.preparation.step(learner.mdp, learner.gate, images, labels, step, draws)
        else:
            policy, mode = learner.policies[stage]
            critic = learner.critic if stage == "hrl" else None
            episode = rollout(learner.mdp, policy, images, labels, mode, draws, critic=critic)
            if stage == "hrl":
                loss = hrl_loss(episode, args, targets, held_out_episodes(learner, step, args))
            else:
                loss = backbone_loss(episode, args, targets)
    net_lr = args.lr if stage != "sp" or args.sp_lr is None else args.sp_lr
    decay = staged(args.schedule, args.plan(), step)
    learner.descend(loss, {"net": decay * net_lr, "gate": decay * args.gate_lr})
    return episode


def start(setting: Setting[Args]) -> Learner:
    """Build the learner, with the gates of `--gate-weights` or new ones."""
    args = setting.args
    say(f"preset: {describe(args)}")
    learner = Learner(args, setting.mdp(), setting.precision, teachers_of(setting), setting.absence_costs)
    learner.held_out = setting.held_out()
    if args.gate_weights:
        opened = open_weights(args.gate_weights).policy
        fill(learner.gate, opened.state_dict() if isinstance(opened, nn.Module) else {}, args.gate_weights)
    return learner


def keep(setting: Setting[Args], learner: Learner, folder: Path) -> KeepBest:
    """Keep the best weights; the start competes if its gates are trained."""
    args = setting.args
    return KeepBest(setting, learner, folder, "hybrid_reinforce", learner.kind, args.gate_weights is not None)


def train(args: Args) -> dict[str, Any]:
    """Train all stages, then evaluate on the test set once; returns result.json's content."""
    return run_agent(args, "hybrid_reinforce", start, keep, train_step)


arguments = partial(defaults_of, Args, values=values_of)  # the flags' defaults on a command line


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
