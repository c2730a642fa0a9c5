"""Presets of hybrid REINFORCE: one table of the defaults of its flags.

A row holds what differs from the defaults of `hybrid_reinforce.Args`. Which row a run takes is up to
`agents.common.preset_choice`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from agents.common.flag_rules import MODEL_FLAGS
from skipnet_rl.runs import NOT_COMPARED

Preset = Literal[
    "auto",
    "quick",
    "longer",
    "plain",
    "gated",
    "chain",
    "paper",
    "cores-sp",
    "cores",
    "cores-gain6",
    "gpu-sp",
    "gpu",
]
SGD: dict[str, Any] = {"optimizer": "sgd", "schedule": "cosine", "eval_images": 1_000}
CORES = {
    **SGD,
    "batch_size": 128,
    "routes": 2,
    "lr": 0.05,
    "gate_lr": 5e-3,
    "entropy": 0.02,
    "bn_images": 4_000,
    "eval_every": 250,
}
GPU = {
    **SGD,
    "batch_size": 512,
    "routes": 4,
    "lr": 0.2,
    "gate_lr": 1e-2,
    "entropy": 0.002,
    "bn_images": 4_000,
    "eval_every": 150,
}
PRESETS: dict[str, dict[str, Any]] = {
    # the defaults of `Args`: a first look at rendered-digits, whose networks are shipped trained with skips
    "quick": {},
    # `quick` for longer, as in the comparison of policies
    "longer": {
        "sp_iterations": 20,
        "iterations": 500,
        "tune_iterations": 150,
        "batch_size": 128,
        "lr": 3e-4,
        "gate_lr": 1e-2,
        "bn_images": 4_000,
    },
    # from a network that executes every block: it is its own teacher, and is prepared for skips if they
    # cost it too much. The steps are for a ResNet-20 on a CPU, see `STEPS`.
    "plain": {
        **SGD,
        "alpha": 0.4,
        "warmup_iterations": 250,
        "sp_iterations": 0,
        "iterations": 150,
        "tune_iterations": 900,
        "batch_size": 128,
        "routes": 2,
        "lr": 8e-3,
        "gate_lr": 1.5e-2,
        "distillation": 0.9,
        "eval_every": 100,
        "bn_images": 1_000,
    },
    # from a shipped network with gates: both are trained already, so the steps are few and small
    "gated": {
        **SGD,
        "sp_iterations": 0,
        "iterations": 120,
        "tune_iterations": 240,
        "batch_size": 128,
        "routes": 2,
        "lr": 2e-3,
        "gate_lr": 1e-3,
        "distillation": 0.9,
        "eval_every": 100,
        "bn_images": 1_000,
    },
    # a chain of trained networks: small steps, and batch norms as they are, since only few images, the hard
    # ones, reach a later network. Steps: for ResNet-14 and ResNet-38.
    "chain": {
        **SGD,
        "sp_iterations": 0,
        "iterations": 300,
        "tune_iterations": 300,
        "batch_size": 128,
        "routes": 2,
        "lr": 2e-3,
        "gate_lr": 1e-2,
        "bn": "frozen",
        "distillation": 0.9,
        "eval_every": 100,
    },
    # Wang et al. 2018, section 4, and the defaults that its authors publish for CIFAR: SP for 64,000 steps at
    # 0.1, divided by ten at half and three quarters of them, HRL for 10,000 at 1e-4, one route per image, no
    # baseline, a hundredth of the score function's gradient
    "paper": {
        "alpha": 0.1,
        "policy_weight": 0.01,
        "sp_iterations": 64_000,
        "iterations": 10_000,
        "tune_iterations": 0,
        "batch_size": 128,
        "routes": 1,
        "baseline": "none",
        "optimizer": "sgd",
        "sp_lr": 0.1,
        "lr": 1e-4,
        "gate_lr": 1e-4,
        "schedule": "step",
        "eval_every": 1_000,
        "bn_images": 4_000,
    },
    # the shipped networks for CIFAR-10, SP and HRL as two runs: a ResNet-38 on two CPU cores in a night
    "cores-sp": {**CORES, "warmup_iterations": 600, "sp_iterations": 300, "iterations": 0},
    "cores": {**CORES, "sp_iterations": 0, "iterations": 1_500, "tune_iterations": 2_500},
    # new gates that tell images apart from the first step on
    "cores-gain6": {
        **CORES,
        "sp_iterations": 0,
        "iterations": 1_500,
        "tune_iterations": 2_500,
        "gate_gain": 6.0,
    },
    # deeper ones: batches that fill a GPU, with a rate as much larger (Goyal et al. 2017, arXiv 1706.02677)
    "gpu-sp": {**GPU, "warmup_iterations": 200, "sp_iterations": 100, "iterations": 0},
    "gpu": {**GPU, "sp_iterations": 0, "iterations": 500, "tune_iterations": 300},
}
WHY = {
    "quick": "a first look, in minutes on two cores",
    "plain": "gates are learned from scratch",
    "gated": "continues from trained gates; --preset plain learns them from scratch",
    "chain": "continues from trained networks",
    "paper": "the paper's schedule",
}
# flags that the line about a run always names
MAIN = {"alpha", "sp_iterations", "iterations", "tune_iterations", "batch_size", "lr", "gate_lr"}
# flags that it leaves out
QUIET = {
    *NOT_COMPARED,
    *MODEL_FLAGS,
    "preset",
    "precision",
    "dataset",
    "env",
    "weights",
    "shortcut",
    "mean",
    "std",
}


def describe(args: Any) -> str:
    """Describe a run in a line: the preset, its reason, `MAIN`, and what differs from the defaults."""
    told = {
        field.name: getattr(args, field.name)
        for field in fields(args)
        if field.name in MAIN or field.name not in QUIET and getattr(args, field.name) != field.default
    }
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    return f"{args.preset} ({WHY.get(args.preset, 'flags as given')})" + (f": {settings}" if settings else "")
