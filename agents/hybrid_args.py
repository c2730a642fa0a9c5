"""Flags of `agents.hybrid_reinforce`, what they may be, and the schedule that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.common.distillation import check_teachers
from agents.common.flag_rules import check_routes
from agents.common.optimizers import OPTIMIZERS
from agents.common.presets import PRESETS
from agents.common.setting import CommonArgs
from skipnet_rl.errors import unknown_name
from skipnet_rl.estimators import BASELINES
from skipnet_rl.gated import FIXED
from skipnet_rl.gates import GATES

STAGES = ("sp", "hrl", "sp+hrl", "tune")
RELAXATIONS = ("straight-through", "soft")
BN_MODES = ("train", "frozen", "recalibrate")
SCHEDULES = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class Args(CommonArgs):
    """Learn which blocks to run, image by image."""

    preset: str = "auto"
    """defaults of the other flags, a row of agents/common/presets.py: quick, plain, gated, paper, or auto,
    the one that fits the data set, the depth, the device and the network that the run starts from"""
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
    """steps of preparation before either stage, taken where the network does not bear skips yet: it learns to
    do without the blocks that it misses least"""
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
    sp_lr: float | None = None
    """learning rate of the backbone in SP (default: that of --lr)"""
    gate_lr: float = 1.5e-2
    """Adam's learning rate for the gates"""
    schedule: str = "linear"
    """of the learning rates: constant, linear to zero in HRL and again in the tuning after it, cosine to zero
    in SP, and again over HRL and tuning together, or step (the paper): divided by ten at half and at three
    quarters of SP"""
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

    @property
    def networks(self) -> tuple[str | None, ...]:
        """Weights that it starts from, and the teachers'."""
        return (self.weights, self.gate_weights, *self.teacher)

    def check(self) -> None:
        """Raise a ValueError for a name or number that makes no sense."""
        super().check()
        for kind, name, known in (
            ("preset", self.preset, ("auto", *PRESETS)),
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
        if self.gate_weights and self.warmup_iterations:
            raise ValueError("--warmup-iterations trains new gates; leave it out, or --gate-weights")
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
        if self.schedule == "step":
            done = (step - plan.index(stage)) / plan.count(stage)
            return 1.0 if stage != "sp" or done < 0.5 else 0.1 if done < 0.75 else 0.01
        if self.schedule == "constant" or stage == "warmup" or (self.schedule, stage) == ("linear", "sp"):
            return 1.0
        span = ("hrl", "tune") if self.schedule == "cosine" and stage != "sp" else (stage,)
        begin = min(plan.index(part) for part in span if part in plan)
        length = sum(map(plan.count, span))
        left = (begin + length - step) / length
        return left if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
