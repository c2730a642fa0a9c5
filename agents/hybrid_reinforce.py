"""SkipNet's hybrid learning: supervised pre-training (SP), then hybrid REINFORCE (HRL).

    python -m agents.hybrid_reinforce --env SkipResNet110-v0

Wang, Yu, Dou, Darrell, Gonzalez, ECCV 2018 (arXiv 1711.09485), section 3.3:

    SP    cross-entropy through straight-through gates, backbone and gates together
    HRL   min E_x E_g [ L(ŷ, y) - α/N Σ_i (1 - g_i) C_i ]
          ∇ = E[∇L] - E Σ_i ∇log p(g_i|x) r_i ,   r_i = -[L - α/N Σ_{j≥i} (1 - g_j) C_j]

Where this differs from the paper: r_i is compared with the other routes of the same image (leave-one-out
baseline); a network that does not bear skips is prepared for them first; in HRL's last steps the backbone
alone trains, on the thresholded routes that it will be given at test time; --stage tune gives it more of
these, --distillation teachers, and --gate fixed one route for all images. What is kept is the best by the
return on validation images, not the last. For the paper's training: --preset paper. Its warning example, HRL
from nothing: --stage hrl, and --weights none where the backbone is to be untrained too.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.common.cli import main_with_named_errors
from agents.common.distillation import Teacher, distilled, load_teachers
from agents.common.estimate import print_estimate
from agents.common.keeper import FILES, Keeper
from agents.common.loop import learn
from agents.common.optimizers import OPTIMIZERS, resume
from agents.common.preparation import check_trained, look, prepared_episode
from agents.common.presets import describe, situation_of, values_of
from agents.common.setting import Setting
from agents.hybrid_args import Args
from skipnet_rl.checkpoint import fill, load_weights
from skipnet_rl.data import Images
from skipnet_rl.data.imageset import training_index
from skipnet_rl.device import autocast, cpu_by_default, resolve_precision
from skipnet_rl.errors import WeightsError
from skipnet_rl.estimators import advantages, entropy, score_function_loss
from skipnet_rl.evaluate import evaluate, most_frequent
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import Exploring, FixedRoute, Policy, ValueBaseline
from skipnet_rl.randomness import Stream, step_generator
from skipnet_rl.resnet import ResNet
from skipnet_rl.rollout import Trajectory, rewards_to_go, rollout
from skipnet_rl.terminal import say
from skipnet_rl.weights import FIXED, StoredPolicy, new_policy, open_weights


class Learner:
    """Backbone, gate and optimizer of one run; the teachers are others, or the backbone as it came.

    Attributes:
        costs: of each block's absence [N], which a preparation needs, see `preparation.look`.
        best: summary of what is kept so far, on validation images; with its step, 0 for the start.
    """

    def __init__(
        self, args: Args, net: ResNet, device: torch.device, teachers: Sequence[ResNet] = (),
        costs: Tensor | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(args.seed)
        self.gate = gate = new_policy(args.gate, net, args.gate_gain)
        self.model = nn.ModuleDict({"net": net, "gate": gate}).to(device)
        self.mdp = mdp = RoutingMDP(net, args.alpha, args.cost)
        self.critic = ValueBaseline(mdp).to(device) if args.baseline == "value" else None
        self.policies: dict[str, tuple[Policy, str]] = {
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
        self.rates = {"net": args.lr, "gate": args.gate_lr}
        self.sp_lr = args.lr if args.sp_lr is None else args.sp_lr
        self.costs = costs
        self.best: dict[str, Any] = {}

    def descend(self, loss: Tensor, decay: float = 1.0, stage: str = "") -> None:
        """One step down a loss, at a share of the stage's learning rates."""
        for name, optimizer in self.optimizers.items():
            rate = self.sp_lr if (name, stage) == ("net", "sp") else self.rates[name]
            for group in optimizer.param_groups:
                group["lr"] = decay * rate
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def snapshot(self) -> Learner:
        """The same with a copy of network and gate, to be looked at."""
        found = copy.copy(self)
        found.model, net, found.gate = copy.deepcopy((self.model, self.mdp.net, self.gate))
        _ = self.mdp.macs  # counted once for all copies: half a second for a ResNet-110
        found.mdp = copy.copy(self.mdp)
        found.mdp.net = net
        return found

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
            "costs": self.costs,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        for name, optimizer in self.optimizers.items():
            resume(optimizer, state["optimizers"][name])
        self.costs, self.best = state["costs"], state["best"]


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
    draws = step_generator(args.seed, step, device, Stream.ROUTES)
    with autocast(learner.precision, device):
        if stage == "warmup":
            assert learner.costs is not None, "the preparation needs the costs of absence"
            progress = (step + 1) / args.warmup_iterations
            episode, missed = prepared_episode(
                learner.mdp, learner.gate, images, labels, learner.costs, progress, draws
            )
            loss = backbone_loss(episode, args, targets) + missed
        else:
            policy, mode = learner.policies[stage]
            critic = learner.critic if stage == "hrl" else None
            episode = rollout(learner.mdp, policy, images, labels, mode, draws, critic=critic)
            loss = (hrl_loss if stage == "hrl" else backbone_loss)(episode, args, targets)
    learner.descend(loss, args.decay(step), stage)
    return episode


@cpu_by_default()
def train(args: Args) -> dict[str, Any]:
    """The stages asked for, then the test set once; returns result.json's content."""
    setting = Setting.of(args)
    check_trained(setting)
    args = setting.args
    learner = Learner(args, setting.mdp().net, setting.device, teachers_of(setting))
    if args.gate_weights:
        start_gate(learner.gate, setting, args)
    setting, tolerance, learner.costs = look(
        setting
    )  # takes seconds: what is to be refused is refused before
    args = setting.args
    say(f"preset: {describe(args)}")
    run = setting.start_run("hybrid-reinforce", args.resume)
    keeper = Keeper(setting, learner, run.folder)
    validations = len(args.plan()) // args.eval_every + len(set(args.plan()))
    print_estimate(
        setting, tolerance, len(args.plan()), args.batch_size,
        validations * (args.eval_images + args.bn_images),
    )  # fmt: skip
    wall_time = learn(
        run,
        args.plan(),
        learner,
        train_step=lambda step, stage: train_step(learner, setting.train, step, stage, args),
        validate=keeper.validate,
        end_stage=keeper.end_stage,
        begin=keeper.begin,
        eval_every=args.eval_every,
        resume=args.resume,
    )
    rows, files = {}, {}
    for file in dict.fromkeys(FILES[stage] for stage in args.plan() if stage in FILES):
        name = file.split(".")[0].upper()
        load_weights(run.folder / file, learner.model)  # what the file does is reported
        rows[name] = setting.evaluate(learner.mdp, learner.gate, name=name)
        files[name] = file
    last = list(rows)[-1]
    files[f"random, {last} weights"] = files[last]
    references = setting.references(rows[last].rate, learner.mdp, last)
    return setting.finish(
        run, "hybrid_reinforce", {**references, **rows}, wall_time, files,
        notes=keeper.notes(tolerance), kept=learner.best,
    )  # fmt: skip


def teachers_of(setting: Setting[Args]) -> list[ResNet]:
    """The networks of `--teacher`, or else the plain network that the run is compared with."""
    args = setting.args
    if not args.distillation:
        return []
    if not args.teacher:
        return [setting.plain]
    classes = len(setting.train.classes)
    return load_teachers(args.teacher, args.depth, classes, setting.dataset, args.shortcut, setting.device)


def start_gate(gate: StoredPolicy, setting: Setting[Args], args: Args) -> None:
    """Fill it from --gate-weights: with weights, or with the most frequent route of that network, as it was.

    The route is found before the run has a folder, and again where it is resumed.

    Raises:
        WeightsError: the file is missing, or of something else.
    """
    assert args.gate_weights, "there is nothing to start from"
    classes = len(setting.val.classes) if args.gate == FIXED else None
    opened = open_weights(args.gate_weights, num_classes=classes)
    if args.gate != FIXED:
        gates = opened.policy.state_dict() if isinstance(opened.policy, nn.Module) else {}
        fill(gate, gates, args.gate_weights)
        return
    for key, wanted in (("depth", args.depth), ("dataset", setting.dataset)):
        if opened.header.get(key, wanted) != wanted:
            raise WeightsError(
                f"{args.gate_weights} does not fit: its {key} is {opened.header[key]}, this run's {wanted}"
            )
    if not isinstance(opened.policy, nn.Module):
        raise WeightsError(f"{args.gate_weights} has no gates that choose a route; expected a gated network")
    mdp, chooser = opened.mdp(), opened.policy.to(setting.device)
    mdp.net.to(setting.device)
    assert isinstance(gate, FixedRoute)
    chosen = evaluate(mdp, chooser, setting.val, precision=setting.precision)
    gate.route.copy_(most_frequent(chosen.routes))


def arguments() -> Args:
    """The flags' defaults for the command line that is there: those of its preset."""
    return replace(Args(), **values_of(situation_of(sys.argv[1:])))


if __name__ == "__main__":
    main_with_named_errors(Args, train, defaults=arguments)
