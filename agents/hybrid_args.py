"""Flags of `agents.hybrid_reinforce`, what they may be, and the schedule that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agents.common.distillation import check_teachers
from agents.common.flag_rules import check_routes
from agents.common.flags import CommonArgs, Method, Run, Schedule
from skipnet_rl.weights import FIXED


@dataclass(frozen=True)
class Args(CommonArgs):
    """Learn which blocks to run, image by image."""

    preset: Schedule[Literal["auto", "quick", "plain", "gated", "paper"]] = "auto"
    """defaults of the other flags, a row of agents/common/presets.py; auto: the row that fits the
    data set, the depth, the device and the network that the run starts from"""
    alpha: Method[float] = 2.0
    """weight of the compute saving against the loss"""
    cost: Method[Literal["blocks", "flops"]] = "blocks"
    """unit of the compute saving: 1 for each skipped block, or its FLOPs"""
    gate: Method[Literal["rnn", "ff1", "ff2", "fixed"]] = "rnn"
    """kind of gate: one LSTM shared by all blocks (rnn), or a small convolutional network per block; or, with
    --stage tune, fixed: for all images the route that the network of --gate-weights takes most often on the
    validation images, the control of what choosing by the image is worth"""
    gate_gain: Method[float] = 1.0
    """factor of the gates' initial weights; at 1 they begin all but blind to the image"""
    gate_weights: Method[str | None] = None
    """trained gates to start from, of the same kind unless that is fixed: a file of a gated network, or the
    name of a shipped one (default: new gates, near "execute")"""
    stage: Method[Literal["sp", "hrl", "sp+hrl", "tune"]] = "sp+hrl"
    """stages to train; tune: only the steps that end HRL, by the gates of --gate-weights"""
    relaxation: Method[Literal["straight-through", "soft"]] = "straight-through"
    """gates of SP"""
    routes: Method[int] = 4
    """sampled routes per image in HRL"""
    baseline: Method[Literal["none", "batch-mean", "leave-one-out", "value"]] = "leave-one-out"
    """baseline of the score function; leave-one-out: the mean over an image's other routes; value: learned"""
    exploration: Method[float] = 0.0
    """least probability of either action while sampling"""
    entropy: Method[float] = 0.0
    """weight of the gates' entropy, a bonus"""
    policy_weight: Method[float] = 1.0
    """weight of the score-function term against the cross-entropy"""
    distillation: Method[float] = 0.0
    """share of the teacher's predictions in the backbone's loss, against the labels"""
    teacher: Method[tuple[str, ...]] = ()
    """networks for the distillation, all blocks executed: files, names of shipped ones, or auto, of the same
    shortcut (default: the network that the run starts from)"""
    bn: Method[Literal["train", "frozen", "recalibrate"]] = "recalibrate"
    """batch norm of the backbone: the batch's statistics (train), the running ones (frozen), or the batch's
    with the running ones estimated anew after each stage (recalibrate)"""
    bn_images: Method[int] = 500
    """training images for that estimate, in whole batches of 250"""
    warmup_iterations: Schedule[int] = 0
    """steps of preparation, taken only where skips cost the network too much: it learns to do without the
    blocks that it misses least"""
    sp_iterations: Schedule[int] = 4
    """steps of supervised pre-training (SP)"""
    iterations: Schedule[int] = 56
    """steps of hybrid REINFORCE (HRL)"""
    tune_iterations: Schedule[int] = 32
    """steps that end HRL: the backbone alone, on the gates' thresholded routes"""
    batch_size: Schedule[int] = 96
    """episodes per step"""
    optimizer: Schedule[Literal["adam", "sgd"]] = "adam"
    """optimizer of the backbone; sgd: Nesterov's, with the momentum and weight decay of agents.pretrain"""
    lr: Schedule[float] = 6e-4
    """learning rate of the backbone"""
    sp_lr: Schedule[float | None] = None
    """learning rate of the backbone in SP (default: that of --lr)"""
    gate_lr: Schedule[float] = 1.5e-2
    """Adam's learning rate for the gates"""
    schedule: Schedule[Literal["constant", "linear", "cosine", "step"]] = "linear"
    """course of the learning rates: constant, linear to zero in HRL and again in the tuning after it, cosine
    to zero in SP, and again over HRL and tuning together, or step (the paper): divided by ten at half and at
    three quarters of SP"""
    eval_every: Run[int] = 40
    """steps between evaluations on validation images"""
    resume: Run[bool] = False
    """continuation from the checkpoint in --run-dir, where there is one"""

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
        check_teachers(self.teacher, self.distillation, self.weights)

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
